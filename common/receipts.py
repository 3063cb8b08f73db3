"""Receipts: what an owner gives a contributor so that a ledger rewritten or cut short later can be shown to be.

A receipt says, signed: entry `index` of my ledger has hash `entry_hash`, it is about `subject` and states `statement`, and when I
wrote this my newest entry was `head_index` with hash `head_hash`. Canonical JSON of these six fields is what is signed.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import re
from dataclasses import dataclass
from typing import Any, Final

from common import canonical
from common.errors import SignatureError, WireError
from common.identity.keys import SIGNATURE_BYTES, Domain, SigningKey, verify

LIMIT: Final = 2048
_HASH = re.compile(r"[0-9a-f]{64}")
RECEIVED: Final = "received"
"""The statement of the receipt for a submission that was handed in; that of a verdict is its decision."""
_STATEMENT = re.compile(r"[a-z]{1,32}")
_SUBJECT = re.compile(r"[\x21-\x7e]{1,200}")


@dataclass(frozen=True)
class Receipt:
    """index: of the ledger entry, from 0.
    entry_hash, head_hash: 64 hex digits.
    head_index: of the newest entry when the receipt was given, never below `index`.
    subject: what the entry is about, a submission id as a rule; up to 200 printable ASCII characters, no space.
    statement: what the entry says of it, so that whoever holds the receipt need not take the owner's word for it: up to 32 letters.
    signature: base64 of the owner's Ed25519 signature over the other six fields.

    Raises WireError RECEIPT_MALFORMED, which names the field.
    """

    index: int
    entry_hash: str
    head_index: int
    head_hash: str
    subject: str
    statement: str
    signature: str

    def __post_init__(self) -> None:
        for name in ("index", "head_index"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
                raise _malformed(name, "must be an integer from 0")
        for name in ("entry_hash", "head_hash"):
            _matches(name, getattr(self, name), _HASH, "must be 64 hex digits")
        _matches("subject", self.subject, _SUBJECT, "must be 1 to 200 printable characters without a space")
        _matches("statement", self.statement, _STATEMENT, "must be 1 to 32 small letters")
        if self.head_index < self.index:
            raise _malformed("head_index", "must not be below index")
        if self.head_index == self.index and self.head_hash != self.entry_hash:
            raise _malformed("head_hash", "must be entry_hash where the entry is the head")
        _signature_bytes(self.signature)

    def to_bytes(self) -> bytes:
        return canonical.encode({**_signed_fields(self), "signature": self.signature})

    @classmethod
    def from_bytes(cls, data: bytes) -> Receipt:
        """Reads `to_bytes` of at most 2 KiB back; says nothing about the signature. Raises WireError
        RECEIPT_MALFORMED."""
        try:
            fields = canonical.decode(data, limit=LIMIT, depth=1)
        except WireError as error:
            raise WireError("RECEIPT_MALFORMED", f"the receipt is malformed: {error.message}") from None
        if not isinstance(fields, dict) or set(fields) != set(_FIELDS):
            raise WireError("RECEIPT_MALFORMED", f"a receipt has the fields {', '.join(_FIELDS)} and no others")
        return cls(**fields)


_FIELDS = ("entry_hash", "head_hash", "head_index", "index", "signature", "statement", "subject")


def sign_receipt(
    key: SigningKey, *, index: int, entry_hash: str, head_index: int, head_hash: str, subject: str, statement: str
) -> Receipt:
    """A receipt signed with the owner's key. Raises WireError where a field is out of its range."""
    blank = base64.b64encode(bytes(SIGNATURE_BYTES)).decode("ascii")
    unsigned = Receipt(index, entry_hash, head_index, head_hash, subject, statement, blank)
    signature = key.sign(Domain.RECEIPT, canonical.encode(_signed_fields(unsigned)))
    return dataclasses.replace(unsigned, signature=base64.b64encode(signature).decode("ascii"))


def verify_receipt(receipt: Receipt, owner_public_key: bytes) -> None:
    """Raises SignatureError where the receipt was not signed with the owner's key."""
    try:
        verify(
            Domain.RECEIPT,
            canonical.encode(_signed_fields(receipt)),
            _signature_bytes(receipt.signature),
            owner_public_key,
        )
    except SignatureError as error:
        raise SignatureError(f"the receipt about {receipt.subject}: {error.message}", hint=error.hint) from None


def _signed_fields(receipt: Receipt) -> dict[str, Any]:
    return {
        "index": receipt.index,
        "entry_hash": receipt.entry_hash,
        "head_index": receipt.head_index,
        "head_hash": receipt.head_hash,
        "subject": receipt.subject,
        "statement": receipt.statement,
    }


def _signature_bytes(text: object) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except (binascii.Error, ValueError):
        raw = b""
    # Compared with its own encoding: base64 has several spellings of the same bytes.
    if len(raw) != SIGNATURE_BYTES or base64.b64encode(raw).decode("ascii") != text:
        raise _malformed("signature", f"must be {SIGNATURE_BYTES} bytes in base64")
    return raw


def _matches(name: str, value: object, pattern: re.Pattern[str], rule: str) -> None:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise _malformed(name, rule)


def _malformed(field: str, rule: str) -> WireError:
    return WireError("RECEIPT_MALFORMED", f"receipt field {field!r} {rule}")
