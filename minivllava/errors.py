"""Typed errors. Each message names the file or field at fault and how to mend it.

The command line turns any `MinivllavaError` into one line on stderr and exit code 2.
"""

from collections.abc import Iterable


class MinivllavaError(ValueError):
    """Base of every error that bad input can cause."""


class MediaError(MinivllavaError):
    """An image or clip is missing, empty, truncated, not media, or has no frames."""


class DataError(MinivllavaError):
    """A record or a file of records breaks the LLaVA format, or its placeholders and files disagree."""


class ConfigError(MinivllavaError):
    """A preset, size or option that does not exist or does not fit the others."""


class CheckpointError(MinivllavaError):
    """A checkpoint is missing, half written, or belongs to another configuration."""


class ContextLengthError(MinivllavaError):
    """A conversation is longer than the language model's context."""


class DivergedError(MinivllavaError, FloatingPointError):
    """A training run's loss is no longer a finite number."""


class JudgeError(MinivllavaError):
    """A judge's endpoint refuses, cannot be reached, or keeps replying what cannot be read as a verdict."""


def check_choice(what: str, value, choices: Iterable):
    """Raises ConfigError, listing the choices there are, unless `value` is one of them."""
    choices = list(choices)
    if value not in choices:
        listed = ", ".join(str(choice) or "''" for choice in choices)
        raise ConfigError(f"There is no {what} {value!r}; choose one of {listed}.")


def short_reason(error: Exception, length: int = 300) -> str:
    """What an exception of another package says, on one line of at most `length` characters, for a message of ours."""
    return " ".join(str(error).split())[:length].strip(" .") or type(error).__name__
