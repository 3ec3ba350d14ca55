"""What several commands share: the app they register with, and common options."""

import os
from pathlib import Path
from tempfile import TemporaryFile
from typing import Annotated

import typer

from minivllava.errors import ConfigError

app = typer.Typer(
    help="Video-LLaVA from scratch: one model that talks about images and clips.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

Preset = Annotated[str, typer.Option(help="Sizes and recipe: sample, demo, tiny, small, smol or paper.")]
Changes = Annotated[
    list[str], typer.Option("--set", metavar="FIELD=VALUE", help="Change a field of the preset, e.g. stage2.steps=500.")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; by default a GPU if there is one.")]
RUNS = Path("runs")
LONGEST_NAME = 200  # bytes; file systems allow 255, and some files of a run have longer names
PARTS = Path("data/pretrained/parts")


def run_folder(name: str) -> Path:
    """The folder of a run. Raises ConfigError for a name that would lie elsewhere."""
    folder = RUNS / name
    if len(os.fsencode(name)) > LONGEST_NAME or folder.resolve().parent != RUNS.resolve():
        raise ConfigError(f"{name!r} is no name of a run: give a plain name, that of a folder under {RUNS}/.")
    return folder


def writable(path: Path, option: str = "--out", folder: bool = False) -> Path:
    """A file for results, or a folder for them. Raises ConfigError, before the work begins, if it cannot be made."""
    try:
        if path.is_dir() and not folder:
            raise ConfigError(f"{path} is a folder: give {option} the name of a file.")
        place = path if folder else path.parent
        while not place.exists():
            place = place.parent
        with TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise ConfigError(f"{path} cannot be made ({error.strerror}): give another {option}.") from error
    return path


def main_goes_on() -> bool:
    """Whether this is the main process of a training that is over.

    Ends the connection between several processes: one that exits with it open may abort, which ends the others.
    """
    import torch.distributed as dist

    from minivllava.checkpoints.storage import is_main_process

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
    return is_main_process()
