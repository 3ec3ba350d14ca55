"""What several commands share: the app they register with, and common options."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Video-LLaVA from scratch: one model that talks about pictures and clips.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

Preset = Annotated[str, typer.Option(help="Sizes and recipe: sample, demo, tiny, small or paper.")]
Changes = Annotated[
    list[str], typer.Option("--set", metavar="FIELD=VALUE", help="Change a field of the preset, e.g. stage2.steps=500.")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; by default a GPU where there is one.")]
RUNS = Path("runs")
PARTS = Path("data/pretrained/parts")
