"""Measurements: bench."""

from pathlib import Path
from typing import Annotated

import typer

from minivllava.cli.app import Preset, app, writable
from minivllava.errors import ConfigError
from minivllava.files import write_json


@app.command()
def bench(
    checkpoint: Annotated[Path, typer.Argument(help="A finished checkpoint.")] = Path("data/pretrained/tiny"),
    steps: Annotated[int, typer.Option(min=4, help="Training steps to time.")] = 30,
    peer: Annotated[bool, typer.Option(help="Also run the same weights and inputs through `transformers`.")] = True,
    cell: Annotated[bool, typer.Option("--cell", help="Also compute one cell of the studies, in minutes.")] = False,
    gpu: Annotated[bool, typer.Option("--gpu", help="Instead: the preset's sizes, random weights, on a GPU.")] = False,
    preset: Preset = "paper",
    device: Annotated[
        str | None, typer.Option(help="With --gpu: cuda, or cpu to run the same cells at a small preset's size.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="With --gpu: of each cell; the median counts.")] = 5,
    tokens: Annotated[int, typer.Option(min=1, help="With --gpu: of an answer.")] = 64,
    out: Annotated[Path | None, typer.Option(help="Also write the figures to this JSON file.")] = None,
):
    """Measure speed and memory. Takes a few minutes on two CPU cores; prints at the end.

    Training with and without cached features, the wait for data, the first answer, and memory; then the
    same work through `transformers`. With --gpu: training steps, prefill and decode of the published 7B model's sizes;
    without a GPU, the FLOPs and bytes that these cannot do without.
    """
    if not gpu and (preset, device, rounds, tokens) != ("paper", None, 5, 64):
        raise ConfigError("--preset, --device, --rounds and --tokens are for --gpu: add that, or leave them out.")
    if out is not None:
        writable(out)
    if gpu:
        figures = _gpu_figures(preset, device, rounds, tokens, out)
    else:
        from minivllava.bench import run_bench

        figures = run_bench(checkpoint, steps, peer, cell)
    for name, value in figures.items():
        if name not in ("rows", "limits", "floor"):
            print(f"{name:<52} {value}")
    for name, value in (figures.get("limits", {}) | figures.get("floor", {})).items():
        print(f"{name:<52} {'unknown' if value is None else f'{value:.3g}'}")
    for line in _lines(figures.get("rows", ())):
        print(line)
    if out is not None:
        write_json(out, figures, indent=1)


def _gpu_figures(preset: str, device: str | None, rounds: int, tokens: int, out: Path | None) -> dict:
    import torch

    from minivllava.bench.gpu import floor, run_gpu_bench
    from minivllava.bench.timing import H100
    from minivllava.presets import preset as preset_of

    config = preset_of(preset).model

    def save(figures: dict):
        if out is not None:
            write_json(out, figures, indent=1)

    if device == "cpu":
        return run_gpu_bench(config, device, torch.float32, rounds, tokens, save=save)
    if device is None and not torch.cuda.is_available():
        needed = floor(config, *H100)
        print(
            "This machine has no CUDA GPU, so nothing is timed (the same cells at a small size: minivllava bench --gpu "
            f"--device cpu --preset demo). What one conversation about one clip needs at least, preset {preset}, bf16, "
            "and how long an H100 takes for that by its data sheet (989 TFLOP/s, 3.35 TB/s):"
        )
        return {name: f"{value:.3g}" for name, value in needed.items()}
    return run_gpu_bench(config, device or "cuda", rounds=rounds, tokens=tokens, save=save)


def _lines(rows) -> list[str]:
    """A line for each contestant of each row; above 1.00, `ratio` says how many times as long the peer takes."""
    lines = []
    for row in rows:
        for name, ms in row["ms"].items():
            line = f"{row['cell']:<18} batch {row['batch']:<3} {name:<16} "
            if min(row["ms"].values()) <= 0:  # a step of decoding is a difference of two times
                lines.append(line + "too short to tell from noise: use more --tokens or --rounds")
                continue
            line += f"{ms:>10.2f} ms"
            if name in row["ratio"]:
                low, high = row["between"].get(name, (row["ratio"][name],) * 2)
                line += f"   ratio {row['ratio'][name]:.2f} ({low:.2f} to {high:.2f})"
            for measure in ("tokens/s", "MFU", "share of the bandwidth's limit", "peak memory, GiB"):
                value = row.get(measure, {}).get(name)
                line += "" if value is None else f"   {measure} {value:.3g}"
            lines.append(line)
            if taken := row.get("kernels", {}).get(name):
                parts = ", ".join(f"{family} {ms:.1f}" for family, ms in taken["ms"].items())
                lines.append(f"{'':<18} a call's kernels, ms: {parts}; the GPU is busy {taken['busy']:.0%} of the time")
    return lines
