"""Names of contributors and hosts, and addresses."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import IdentityError
from common.identity.names import check_contributor_name, check_host, format_address, parse_address

fuzz = settings(max_examples=100, derandomize=True, deadline=None, database=None)


@pytest.mark.parametrize("name", ["a", "0", "ward-3", "a.b_c-d", "a" * 63])
def test_a_contributor_name_passes_unchanged(name: str) -> None:
    assert check_contributor_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "A",
        "-a",
        ".a",
        "_a",
        "a" * 64,
        "a b",
        "a/b",
        "..",
        "a\n",
        "a\0",
        "é",
        "ａ",
        "a%2f",
        "a\u202e",
        None,
        3,
        b"a",
        ["a"],
    ],
    ids=ascii,
)
def test_a_malformed_contributor_name_is_refused(name: object) -> None:
    with pytest.raises(IdentityError) as caught:
        check_contributor_name(name)
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("localhost:1", ("localhost", 1)),
        ("model.example.org:65535", ("model.example.org", 65535)),
        ("xn--bcher-kva.example:7443", ("xn--bcher-kva.example", 7443)),
        ("127.0.0.1:7443", ("127.0.0.1", 7443)),
        ("[::1]:7443", ("::1", 7443)),
        ("[2001:db8::1]:7443", ("2001:db8::1", 7443)),
    ],
)
def test_an_address_gives_host_and_port_and_is_written_back(address: str, parts: tuple[str, int]) -> None:
    assert parse_address(address) == parts
    assert format_address(*parts) == address


@pytest.mark.parametrize(
    "address",
    [
        "", ":", "localhost", "localhost:", ":7443", "localhost:0", "localhost:65536", "localhost:07443", "localhost:+1",
        "localhost:1_0", "localhost: 1", "localhost:١", "::1:7443", "[::1]", "[::1]7443", "[localhost]:7443",
        "[fe80::1%eth0]:7443", "0.0.0.0:7443", "[::]:7443", "256.0.0.1:7443", "1.2.3:7443", "a..b:7443", "-a.org:7443",
        "a-.org:7443", "*.example.org:7443", "Example.org:7443", "bücher.example:7443", "a" * 64 + ":7443",
        ".".join(["a" * 63] * 4) + ":7443", "http://a:7443", "user@a:7443", "a/b:7443", "a\n:7443", "a" * 400, None, 7443, b"a:1",
    ],
    ids=ascii,
)  # fmt: skip
def test_a_malformed_address_is_refused(address: object) -> None:
    with pytest.raises(IdentityError) as caught:
        parse_address(address)
    assert len(caught.value.message) < 200
    assert caught.value.message.isprintable()


def test_an_ip_address_is_written_in_one_way() -> None:
    assert check_host("2001:0DB8::0001") == "2001:db8::1"


@fuzz
@given(st.text(max_size=40) | st.from_regex(r"\[?[a-z0-9.:]{0,20}\]?:[0-9]{0,6}", fullmatch=True))
def test_fuzz_any_text_is_an_address_or_refused(text: str) -> None:
    try:
        host, port = parse_address(text)
    except IdentityError:
        return
    assert parse_address(format_address(host, port)) == (host, port)
