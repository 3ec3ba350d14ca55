"""Fields of configs, checked against their annotations: values come from JSON, TOML and the command line, too."""

import math
import types
import typing
from numbers import Integral, Real

from minivllava.errors import ConfigError

WORDS = {int: "a whole number", float: "a number", str: "a string", bool: "true or false", dict: "a JSON object"}


def check_types(config):
    """Raises ConfigError that names the first field of a dataclass whose value does not fit its annotation."""
    for name, hint in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        if not fits(hint, value):
            raise ConfigError(f"{name} is {value!r}: use {in_words(hint)}.")


def check_range(config, low: float, high: float, *names: str):
    """Raises ConfigError unless these fields, which hold numbers, are from `low` to `high`."""
    for name in names:
        value = getattr(config, name)
        if not low <= value <= high:
            kind = in_words(typing.get_type_hints(type(config))[name])
            limits = f"from {low:g} to {high:g}" if high < math.inf else f"of at least {low:g}"
            raise ConfigError(f"{name} is {value!r}: use {kind} {limits}.")


def fits(hint, value) -> bool:
    """Whether a value is what an annotation says. A whole number fits a float; true, nan and infinity fit no number."""
    outer, inner = typing.get_origin(hint), typing.get_args(hint)
    if outer is types.UnionType:
        return any(fits(each, value) for each in inner)
    if outer is tuple and isinstance(value, tuple):
        inner = inner[:1] * len(value) if inner[-1] is ... else inner
        return len(inner) == len(value) and all(map(fits, inner, value))
    if outer is dict and isinstance(value, dict):
        return all(fits(inner[1], each) for each in value.values())
    if hint in (int, float):
        number = isinstance(value, Integral if hint is int else Real) and not isinstance(value, bool)
        return number and -math.inf < value < math.inf
    return isinstance(value, outer or hint)


def in_words(hint) -> str:
    """What to use for a field with this annotation."""
    outer, inner = typing.get_origin(hint), typing.get_args(hint)
    if outer is types.UnionType:
        return " or ".join(in_words(each) for each in inner if each is not types.NoneType)
    if outer is tuple:
        count = "" if inner[-1] is ... else f"{len(inner)} "
        return f"a list of {count}{in_words(inner[0]).removeprefix('a ')}s"
    return WORDS.get(outer or hint, f"a {hint.__name__}")
