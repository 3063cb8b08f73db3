"""Receipts: signed, canonical, and refused when anything about them is off."""

from __future__ import annotations

import base64
import dataclasses
import json
from typing import Any

import pytest

from common import canonical
from common.errors import SignatureError, WireError
from common.identity.keys import Domain, SigningKey
from common.receipts import Receipt, sign_receipt, verify_receipt

OWNER = SigningKey.generate()
RECEIPT = sign_receipt(
    OWNER, index=4, entry_hash="4" * 64, head_index=7, head_hash="7" * 64, subject="a" * 64, statement="accepted"
)


def test_a_receipt_verifies_with_its_owners_key_after_the_wire() -> None:
    received = Receipt.from_bytes(RECEIPT.to_bytes())
    assert received == RECEIPT
    assert received.to_bytes() == RECEIPT.to_bytes()
    verify_receipt(received, OWNER.public_key)


def test_a_receipt_does_not_verify_with_another_key() -> None:
    with pytest.raises(SignatureError, match="the receipt about aaaa"):
        verify_receipt(RECEIPT, SigningKey.generate().public_key)


@pytest.mark.parametrize(
    "change",
    [
        {"index": 3},
        {"entry_hash": "5" * 64},
        {"head_index": 8},
        {"head_hash": "8" * 64},
        {"subject": "b" * 64},
        {"statement": "rejected"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_no_signed_field_can_be_altered(change: dict[str, Any]) -> None:
    with pytest.raises(SignatureError):
        verify_receipt(dataclasses.replace(RECEIPT, **change), OWNER.public_key)


def test_a_signature_of_the_same_bytes_for_another_purpose_does_not_count() -> None:
    fields = json.loads(RECEIPT.to_bytes())
    del fields["signature"]
    signature = OWNER.sign(Domain.LEDGER_HEAD, canonical.encode(fields))
    with pytest.raises(SignatureError):
        verify_receipt(dataclasses.replace(RECEIPT, signature=base64.b64encode(signature).decode()), OWNER.public_key)


def changed(**changes: Any) -> bytes:
    fields = json.loads(RECEIPT.to_bytes()) | changes
    return canonical.encode({name: value for name, value in fields.items() if value is not ...})


MALFORMED = {
    "empty": b"",
    "not JSON": b"receipt",
    "a list": b"[]",
    "nested": b'{"a":{"b":1}}',
    "a space": RECEIPT.to_bytes() + b" ",
    "subject of 201 characters": changed(subject="a" * 201),
    "no subject": changed(subject=...),
    "another field": changed(extra=1),
    "index below nought": changed(index=-1),
    "index true": changed(index=True),
    "index a float": changed(index=4.0),
    "index 2^63": changed(index=1 << 63, head_index=(1 << 63) + 1),
    "head before the entry": changed(head_index=3),
    "the head with another hash": changed(head_index=4),
    "hash short": changed(entry_hash="4" * 63),
    "hash in upper case": changed(head_hash="A" * 64),
    "hash null": changed(head_hash=None),
    "subject empty": changed(subject=""),
    "subject with a space": changed(subject="a b"),
    "subject with a line end": changed(subject="a\n"),
    "subject not ASCII": changed(subject="é"),
    "statement missing": changed(statement=...),
    "statement empty": changed(statement=""),
    "statement long": changed(statement="a" * 33),
    "statement of other characters": changed(statement="accepted\n"),
    "signature short": changed(signature=base64.b64encode(bytes(63)).decode()),
    "signature not base64": changed(signature="*" * 88),
    "signature with spaces": changed(signature=RECEIPT.signature + "\n"),
    "signature unpadded": changed(signature=RECEIPT.signature[:-2]),
    "signature in another spelling": changed(signature=RECEIPT.signature[:-3] + "R=="),
    "signature url-safe": changed(signature="-_" + RECEIPT.signature[2:]),
    "signature null": changed(signature=None),
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_receipt_is_refused(data: bytes) -> None:
    with pytest.raises(WireError) as caught:
        Receipt.from_bytes(data)
    assert caught.value.code == "RECEIPT_MALFORMED"


def test_what_is_too_long_for_a_receipt_is_refused_before_it_is_read() -> None:
    with pytest.raises(WireError, match="2049 bytes, the limit is 2048"):
        Receipt.from_bytes(b"[" * 2049)


def test_a_receipt_for_the_head_itself_is_fine() -> None:
    receipt = sign_receipt(
        OWNER, index=0, entry_hash="0" * 64, head_index=0, head_hash="0" * 64, subject="x", statement="received"
    )
    verify_receipt(receipt, OWNER.public_key)
