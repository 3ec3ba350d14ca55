"""Evaluation: evaluate."""

from pathlib import Path
from typing import Annotated

import typer

from minivllava.cli.app import Changes, Preset, app
from minivllava.cli.results import print_results


@app.command()
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint folder.")],
    preset: Preset = "tiny",
    out: Annotated[Path | None, typer.Option(help="Where the JSON goes; by default beside the checkpoint.")] = None,
    change: Changes = [],  # noqa: B006
):
    """Score a model on the held-out questions, beside the baselines: a table, and JSON."""
    from minivllava.config import override
    from minivllava.data.build import build_world, evaluation_only
    from minivllava.evaluation.evaluate import evaluate_world
    from minivllava.presets import preset as named_preset

    world = build_world(evaluation_only(override(named_preset(preset), *change).world))
    out = out or checkpoint.with_name(checkpoint.name + "-evaluation.json")
    print_results(evaluate_world(checkpoint, world, out))
    print(f"All answers: {out}")
