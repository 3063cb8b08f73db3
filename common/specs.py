"""One-line specifications, `name:key=value,key=value`: how a command line names a partition or an attack."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields
from typing import Any, ClassVar, Protocol, TypeVar

from common.errors import ConfigurationError, UnknownNameError

LONGEST = 1000

_OWN = re.compile(r"(?P<module>[A-Za-z_][\w.]*):(?P<kind>[A-Za-z_]\w*)(?::(?P<options>.*))?", re.DOTALL)


class Specified(Protocol):
    """A dataclass whose fields (bool, int, float, str or a union of these) are the keys of a specification."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


Kind = TypeVar("Kind", bound=Specified)


def split_spec(text: str, what: str) -> tuple[str, dict[str, str]]:
    """Name and options of a specification; in both `-` and `_` are the same. `what` is the word errors call it by.

    >>> split_spec("dirichlet:alpha=0.5,index=3", "partition")
    ('dirichlet', {'alpha': '0.5', 'index': '3'})

    Raises ConfigurationError where it is malformed, longer than 1000 characters or gives an option twice.
    """
    if len(text) > LONGEST:
        raise ConfigurationError(f"the {what} is {len(text)} characters long, at most {LONGEST} are allowed")
    name, colon, rest = text.partition(":")
    if colon and not rest.strip():
        raise ConfigurationError(f"{what} {text!r} ends after the colon", hint=f"write {name.strip()} alone")
    options: dict[str, str] = {}
    for part in rest.split(",") if colon else ():
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not key or not value:
            raise ConfigurationError(
                f"{what} {text!r}: {part.strip()!r} is not key=value", hint=f"write {what}s as name:key=value,key=value"
            )
        key = key.replace("-", "_")
        if key in options:
            raise ConfigurationError(f"{what} {text!r} gives {key} twice")
        options[key] = value
    return name.strip().replace("_", "-"), options


def split_own(text: str) -> tuple[str, str, str | None] | None:
    """Module, class and options (None without a colon) of a class of somebody's own, `package.module:Class:key=value`; None of
    other specifications, but not of all malformed ones.

    >>> split_own("my.attacks:Shrink:factor=0.5"), split_own("my.attacks:Shrink"), split_own("flip:source=7")
    (('my.attacks', 'Shrink', 'factor=0.5'), ('my.attacks', 'Shrink', None), None)
    """
    found = _OWN.fullmatch(text.strip())
    return (found["module"], found["kind"], found["options"]) if found else None


def choose(kinds: Mapping[str, type[Kind]], name: str, what: str) -> type[Kind]:
    """The kind called `name`. Raises UnknownNameError naming the nearest one."""
    if name not in kinds:
        raise UnknownNameError(what, name, kinds)
    return kinds[name]


def from_options(kind: type[Kind], options: Mapping[str, str], what: str) -> Kind:
    """An instance of `kind` with `options` read as the types of its fields.

    Raises UnknownNameError for an option it does not have, ConfigurationError for a value of the wrong type or an
    option that must be given.
    """
    known = option_names(kind)
    types = typing.get_type_hints(kind)
    for key in options:
        if key not in known:
            raise UnknownNameError(f"option of {what}", key, known)
    missing = [
        field.name
        for field in fields(kind)
        if field.name in known
        and field.name not in options
        and field.default is MISSING
        and field.default_factory is MISSING
    ]
    if missing:
        raise ConfigurationError(f"{what} needs {', '.join(missing)}", hint=f"add {missing[0]}=...")
    return kind(**{key: _read(value, types[key], f"{what}: {key}") for key, value in options.items()})


def option_names(kind: type[Specified]) -> tuple[str, ...]:
    """The options a specification of `kind` may give: its dataclass fields of a simple type."""
    types = typing.get_type_hints(kind)
    return tuple(field.name for field in fields(kind) if field.init and _simple(types[field.name]))


def in_range(what: str, name: str, value: float, low: float, high: float, *, above: bool = False) -> None:
    """Raises ConfigurationError naming field, limits and value unless low <= value <= high, or low < value where it must be `above`."""
    if not low <= value <= high or (above and value == low):
        limits = f"above {low:g} and at most {high:g}" if above else f"from {low:g} to {high:g}"
        raise ConfigurationError(f"{what}: {name} must be {limits}, not {value!r}")


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    return typing.get_args(annotation) or (annotation,)


def _simple(annotation: Any) -> bool:
    return set(_alternatives(annotation)) <= {bool, int, float, str, type(None)}


def _read(text: str, annotation: Any, where: str) -> bool | int | float | str:
    allowed = _alternatives(annotation)
    if bool in allowed:
        if text.lower() in ("true", "yes", "1"):
            return True
        if text.lower() in ("false", "no", "0"):
            return False
        raise ConfigurationError(f"{where} must be true or false, not {text!r}")
    if int in allowed and re.fullmatch(r"[+-]?\d{1,18}", text):
        return int(text)
    if float in allowed:
        try:
            return float(text)
        except ValueError:
            pass
    if str in allowed:
        return text
    kinds: Iterable[str] = ["a whole number"] if float not in allowed else ["a number"]
    raise ConfigurationError(f"{where} must be {' or '.join(kinds)}, not {text!r}")
