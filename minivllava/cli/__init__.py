"""The command line. Each module registers its commands; `--help` lists them in the order of the imports."""

import sys

from minivllava.cli.app import app
from minivllava.errors import MinivllavaError

from minivllava.cli import (  # noqa: I001, E402  # isort: skip
    train, recipe, ask, evaluate, score, retrieve, port, ablate, data, convert, bench, assignments,  # noqa: F401
)  # fmt: skip


def main():
    """Entry point: bad input becomes one clear line on stderr and exit code 2."""
    try:
        app()
    except MinivllavaError as error:
        print(f"minivllava: {error}", file=sys.stderr)
        sys.exit(2)
