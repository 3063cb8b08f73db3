"""The hash chain, as pure functions: what an entry's hash covers, what a signed head says, whether links hold.

hash(entry) = SHA-256( "portier ledger entry v1" || 0x00 || canonical JSON of {body, index, kind, previous_hash, time} )

The first entry names the owner's public key and has 64 zeros as `previous_hash`, so two ledgers never share an entry.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from common import canonical
from common.errors import LedgerError, SignatureError, WireError
from common.identity.keys import Domain, SigningKey, verify
from owner.ledger.records import Entry

GENESIS: Final = "0" * 64
BODY_LIMIT: Final = 64 * 1024
_ENTRY = b"portier ledger entry v1\0"


def entry_hash(index: int, time: str, kind: str, body: Mapping[str, Any], previous_hash: str) -> str:
    """64 hex digits. Raises WireError NOT_ENCODABLE for a body without canonical form (NaN, keys that are no strings).

    >>> len(entry_hash(0, "2026-01-02T03:04:05.000000Z", "ledger", {}, GENESIS))
    64
    """
    fields = {"index": index, "time": time, "kind": kind, "body": body, "previous_hash": previous_hash}
    return hashlib.sha256(_ENTRY + canonical.encode(fields)).hexdigest()


def link(previous: tuple[int, str] | None, time: str, kind: str, body: Mapping[str, Any]) -> Entry:
    """The entry that follows `previous` (index, hash), or the first one. Raises LedgerError for a body over 64 KiB."""
    try:
        size = len(canonical.encode(body))
    except WireError as error:
        raise LedgerError(f"an entry of kind {kind!r} cannot be written: {error.message}") from None
    if size > BODY_LIMIT:
        raise LedgerError(f"an entry of kind {kind!r} would have {size} bytes, the limit is {BODY_LIMIT}")
    index, previous_hash = (0, GENESIS) if previous is None else (previous[0] + 1, previous[1])
    return Entry(index, time, kind, body, previous_hash, entry_hash(index, time, kind, body, previous_hash))


def sign_head(key: SigningKey, index: int, hash_: str) -> bytes:
    """64 bytes, over canonical JSON of {hash, index}."""
    return key.sign(Domain.LEDGER_HEAD, _head(index, hash_))


def verify_head(index: int, hash_: str, signature: bytes, public_key: bytes) -> None:
    """Raises SignatureError where `signature` does not say that entry `index` with `hash_` was the newest."""
    verify(Domain.LEDGER_HEAD, _head(index, hash_), signature, public_key)


def problems(chain: Iterable[tuple[Entry, bytes]], public_key: bytes) -> Iterator[str]:
    """Everything wrong with a chain of (entry, head signature), one sentence each; nothing where it holds.

    After a broken link the next entries are compared with what their predecessor says of itself, so that one altered
    entry is not reported as hundreds.
    """
    expected_index, expected_previous = 0, GENESIS
    for entry, signature in chain:
        if entry.index != expected_index:
            yield _gap(expected_index, entry.index)
        elif entry.previous_hash != expected_previous:
            yield f"entry {entry.index} does not follow entry {entry.index - 1}: entries were altered, exchanged or removed"
        if _hash_of(entry) != entry.hash:
            yield f"entry {entry.index} ({entry.kind}) was altered: its content does not have the hash it carries"
        try:
            verify_head(entry.index, entry.hash, signature, public_key)
        except SignatureError:
            yield f"the owner did not sign entry {entry.index} as head of the ledger"
        expected_index, expected_previous = entry.index + 1, entry.hash


def _hash_of(entry: Entry) -> str:
    try:
        return entry_hash(entry.index, entry.time, entry.kind, entry.body, entry.previous_hash)
    except WireError:
        return ""


def _gap(expected: int, found: int) -> str:
    if found < expected:
        return f"entry {found} stands where entry {expected} should be: entries were exchanged"
    missing = f"entry {expected} is" if found == expected + 1 else f"entries {expected} to {found - 1} are"
    return f"{missing} missing"


def _head(index: int, hash_: str) -> bytes:
    return canonical.encode({"index": index, "hash": hash_})
