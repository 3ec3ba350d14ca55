"""Configs as JSON, and changed by text: `override(preset("tiny"), "stage2.steps=500", "model.language.width*=0.5")`."""

import dataclasses
import json
import types
import typing

from minivllava.errors import ConfigError
from minivllava.fields import fits


def to_dict(config) -> dict:
    """A config dataclass as plain JSON types."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(kind: type, values: dict):
    """The inverse of `to_dict`; a field that is left out takes its default.

    Raises ConfigError that names any unknown field, or one that has no default and is missing.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{kind.__name__} is an object of named fields, not {values!r}.")
    hints = typing.get_type_hints(kind)
    unknown = set(values) - set(hints)
    if unknown:
        raise ConfigError(f"{kind.__name__} has no field {', '.join(sorted(unknown))}.")
    needed = {f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING}
    if needed - set(values):
        raise ConfigError(f"{kind.__name__} lacks the field {', '.join(sorted(needed - set(values)))}.")
    return kind(**{name: _field(name, hints[name], value) for name, value in values.items()})


def _field(name: str, hint, value):
    """A field's value; an error in a nested config says in which."""
    try:
        return _typed(hint, value)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def _typed(hint, value):
    """A JSON value as its field wants it: nested configs, also optional ones and those in dicts and tuples, and tuples
    for lists. What fits nowhere stays as it is: the config checks its types."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is types.UnionType:
        if value is None and types.NoneType in arguments:
            return None
        kinds = [argument for argument in arguments if argument is not types.NoneType]
        # of several configs, the one that has all these fields
        known = (kind for kind in kinds if isinstance(value, dict) and set(value) <= set(typing.get_type_hints(kind)))
        hint = next(known, kinds[0])
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value)
    if typing.get_origin(hint) is dict and isinstance(value, dict):
        return {key: _typed(arguments[1], item) for key, item in value.items()}
    if typing.get_origin(hint) is tuple and isinstance(value, list):
        return tuple(_typed(arguments[0], item) for item in value)
    return value


def override(config, *changes: str):
    """A copy of a config with fields changed: "stage2.steps=500" sets, "stage2.steps*=0.5" multiplies.

    All changes take effect together, so widths that belong together may change one after the other. Whole numbers
    stay whole, and at least 1, when they are multiplied. Raises ConfigError when a field does not exist, a value has
    the wrong type, or the config that results makes no sense.
    """
    values = to_dict(config)
    for change in changes:
        path, sign, text = change.partition("=")
        if not sign:
            raise ConfigError(f"{change!r} is no change; write FIELD=VALUE, e.g. stage2.steps=500.")
        *parents, field = path.removesuffix("*").split(".")
        place = values
        for parent in parents:
            place = place.get(parent) if isinstance(place, dict) else None
        if not isinstance(place, dict) or field not in place or isinstance(place[field], dict):
            raise ConfigError(f"{change!r}: there is no field {field!r} {_known(place, path)}.")
        place[field] = _new(change, place[field], text, multiply=path.endswith("*"))
    return from_dict(type(config), values)


def _known(place, path: str) -> str:
    """What the path could have led to instead."""
    if not isinstance(place, dict):
        return f"there: {path.rpartition('.')[0]!r} has no fields"
    fields = [name for name, value in place.items() if not isinstance(value, dict)]
    parts = [f"{name}..." for name, value in place.items() if isinstance(value, dict)]
    return f"to set; choose one of {', '.join(fields + parts)}"


def _new(change: str, old, text: str, multiply: bool):
    if isinstance(old, str) and not multiply:
        return text
    try:
        new = json.loads(text)
    except json.JSONDecodeError:
        new = None
    if multiply and fits(float, new) and type(old) in (int, float):
        return old * new if isinstance(old, float) else max(1, round(old * new))
    if multiply or not fits(type(old), new):
        raise ConfigError(f"{change!r}: {text!r} does not fit a field that holds {json.dumps(old)}.")
    return new
