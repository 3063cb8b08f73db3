"""Every parser of bytes from outside: any bytes give the parser's own error, or a value that says what the bytes say.

Three kinds of input: bytes at random, headers that are almost right, and valid files mutated. `CASES` mutations are
tried per parser, by seed, so a failure names a case that can be run again.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common import canonical, weights
from common.errors import IdentityError, PortierError, WeightsError, WireError
from common.identity.certificates import load_certificate, load_request, read_peer, spki
from common.identity.invitation import PREFIX, Invitation
from common.identity.names import check_contributor_name
from common.identity.requests import EnrolmentRequest, verify_enrolment_request
from common.manifest import parse_release, parse_submission
from common.receipts import Receipt

GOLDEN = Path(__file__).parents[2] / "data" / "golden" / "v1"
CASES = 1_500
fuzz = settings(max_examples=100, derandomize=True, deadline=None, database=None)


def golden(name: str) -> bytes:
    return (GOLDEN / name).read_bytes()


TOKEN = Invitation.from_string(golden("invitation.txt").decode()).token
CONTRIBUTOR = bytes.fromhex(json.loads(golden("about.json"))["contributor_key"])
PROOF = golden("enrolment_proof.sig")


def read_json(data: bytes) -> None:
    assert canonical.encode(canonical.decode(data)) == data


def read_weights(data: bytes) -> None:
    header = weights.read_header(data)
    assert header.file_bytes == len(data)
    # What this reader takes, the reference reader takes too, and sees the same tensors in it.
    theirs = safetensors.torch.load(data)
    assert {name: (t.dtype, tuple(t.shape)) for name, t in theirs.items()} == header.layout
    for name, (begin, end) in header.offsets.items():
        raw = data[header.data_start + begin : header.data_start + end]
        assert theirs[name].reshape(-1).view(torch.uint8).numpy().tobytes() == raw


def read_release(data: bytes) -> None:
    assert parse_release(data).to_bytes() == data


def read_submission(data: bytes) -> None:
    assert parse_submission(data).to_bytes() == data


def read_receipt(data: bytes) -> None:
    assert Receipt.from_bytes(data).to_bytes() == data


def read_invitation(data: bytes) -> None:
    text = data.decode("latin-1")
    assert Invitation.from_string(text).to_string() == "".join(text.split())


def read_invitation_payload(data: bytes) -> None:
    read_invitation(PREFIX.encode() + base64.urlsafe_b64encode(data).rstrip(b"="))


def read_request(data: bytes) -> None:
    assert len(spki(load_request(data).public_key())) == 91


def read_certificate(data: bytes) -> None:
    load_certificate(data)
    peer = read_peer(data)
    assert check_contributor_name(peer.name) == peer.name
    assert len(peer.serial) == 40


def read_enrolment(data: bytes) -> None:
    verify_enrolment_request(EnrolmentRequest(TOKEN, data, CONTRIBUTOR, PROOF))
    assert data == PARSERS["enrolment request"][2]


def payload() -> bytes:
    return base64.urlsafe_b64decode(golden("invitation.txt").decode().removeprefix(PREFIX) + "==")


def der(name: str) -> bytes:
    return base64.b64decode("".join(golden(name).decode().splitlines()[1:-1]))


PARSERS: dict[str, tuple[Callable[[bytes], None], type[PortierError], bytes]] = {
    "canonical JSON": (read_json, WireError, golden("submission.json")),
    "weights": (read_weights, WeightsError, golden("every_dtype.safetensors")),
    "release manifest": (read_release, WireError, golden("release.json")),
    "submission manifest": (read_submission, WireError, golden("submission.json")),
    "receipt": (read_receipt, WireError, golden("receipt.json")),
    "invitation": (read_invitation, IdentityError, golden("invitation.txt")),
    "invitation payload": (read_invitation_payload, IdentityError, payload()),
    "certificate request": (read_request, IdentityError, golden("enrolment_request.der")),
    "enrolment request": (read_enrolment, IdentityError, golden("enrolment_request.der")),
    "certificate DER": (read_certificate, IdentityError, der("contributor_certificate.pem")),
    "certificate PEM": (read_certificate, IdentityError, golden("contributor_certificate.pem")),
}

NASTY = [
    b"\0", b"\xff", b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"-", b"e", b".", b" ", b"\n", b"null", b"true", b"NaN",
    b"1e999", b"0", b"-1", b"4294967296", b"9223372036854775807", b"18446744073709551616", b"\\u0000", b"\\ud800", b"\xed\xa0\x80",
    b"../", b"\x1b[2J", b"\x30\x80", b"\x30\x84\xff\xff\xff\xff", b"\xff" * 8, b"=", b"'", b"a" * 300,
]  # fmt: skip


def mutated(base: bytes, rng: random.Random) -> bytes:
    """`base` after one to four small accidents."""
    data = bytearray(base)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        upto = min(len(data), at + rng.choice([1, 1, 2, 4, 16, 64]))
        match rng.randrange(8):
            case 0 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(data):
                data[at] = rng.randrange(256)
            case 2:
                del data[at:upto]
            case 3:
                data[at:at] = data[at:upto]
            case 4:
                data[at:at] = rng.choice(NASTY)
            case 5:
                data[at:upto] = rng.choice(NASTY)
            case 6:
                del data[at:]
            case _:
                other = rng.randrange(len(data) + 1)
                data[at:upto] = data[other : other + upto - at]
    return bytes(data)


PARSER = pytest.mark.parametrize("name", PARSERS)


@PARSER
def test_the_valid_input_is_read(name: str) -> None:
    parse, _, base = PARSERS[name]
    parse(base)


@PARSER
def test_fuzz_a_mutated_input_is_read_for_what_it_is_or_refused(name: str) -> None:
    parse, error, base = PARSERS[name]
    for case in range(CASES):
        data = mutated(base, random.Random(f"{name} {case}"))
        message = ""
        try:
            parse(data)
        except error as refusal:
            message = refusal.message
        except BaseException as other:
            raise AssertionError(f"case {case} of {name}: {data!r}") from other
        assert len(message) < 3000


@PARSER
def test_fuzz_every_beginning_of_a_valid_input_is_refused(name: str) -> None:
    parse, error, base = PARSERS[name]
    for length in range(len(base.rstrip())):
        with pytest.raises(error):
            parse(base[:length])


@PARSER
@fuzz
@given(data=st.binary(max_size=300) | st.text(max_size=100).map(str.encode))
def test_fuzz_any_bytes_are_refused_or_read(name: str, data: bytes) -> None:
    parse, error, _ = PARSERS[name]
    try:
        parse(data)
    except error:
        return
    assert name == "canonical JSON"


sizes = st.integers(-1, 5) | st.sampled_from([1 << 31, 1 << 32, 1 << 60, 1 << 63, (1 << 64) - 1])
odd = st.none() | st.booleans() | st.floats() | st.text(max_size=3) | st.lists(sizes, max_size=3)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*weights.DTYPES, "F8_E4M3", "f32"]) | odd,
        "shape": st.lists(sizes, max_size=9) | odd,
        "data_offsets": st.lists(sizes, min_size=2, max_size=2) | st.lists(sizes, max_size=3) | odd,
    },
    optional={"extra": odd},
)
headers = st.dictionaries(st.text(max_size=4) | st.just("__metadata__"), entries | odd, max_size=5)


@settings(fuzz, max_examples=200)
@given(header=headers, data=st.binary(max_size=40))
@example(header={"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, data=bytes(8))
def test_fuzz_a_header_that_is_almost_right_is_read_for_what_it_is_or_refused(header: Any, data: bytes) -> None:
    text = json.dumps(header).encode()
    with_length = len(text).to_bytes(8, "little") + text + data
    try:
        read_weights(with_length)
    except WeightsError:
        return


tensors = st.lists(
    st.tuples(st.sampled_from(list(weights.DTYPES)), st.lists(st.integers(0, 3), max_size=3)), max_size=5
)


@settings(fuzz, max_examples=50)
@given(tensors)
def test_fuzz_any_weights_that_are_saved_are_read_back(
    tmp_path_factory: pytest.TempPathFactory, specs: list[Any]
) -> None:
    given_ = {
        f"layer.{i}": (torch.arange(max(1, torch.Size(shape).numel())) % 2)[: torch.Size(shape).numel()]
        .reshape(shape)
        .to(weights.DTYPES[code])
        for i, (code, shape) in enumerate(specs)
    }
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    digest = weights.save(path, given_)
    loaded = weights.load(path, digest=digest)
    assert weights.layout_of(loaded) == weights.layout_of(given_)
    assert all(torch.equal(loaded[name], given_[name]) for name in given_)
    read_weights(path.read_bytes())
