"""Single values as flat configurations give them: already typed, or as text."""

from __future__ import annotations

from typing import Any

from common.errors import ConfigurationError


def read_value(value: Any, kind: type, where: str) -> Any:
    """`value` as a bool, int, float or str. Raises ConfigurationError naming `where`.

    >>> read_value("3", int, "clients"), read_value(1, float, "rate"), read_value("false", bool, "x")
    (3, 1.0, False)
    """
    if kind is bool:
        if isinstance(value, bool):
            return value
        if str(value).lower() in ("true", "false"):
            return str(value).lower() == "true"
        raise ConfigurationError(f"{where} must be true or false, not {value!r}")
    if kind is str and isinstance(value, str):
        return value
    if kind in (int, float) and not isinstance(value, bool) and isinstance(value, (int, float, str)):
        try:
            if kind is float or isinstance(value, str) or value == int(value):
                return kind(value)
        except (ValueError, OverflowError):
            pass
    words = {int: "a whole number", float: "a number", str: "text"}
    raise ConfigurationError(f"{where} must be {words[kind]}, not {value!r}")
