"""Measurements: bench."""

import json
from pathlib import Path
from typing import Annotated

import typer

from minivllava.cli.app import app


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
