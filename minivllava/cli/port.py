"""What the port to transformers lost: port."""

from pathlib import Path
from typing import Annotated

import typer

from minivllava.cli.app import Changes, Device, Preset, app, writable
from minivllava.cli.ask import Dtype, load_model


@app.command()
def port(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint folder or hub id, with temporal attention.")],
    preset: Preset = "tiny",
    limit: Annotated[
        int | None,
        typer.Option(min=2, help="At most this many questions; up to half of them need the order of frames."),
    ] = None,
    clips: Annotated[int, typer.Option(min=1, help="Clips whose frames are put in another order.")] = 16,
    out: Annotated[Path, typer.Option(help="The folder for port.json and port.png.")] = Path("runs/port"),
    device: Device = None,
    dtype: Dtype = None,
    change: Changes = [],  # noqa: B006
):
    """Show what the port to transformers lost: the same weights with temporal attention and without it.

    Asks about clips of the embedded world, and reverses the order of frames. A table, a JSON file and a figure.
    """
    from dataclasses import replace

    from minivllava.data.build import build_world, evaluation_only
    from minivllava.evaluation.port import WITH, WITHOUT, port_study, views
    from minivllava.figures.port import port_lost
    from minivllava.files import write_json
    from minivllava.overrides import override
    from minivllava.presets import preset as named_preset

    writable(out, folder=True)
    model = load_model(checkpoint, device, dtype)
    views(model)  # a model that has nothing to lose is refused before the world is made
    world = evaluation_only(override(named_preset(preset), *change).world)
    world = build_world(replace(world, images=0, clips=0, compositional=0))
    results = port_study(model, world, limit, clips)
    _print(results)
    write_json(out / "port.json", results)
    port_lost(results["rows"], results["permutation"], WITH, WITHOUT).savefig(out / "port.png", dpi=150)
    print(f"Answers and figures: {out / 'port.json'}, {out / 'port.png'}")


def _print(results: dict):
    from rich.console import Console
    from rich.table import Table

    views = [name for name in results["permutation"][0] if name != "file"]
    questions = Table(title="Exact match on clips, %", title_justify="left")
    for column in ("asked", "n", *views, "lost (95 %)"):
        questions.add_column(column, justify="left" if column == "asked" else "right")
    for row in results["rows"]:
        interval = " to ".join(f"{100 * bound:.1f}" for bound in row["interval"] or ()) or "-"
        lost = f"{100 * row['lost']:.1f} ({interval})"
        questions.add_row(row["asked"], str(row["n"]), *(f"{100 * row[view]:.1f}" for view in views), lost)
    order = Table(title="Frames in reverse: relative change of a frame's features", title_justify="left")
    for column in ("clips", *views):
        order.add_column(column, justify="right")
    for name, pick in (("smallest", min), ("largest", max)):
        order.add_row(name, *(f"{pick(clip[view] for clip in results['permutation']):.3g}" for view in views))
    console = Console()
    console.width = max(console.width, 110)
    console.print(questions)
    console.print(order)
