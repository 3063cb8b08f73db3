"""Canonical JSON: one sequence of bytes for one value, so that what is signed and hashed is what everybody reads.

UTF-8 without a byte-order mark, object keys sorted by code point, no white space, no character escaped that JSON does
not make one escape; integers within 64 bits, floats as Python's shortest repr, no NaN and no infinity. `decode` takes
these bytes and no others: whatever it returns encodes to the same bytes again.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, Final, NoReturn

from common.errors import WireError

LIMIT: Final = 64 * 1024
DEPTH: Final = 16
_INTEGERS = range(-(1 << 63), 1 << 64)
_STRUCTURE = re.compile(r'\\.|["\[\]{}]', re.DOTALL)


def encode(value: Any) -> bytes:
    """`value` (dict with str keys, list, tuple, str, int, float, bool, None) as canonical JSON.

    Raises WireError NOT_ENCODABLE for anything else: NaN, infinity, an integer over 64 bits, a lone surrogate.

    >>> encode({"b": 1, "a": [True, None, 0.5, "é"]}).decode()
    '{"a":[true,null,0.5,"é"],"b":1}'
    """
    _check_encodable(value, DEPTH * 4)
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
        return text.encode("utf-8")
    except (ValueError, TypeError, RecursionError) as error:
        raise WireError("NOT_ENCODABLE", f"a value has no canonical JSON form: {error}") from None


def decode(data: bytes, *, limit: int = LIMIT, depth: int = DEPTH) -> Any:
    """The value of canonical JSON of at most `limit` bytes and `depth` levels of lists and objects.

    Raises WireError: JSON_TOO_LONG, JSON_TOO_DEEP, JSON_MALFORMED, JSON_DUPLICATE_KEY, JSON_NOT_CANONICAL.

    >>> decode(b'{"a":1}')
    {'a': 1}
    """
    value = parse(data, limit=limit, depth=depth)
    try:
        same = encode(value) == data
    except WireError:
        same = False
    if not same:
        raise WireError(
            "JSON_NOT_CANONICAL", "the JSON is not in canonical form (sorted keys, no spaces, shortest numbers)"
        )
    return value


def parse(data: bytes, *, limit: int, depth: int) -> Any:
    """The value of any UTF-8 JSON within the limits, canonical or not; for other formats, such as safetensors headers.

    Everything that costs is bounded before it is spent: length and depth are known before the parser runs.
    Raises WireError as `decode` does, except for JSON_NOT_CANONICAL.
    """
    if len(data) > limit:
        raise WireError("JSON_TOO_LONG", f"the JSON has {len(data)} bytes, the limit is {limit}")
    try:
        text = bytes(data).decode("utf-8")
    except UnicodeDecodeError as error:
        raise WireError("JSON_MALFORMED", f"the JSON is not UTF-8 at byte {error.start}") from None
    if _depth(text) > depth:
        raise WireError("JSON_TOO_DEEP", f"the JSON is nested deeper than {depth} levels")
    try:
        return json.loads(
            text, object_pairs_hook=_unique, parse_int=_integer, parse_float=_float, parse_constant=_no_constant
        )
    except json.JSONDecodeError as error:
        raise WireError("JSON_MALFORMED", f"the JSON is malformed at character {error.pos}: {error.msg}") from None
    except RecursionError:
        raise WireError("JSON_TOO_DEEP", f"the JSON is nested deeper than {depth} levels") from None


def _depth(text: str) -> int:
    """Deepest nesting of brackets outside strings, in one linear pass."""
    level = deepest = 0
    inside = False
    for match in _STRUCTURE.finditer(text):
        mark = match.group()
        if mark == '"':
            inside = not inside
        elif not inside and mark in "[{":
            level += 1
            deepest = max(deepest, level)
        elif not inside and mark in "]}":
            level -= 1
    return deepest


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise WireError("JSON_DUPLICATE_KEY", "a JSON object holds a key twice")
    return value


def _integer(digits: str) -> int:
    if len(digits) > 20 or int(digits) not in _INTEGERS:
        raise WireError("JSON_MALFORMED", "a JSON integer does not fit 64 bits")
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits) if len(digits) <= 64 else math.inf
    if not math.isfinite(value):
        raise WireError("JSON_MALFORMED", "a JSON number is too large or too long")
    return value


def _no_constant(name: str) -> NoReturn:
    raise WireError("JSON_MALFORMED", f"{name} is not JSON")


def _check_encodable(value: Any, depth: int) -> None:
    """What json.dumps would let pass: keys that it turns into strings (so that two may collide), wide integers."""
    if depth < 0:
        raise WireError("NOT_ENCODABLE", "a value is nested too deep for canonical JSON")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise WireError("NOT_ENCODABLE", f"an object key is a {type(key).__name__}, not a string")
            _check_encodable(inner, depth - 1)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _check_encodable(inner, depth - 1)
    elif isinstance(value, int) and value not in _INTEGERS:
        raise WireError("NOT_ENCODABLE", "an integer does not fit 64 bits")
