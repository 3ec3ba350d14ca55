"""The command line. Each module registers its commands; `--help` lists them in the order of the imports."""

import os
import sys

from safetensors import SafetensorError

from minivllava.cli.app import app
from minivllava.errors import MinivllavaError, short_reason

from minivllava.cli import (  # noqa: I001, E402  # isort: skip
    train, recipe, ask, evaluate, score, retrieve, port, ablate, data, convert, bench, assignments,  # noqa: F401
)  # fmt: skip


def main():
    """Entry point: bad input, and files that cannot be read or written, become one line on stderr and exit code 2."""
    try:
        try:
            app()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has left: what is still to be written goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except MinivllavaError as error:
        _fail(str(error))
    except (OSError, SafetensorError) as error:
        file = getattr(error, "filename", None) or "A file"
        reason = getattr(error, "strerror", None) or short_reason(error)
        _fail(f"{file} cannot be read or written ({reason}): see to that, or name another place.")


def _fail(message: str):
    print(f"minivllava: {message}", file=sys.stderr)
    sys.exit(2)
