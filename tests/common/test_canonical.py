"""Canonical JSON: one sequence of bytes per value, and a parser that takes no other."""

from __future__ import annotations

import math
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import canonical
from common.errors import WireError

fuzz = settings(max_examples=100, derandomize=True, deadline=None, database=None)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


@fuzz
@given(values)
def test_decoding_what_was_encoded_gives_the_value_back(value: object) -> None:
    data = canonical.encode(value)
    assert canonical.decode(data) == value
    assert canonical.encode(canonical.decode(data)) == data


def test_the_encoding_sorts_keys_by_code_point_and_leaves_no_space() -> None:
    assert canonical.encode({"é": 1, "b": [1, 2.5], "a": {"z": None, "Z": True}}) == (
        '{"a":{"Z":true,"z":null},"b":[1,2.5],"é":1}'.encode()
    )


def test_a_tuple_encodes_as_a_list() -> None:
    assert canonical.encode((1, ("a",))) == b'[1,["a"]]'


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        -math.inf,
        1 << 64,
        -(1 << 63) - 1,
        {1: "a"},
        {"a": {None: 1}},
        b"bytes",
        {"a", "b"},
        "\ud800",
        object(),
    ],
    ids=repr,
)
def test_a_value_without_canonical_form_is_not_encoded(value: object) -> None:
    with pytest.raises(WireError) as caught:
        canonical.encode(value)
    assert caught.value.code == "NOT_ENCODABLE"


def test_a_value_that_holds_itself_is_not_encoded() -> None:
    knot: list[object] = []
    knot.append(knot)
    with pytest.raises(WireError, match="nested too deep"):
        canonical.encode(knot)


MALFORMED = {
    "empty": (b"", "JSON_MALFORMED"),
    "white space only": (b"  ", "JSON_MALFORMED"),
    "cut short": (b'{"a":1', "JSON_MALFORMED"),
    "two values": (b"1 2", "JSON_MALFORMED"),
    "a trailing comma": (b"[1,]", "JSON_MALFORMED"),
    "a comment": (b"[1]//", "JSON_MALFORMED"),
    "single quotes": (b"{'a':1}", "JSON_MALFORMED"),
    "a byte-order mark": (b"\xef\xbb\xbf{}", "JSON_MALFORMED"),
    "UTF-16": ("{}".encode("utf-16"), "JSON_MALFORMED"),
    "UTF-32 without a mark": ("{}".encode("utf-32-le"), "JSON_MALFORMED"),
    "latin-1": ('"é"'.encode("latin-1"), "JSON_MALFORMED"),
    "an overlong UTF-8 form": (b'"\xc0\xaf"', "JSON_MALFORMED"),
    "a UTF-8 surrogate": (b'"\xed\xa0\x80"', "JSON_MALFORMED"),
    "a NUL after the value": (b"{}\0", "JSON_MALFORMED"),
    "a raw line end in a string": (b'"a\nb"', "JSON_MALFORMED"),
    "NaN": (b"NaN", "JSON_MALFORMED"),
    "Infinity": (b"[Infinity]", "JSON_MALFORMED"),
    "minus Infinity": (b"[-Infinity]", "JSON_MALFORMED"),
    "a float that overflows": (b"1e999", "JSON_MALFORMED"),
    "a float of 65 digits": (b"0." + b"1" * 65, "JSON_MALFORMED"),
    "an integer over 64 bits": (b"18446744073709551616", "JSON_MALFORMED"),
    "an integer below 64 bits": (b"-9223372036854775809", "JSON_MALFORMED"),
    "an integer of 5,000 digits": (b"9" * 5000, "JSON_MALFORMED"),
    "a key twice": (b'{"a":1,"a":1}', "JSON_DUPLICATE_KEY"),
    "a key twice, once escaped": (b'{"a":1,"\\u0061":2}', "JSON_DUPLICATE_KEY"),
    "a key twice, inside": (b'[{"a":1,"a":2}]', "JSON_DUPLICATE_KEY"),
    "17 levels of lists": (b"[" * 17 + b"]" * 17, "JSON_TOO_DEEP"),
    "17 levels of objects": (b'{"a":' * 17 + b"1" + b"}" * 17, "JSON_TOO_DEEP"),
    "60,000 open brackets": (b"[" * 60_000, "JSON_TOO_DEEP"),
    "a byte over the limit": (b'"' + b"a" * (64 * 1024 - 1) + b'"', "JSON_TOO_LONG"),
    "a space": (b'{"a": 1}', "JSON_NOT_CANONICAL"),
    "a line end behind": (b"{}\n", "JSON_NOT_CANONICAL"),
    "keys out of order": (b'{"b":1,"a":1}', "JSON_NOT_CANONICAL"),
    "a needless escape": (b'"\\u0061"', "JSON_NOT_CANONICAL"),
    "an escaped slash": (b'"\\/"', "JSON_NOT_CANONICAL"),
    "a lone surrogate": (b'"\\ud800"', "JSON_NOT_CANONICAL"),
    "a float in another form": (b"1.50", "JSON_NOT_CANONICAL"),
    "an exponent in another form": (b"1E5", "JSON_NOT_CANONICAL"),
    "more digits than a float has": (b"0.10000000000000000001", "JSON_NOT_CANONICAL"),
    "minus nought": (b"-0", "JSON_NOT_CANONICAL"),
}


@pytest.mark.parametrize(("data", "code"), MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_json_is_refused_with_its_code(data: bytes, code: str) -> None:
    with pytest.raises(WireError) as caught:
        canonical.decode(data)
    assert caught.value.code == code


def test_exactly_the_limits_pass() -> None:
    assert canonical.decode(b'"' + b"a" * (64 * 1024 - 2) + b'"') == "a" * (64 * 1024 - 2)
    assert canonical.decode(b"[" * 16 + b"]" * 16)
    assert canonical.decode(b"[" + b",".join([b"[]"] * 20) + b"]") == [[]] * 20
    assert canonical.decode(b"[-9223372036854775808,18446744073709551615]") == [-(1 << 63), (1 << 64) - 1]


def test_brackets_inside_strings_are_not_levels() -> None:
    text = '[{"\\\\' * 40 + '\\"]['
    assert canonical.decode(canonical.encode([text])) == [text]


@pytest.mark.parametrize("unit", [b"[],", b"{},", b'"",', b"1.5,", b'"\\"', b"\\", b'"'], ids=repr)
def test_hostile_json_of_full_length_costs_little_time_and_memory(unit: bytes) -> None:
    data = (b"[" + unit * (canonical.LIMIT // len(unit) + 1))[: canonical.LIMIT]
    tracemalloc.start()
    started = time.perf_counter()
    try:
        with pytest.raises(WireError):
            canonical.decode(data)
        assert time.perf_counter() - started < 10
        assert tracemalloc.get_traced_memory()[1] < 100 * canonical.LIMIT
    finally:
        tracemalloc.stop()
