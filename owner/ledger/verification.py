"""Does everything agree? The chain with its hashes, the heads with the owner's key, the tables with the chain, and the
receipts that contributors hold with all of it.

What it can show: any entry altered, exchanged, inserted or removed, and any row of a table that the entries do not account
for. Cutting entries off the end, and rewriting the ledger with the owner's own key, show only against a receipt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.exc import StatementError
from sqlalchemy.orm import Session

from common import canonical
from common.errors import IdentityError, SignatureError, WireError
from common.identity.keys import Domain
from common.identity.keys import verify as verify_signature
from common.manifest import parse_release, parse_submission
from common.receipts import RECEIVED, Receipt, verify_receipt
from owner.ledger import chain
from owner.ledger.records import Entry, SubmissionState, VerificationReport
from owner.ledger.replay import Replay
from owner.ledger.states import DECIDED, UNCOMMITTED
from owner.ledger.tables import (
    CertificateRow,
    ContributorRow,
    EntryRow,
    InvitationRow,
    ReleaseRow,
    StateRow,
    SubmissionRow,
    VerdictRow,
)

_BATCH: Final = 500
_PENDING: Final = frozenset(SubmissionState) - DECIDED - UNCOMMITTED


def verify(session: Session, owner_key: bytes, receipts: Sequence[Receipt]) -> VerificationReport:
    """`session` must show one state of the database throughout."""
    replay = Replay()
    hashes: list[tuple[int, str]] = []
    problems = list(chain.problems(_read_chain(session, replay, hashes), owner_key))
    problems += replay.problems
    if not hashes:
        problems.append("the ledger holds no entry at all: not even the first, which names the owner")
    elif replay.owner_key != owner_key.hex():
        problems.append("the first entry does not name the owner's key")
    for check in (_owner, _people, _certificates, _invitations, _releases, _verdicts, _submissions):
        problems += _careful(check, session, replay, owner_key)
    by_index, said = dict(hashes), _statements(replay)
    for receipt in receipts:
        problems += check_receipt(receipt, by_index, said, owner_key)
    return VerificationReport(len(hashes), problems)


def check_receipt(
    receipt: Receipt, hashes: Mapping[int, str], said: Mapping[int, tuple[str, str]], owner_key: bytes
) -> Iterator[str]:
    """What a receipt proves against a ledger whose entries have these hashes, by index. said: of which submission, and what."""
    name = f"the receipt about {receipt.subject[:12]}"
    try:
        verify_receipt(receipt, owner_key)
    except (SignatureError, IdentityError):
        yield f"{name} is not one of this owner: its signature does not verify"
        return
    newest = max(hashes, default=-1)
    for index, digest in dict.fromkeys([(receipt.index, receipt.entry_hash), (receipt.head_index, receipt.head_hash)]):
        if index > newest:
            yield f"{name} knows entry {index}, but the ledger ends at entry {newest}: it was cut short"
        elif hashes.get(index) != digest:
            yield f"{name} knows another entry {index}: the ledger was rewritten"
    subject, statement = said.get(receipt.index, ("", "nothing of the kind"))
    if hashes.get(receipt.index) == receipt.entry_hash and (subject, statement) != (receipt.subject, receipt.statement):
        of_another = "" if subject in ("", receipt.subject) else f" of {subject[:12]}"
        yield (
            f"{name} says {receipt.statement}, but entry {receipt.index} says {statement}{of_another}: "
            "the contributor was told something else than was written down"
        )


def _statements(replay: Replay) -> dict[int, tuple[str, str]]:
    """Submission and statement of the entries that receipts are given about, by index."""
    handed_in = {entry.index: (submission, RECEIVED) for submission, entry in replay.commits.items()}
    verdicts = {
        entry.index: (submission, str(entry.body.get("decision")))
        for submission, entries in replay.verdicts.items()
        for entry in entries
    }
    return handed_in | verdicts


def _read_chain(session: Session, replay: Replay, hashes: list[tuple[int, str]]) -> Iterator[tuple[Entry, bytes]]:
    query = select(EntryRow).order_by(EntryRow.position).execution_options(yield_per=_BATCH)
    for row in session.execute(query).scalars():
        try:
            body = canonical.decode(row.body.encode(), limit=chain.BODY_LIMIT)
        except (WireError, AttributeError, UnicodeEncodeError):
            body = None
        if not isinstance(body, dict):
            replay.problems.append(f"entry {row.position} was altered: its body is not canonical JSON")
            body = {}
        elif row.submission != body.get("submission"):
            replay.problems.append(f"entry {row.position} is filed under another submission than it is about")
        entry = Entry(row.position, str(row.time), str(row.kind), body, str(row.previous_hash), str(row.hash))
        replay.follow(entry)
        hashes.append((entry.index, entry.hash))
        yield entry, row.head_signature if isinstance(row.head_signature, bytes) else b""
        session.expunge(row)


Check = Callable[[Session, Replay, bytes], Iterator[str]]


def _careful(check: Check, session: Session, replay: Replay, owner_key: bytes) -> Iterator[str]:
    """SQLite keeps whatever is written into a column; a value of the wrong type is a finding, not a crash."""
    try:
        yield from check(session, replay, owner_key)
    except (TypeError, ValueError, AttributeError, StatementError) as error:
        yield f"a table holds a value that cannot be one of ours ({check.__name__.strip('_')}): {error}"


def _owner(session: Session, _replay: Replay, owner_key: bytes) -> Iterator[str]:
    keys = list(session.execute(select(StateRow.owner_key)).scalars())
    if keys != [owner_key]:
        yield "the state table does not name the owner's key"


def _people(session: Session, replay: Replay, _owner_key: bytes) -> Iterator[str]:
    found = {row.name: row for row in session.execute(select(ContributorRow)).scalars()}
    for name in replay.people.keys() - found.keys():
        yield f"contributor {name} is enrolled by the ledger, but missing among the contributors"
    for name, row in found.items():
        told = replay.people.get(name)
        if told is None:
            yield f"contributor {name} was enrolled by no entry"
            continue
        if row.signing_key.hex() != told.signing_key:
            yield f"contributor {name} has another signing key than the one it enrolled with"
        yield from _differences(
            f"contributor {name}",
            ("enrolled", row.enrolled, told.enrolled),
            ("revoked", row.revoked, told.revoked),
            ("reason", row.reason, told.reason),
        )


def _certificates(session: Session, replay: Replay, _owner_key: bytes) -> Iterator[str]:
    found = {row.serial: row for row in session.execute(select(CertificateRow)).scalars()}
    for serial in sorted(found.keys() | replay.certificates.keys()):
        row, told = found.get(serial), replay.certificates.get(serial)
        if row is None or told is None or row.contributor != told.contributor:
            yield (
                f"certificate {serial} belongs to {row.contributor if row else 'nobody'}, "
                f"the ledger says to {told.contributor if told else 'nobody'}"
            )
            continue
        yield from _differences(
            f"certificate {serial}", ("issued", row.issued, told.issued), ("not_after", row.not_after, told.not_after)
        )


def _invitations(session: Session, replay: Replay, _owner_key: bytes) -> Iterator[str]:
    found = {row.token_sha256: row for row in session.execute(select(InvitationRow)).scalars()}
    for digest in replay.invitations.keys() - found.keys():
        yield f"the invitation {digest[:12]} is missing"
    for digest, row in found.items():
        told = replay.invitations.get(digest)
        if told is None or told.name != row.name:
            yield f"the invitation {digest[:12]} for {row.name} was written by no entry"
            continue
        yield from _differences(
            f"the invitation {digest[:12]} for {row.name}",
            ("created", row.created, told.created),
            ("expires", row.expires, told.expires),
            ("used_at", row.used_at, told.used),
            ("withdrawn_at", row.withdrawn_at, told.withdrawn),
        )


def _differences(name: str, *columns: tuple[str, str | None, str | None]) -> Iterator[str]:
    """columns: each with what the table holds and what the entries say."""
    for column, held, told in columns:
        if held != told:
            yield f"{name}: {column} is {held or 'empty'}, the ledger says {told or 'empty'}"


def _releases(session: Session, replay: Replay, owner_key: bytes) -> Iterator[str]:
    found = {row.id: row for row in session.execute(select(ReleaseRow)).scalars()}
    for identifier in replay.releases.keys() - found.keys():
        yield f"release {identifier[:12]} is missing among the releases"
    for identifier, row in found.items():
        name = f"release {identifier[:12]}"
        entry = replay.releases.get(identifier)
        if entry is None:
            yield f"{name} was published by no entry"
            continue
        if hashlib.sha256(row.manifest).hexdigest() != identifier:
            yield f"{name}: its manifest was altered"
            continue
        if not _signed(Domain.RELEASE, row.manifest, row.signature, owner_key):
            yield f"{name}: its manifest is not signed by the owner"
        fields = parse_release(row.manifest)
        told = (row.number, row.parent, row.weights_sha256)
        if told != (fields.number, fields.parent, fields.weights_sha256):
            yield f"{name} is listed with another number, parent or digest than its manifest has"
        if (*told, row.submission_id) != (entry.number, entry.parent, entry.weights_sha256, entry.submission):
            yield f"{name} is listed with another number, parent, digest or submission than the ledger has"
        if row.status != replay.statuses[identifier]:
            yield f"{name} is listed as {row.status}, the ledger says {replay.statuses[identifier]}"
        yield from _differences(name, ("published", row.published, entry.published))


def _verdicts(session: Session, replay: Replay, _owner_key: bytes) -> Iterator[str]:
    expected = {entry.index: entry for several in replay.verdicts.values() for entry in several}
    query = select(VerdictRow).order_by(VerdictRow.position).execution_options(yield_per=_BATCH)
    for row in session.execute(query).scalars():
        entry = expected.pop(row.position, None)
        if entry is None or entry.body.get("submission") != row.submission:
            yield f"the verdict at entry {row.position} is one the ledger does not know"
        elif hashlib.sha256(row.verdict.encode()).hexdigest() != entry.body.get("verdict_sha256"):
            yield f"the verdict at entry {row.position} was altered"
        session.expunge(row)
    for index in expected:
        yield f"the verdict at entry {index} is missing"


def _submissions(session: Session, replay: Replay, owner_key: bytes) -> Iterator[str]:
    merged = {entry.submission: identifier for identifier, entry in replay.releases.items()}
    keys = {name: bytes.fromhex(person.signing_key) for name, person in replay.people.items()}
    missing = set(replay.commits)
    query = select(SubmissionRow).order_by(SubmissionRow.id).execution_options(yield_per=_BATCH)
    for row in session.execute(query).scalars():
        missing.discard(row.id)
        for problem in _submission(row, replay, merged, keys.get(row.contributor, b""), owner_key):
            yield f"submission {row.id[:12]} {problem}"
        session.expunge(row)
    for identifier in sorted(missing):
        yield f"submission {identifier[:12]} was handed in, but is missing among the submissions"


def _submission(
    row: SubmissionRow, replay: Replay, merged: dict[Any, str], key: bytes, owner_key: bytes
) -> Iterator[str]:
    if hashlib.sha256(row.manifest).hexdigest() != row.id:
        yield "has a manifest that was altered"
        return
    if not _signed(Domain.SUBMISSION, row.manifest, row.signature, key):
        yield f"is not signed by {row.contributor}"
    fields = parse_submission(row.manifest)
    listed = (row.contributor, row.base_release, row.weights_sha256, row.weights_bytes, row.nonce)
    if listed != (fields.contributor, fields.base_release, fields.weights_sha256, fields.weights_bytes, fields.nonce):
        yield "is listed with other contributor, base, digest, size or nonce than its manifest has"
    commit = replay.commits.get(row.id)
    if commit is not None and listed[:3] != tuple(
        commit.body.get(name) for name in ("contributor", "base_release", "weights_sha256")
    ):
        yield "was handed in with other contributor, base or digest, says the ledger"
    verdicts = replay.verdicts.get(row.id, [])
    yield from _state(row.state, commit, verdicts)
    if verdicts and row.updated != verdicts[-1].time:
        yield f"was decided at {verdicts[-1].time}, says the ledger, not at {row.updated}"
    if commit is not None and row.pruned != replay.pruned.get(row.id):
        yield f"had its weights pruned at {row.pruned}, the ledger says {replay.pruned.get(row.id)}"
    if row.state == SubmissionState.ACCEPTED and row.id not in merged:
        yield "is accepted, but no release came of it"
    if row.state != SubmissionState.ACCEPTED and row.id in merged:
        yield f"is {row.state}, but release {merged[row.id][:12]} came of it"
    verdict = verdicts[-1] if verdicts else None
    for what, entry, position, receipt in (
        ("commit", commit, row.commit_position, row.commit_receipt),
        ("verdict", verdict, row.verdict_position, row.verdict_receipt),
    ):
        if position != (None if entry is None else entry.index):
            yield f"refers to another {what} entry than the ledger has"
        elif not _receipt_fits(receipt, entry, row.id, owner_key):
            yield f"has a {what} receipt that does not fit its entry"


def _state(state: str, commit: Entry | None, verdicts: list[Entry]) -> Iterator[str]:
    if verdicts:
        decision = verdicts[-1].body.get("decision")
        if state != decision:
            yield f"is listed as {state}, the ledger says {decision}"
    elif commit is not None and state not in _PENDING:
        yield f"is listed as {state}, the ledger says that it was handed in and not decided"
    elif commit is None and state not in UNCOMMITTED:
        yield f"is listed as {state}, but no entry says that it was handed in"


def _receipt_fits(stored: bytes | None, entry: Entry | None, subject: str, owner_key: bytes) -> bool:
    if stored is None or entry is None:
        return stored is None and entry is None
    try:
        receipt = Receipt.from_bytes(stored)
        verify_receipt(receipt, owner_key)
    except (WireError, SignatureError):
        return False
    statement = RECEIVED if entry.kind == "submission" else entry.body.get("decision")
    found = (receipt.index, receipt.entry_hash, receipt.subject, receipt.statement)
    return found == (entry.index, entry.hash, subject, statement)


def _signed(domain: Domain, data: bytes, signature: bytes, key: bytes) -> bool:
    try:
        verify_signature(domain, data, signature, key)
    except (SignatureError, IdentityError):
        return False
    return True
