"""The command line: demo, train, ask, evaluate, data, export, bench."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from minivllava.errors import DataError, MinivllavaError

app = typer.Typer(
    help="Video-LLaVA from scratch: one model that talks about pictures and clips.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

Preset = Annotated[str, typer.Option(help="Sizes and recipe: demo, tiny, small or paper.")]
Changes = Annotated[
    list[str], typer.Option("--set", metavar="FIELD=VALUE", help="Change a field of the preset, e.g. stage2.steps=500.")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; by default a GPU where there is one.")]
RUNS = Path("runs")
PARTS = Path("data/pretrained/parts")


def main():
    """Entry point: bad input becomes one clear line on stderr and exit code 2."""
    try:
        app()
    except MinivllavaError as error:
        print(f"minivllava: {error}", file=sys.stderr)
        sys.exit(2)


@app.command()
def demo(
    name: Annotated[str, typer.Option(help="The run's folder under runs/.")] = "demo",
    change: Changes = [],  # noqa: B006  (typer reads the default, nothing changes it)
):
    """Train a small Video-LLaVA from the shipped parts, evaluate it, and write its report."""
    train(preset="demo", name=name, change=change)


@app.command()
def train(
    preset: Preset = "tiny",
    name: Annotated[
        str | None, typer.Option(help="The run's folder under runs/; by default the preset's name.")
    ] = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Train language model and encoders too.")
    ] = False,
    init: Annotated[
        Path | None, typer.Option(help="Start: pretrained parts, or with --data a finished checkpoint.")
    ] = None,
    data: Annotated[
        list[Path], typer.Option(help="Your own LLaVA-format JSON of pictures, clips or text; may be repeated.")
    ] = [],  # noqa: B006
    media: Annotated[
        Path | None, typer.Option(help="The folder that its paths start from; by default the JSON's.")
    ] = None,
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="Leave out records whose media is broken.")
    ] = False,
    epochs: Annotated[float, typer.Option(min=0, help="With --data: passes over your records.")] = 3.0,
    change: Changes = [],  # noqa: B006
    device: Device = None,
):
    """Train on the embedded world, or with --data on your own files; then evaluate and report.

    An interrupted run continues where it stopped when the same command is given again.
    """
    from minivllava.config import override
    from minivllava.config import preset as named_preset

    recipe = override(named_preset(preset), *change)
    folder = RUNS / (name or preset)
    if data:
        if init is None:
            raise DataError("--data needs --init CHECKPOINT, e.g. --init data/pretrained/tiny.")
        _finetune(init, data, media, recipe.stage2, epochs, folder, skip_broken, device)
        return
    from minivllava.training.run import train_from_parts, train_from_scratch

    if from_scratch:
        train_from_scratch(recipe, folder, device=device)
    else:
        train_from_parts(recipe, init or PARTS, folder, device=device)
    _evaluate_and_report(folder, recipe)


def _finetune(init, data, media, training, epochs, folder, skip_broken, device):
    from minivllava.training.run import finetune

    _, skipped = finetune(init, data, media, training, epochs, folder, skip_broken, device=device)
    if skipped:
        print(f"Left out {len(skipped)} broken file(s): {', '.join(skipped)}")
    print(f"The tuned model is in {folder / 'model'}: minivllava ask {folder / 'model'} FILE... 'question'")


def _evaluate_and_report(folder: Path, recipe):
    from minivllava.data.build import build_world
    from minivllava.evaluation.evaluate import evaluate_world
    from minivllava.report import write_report

    world = build_world(recipe.world)
    results = evaluate_world(folder / "model", world, folder / "evaluation.json")
    _print_results(results)
    print(f"The report: {write_report(folder)}")


@app.command()
def ask(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint folder, e.g. data/pretrained/tiny.")],
    files_and_question: Annotated[
        list[str], typer.Argument(metavar="[FILE]... QUESTION", help="Pictures and clips, then the question.")
    ],
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token each time.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Draw among the likeliest tokens up to this share.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 128,
    frames: Annotated[int | None, typer.Option(min=1, help="Frames the model sees of a clip; by default 8.")] = None,
    seed: Annotated[int, typer.Option(help="For temperatures above 0.")] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print question, files and answer as one JSON object.")
    ] = False,
):
    """Ask a model about pictures and clips; the answer streams as it is made.

    Example: minivllava ask data/pretrained/tiny picture.png clip.mp4 "What colour is the circle?"

    In the question, <image> and <video> may say where each file belongs.
    """
    *files, question = files_and_question
    if os.path.isfile(question):  # unlike Path.is_file, this is False for a question too long to be a path
        raise DataError(f"{question} is a file: put a question after it.")
    import torch

    from minivllava.chat import by_kind
    from minivllava.models.checkpoint import load_vllava

    images, videos = by_kind(files)
    model = load_vllava(checkpoint)
    answer = model.chat(
        question, images, videos, frames=frames, temperature=temperature, top_p=top_p,
        max_new_tokens=max_new_tokens, generator=torch.Generator().manual_seed(seed),
        on_text=None if as_json else lambda text: print(text, end="", flush=True),
    )  # fmt: skip
    if as_json:
        answer = json.dumps({"question": question, "files": files, "answer": answer})
    print(answer if as_json else "")


@app.command()
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint folder.")],
    preset: Preset = "tiny",
    out: Annotated[Path | None, typer.Option(help="Where the JSON goes; by default beside the checkpoint.")] = None,
    change: Changes = [],  # noqa: B006
):
    """Score a model on the held-out questions, beside the baselines: a table, and JSON."""
    from minivllava.config import override
    from minivllava.config import preset as named_preset
    from minivllava.data.build import build_world, evaluation_only
    from minivllava.evaluation.evaluate import evaluate_world

    world = build_world(evaluation_only(override(named_preset(preset), *change).world))
    out = out or checkpoint.with_name(checkpoint.name + "-evaluation.json")
    _print_results(evaluate_world(checkpoint, world, out))
    print(f"All answers: {out}")


def _print_results(results: dict):
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.width = max(console.width, 110)  # a pipe counts as 80 columns, which would cut the names of types
    for split, rows in results["tables"].items():
        views = [key for key in rows[0] if key not in ("kind", "type", "n")]
        shown = Table(title=f"{split}: exact match, %", title_justify="left")
        for column in ("kind", "type", "n", *views):
            shown.add_column(column, justify="left" if column in ("kind", "type") else "right")
        for row in rows:
            scores = ("-" if row[view] is None else f"{100 * row[view]:.1f}" for view in views)
            shown.add_row(
                row["kind"], row["type"], str(row["n"]), *scores, style="bold" if row["type"] == "all" else ""
            )
        console.print(shown)


@app.command()
def data(
    preset: Preset = "tiny",
    change: Changes = [],  # noqa: B006
    out: Annotated[Path | None, typer.Option(help="Also copy the world's folder to this new one.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="Also draw a sheet of examples into this PNG.")] = None,
    inspect: Annotated[Path | None, typer.Option(help="Check and count a LLaVA-format JSON file instead.")] = None,
    media: Annotated[Path | None, typer.Option(help="With --inspect: where its paths start.")] = None,
):
    """Make the embedded world "Shapes in Motion", or inspect any LLaVA-format file."""
    if inspect is not None:
        from minivllava.data.dataset import check_media, load_records, unique_files

        records = load_records(inspect, media)
        _, broken = check_media(records, skip_broken=True)
        turns = sum(len(row["conversations"]) // 2 for row in records)
        pictures, clips = (len(unique_files(records, kind)) for kind in ("image", "video"))
        print(
            f"{len(records)} records, {turns} answers, {pictures} pictures, {clips} clips, {len(broken)} broken files"
        )
        for path in broken:
            print(f"broken: {path}")
        return
    from minivllava.config import override
    from minivllava.config import preset as named_preset
    from minivllava.data.build import build_world

    world = build_world(override(named_preset(preset), *change).world)
    print(f"Shapes in Motion: {world}")
    for file in sorted(set(world.glob("*.json")) - {world / "config.json"}):
        print(f"  {file.name}: {len(json.loads(file.read_text()))} records")
    if out is not None:
        if out.exists():
            raise DataError(f"{out} is there already: name a new folder, or delete that one.")
        shutil.copytree(world, out)
    if sheet is not None:
        from minivllava.figures import example_sheet

        example_sheet(world).savefig(sheet)
        print(f"Examples: {sheet}")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="The folder of a run from scratch, e.g. runs/tiny.")],
    out: Annotated[Path, typer.Argument(help="Where the parts and the finished model go.")],
):
    """Copy a run's parts and finished model, in half precision: this fills data/pretrained."""
    from minivllava.training.run import export as copy_models

    copy_models(run, out)


@app.command()
def bench(
    checkpoint: Annotated[Path, typer.Argument(help="A finished checkpoint.")] = Path("data/pretrained/tiny"),
    steps: Annotated[int, typer.Option(min=4, help="Training steps to time.")] = 30,
    out: Annotated[Path | None, typer.Option(help="Also write the figures to this JSON file.")] = None,
):
    """Measure training with and without cached features, the wait for data, the first answer, and memory."""
    from minivllava.bench import run_bench

    figures = run_bench(checkpoint, steps)
    for name, value in figures.items():
        print(f"{name:<52} {value}")
    if out is not None:
        out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
