"""Releases: publishing, guards, rollback. Functions over a session, used by `Store`.

Releases form one line: each is the child of the one that was current when it was published. A rollback takes the end of the
line back for good; the next release grows from the one that was restored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from common.errors import LedgerError
from common.manifest import parse_release
from common.words import shown
from owner.ledger.lookup import find
from owner.ledger.records import GuardState, Release, ReleaseStatus, SubmissionState
from owner.ledger.tables import ReleaseRow, SubmissionRow
from owner.ledger.transaction import Transaction


def publish(tx: Transaction, manifest: bytes, signature: bytes, *, submission_id: str | None) -> Release:
    fields = parse_release(manifest)
    known = tx.session.get(ReleaseRow, fields.id)
    if known is not None:
        if known.submission_id == submission_id:
            return to_release(known)
        raise LedgerError(f"release {fields.id[:12]} has been published already")
    if submission_id is not None:
        merged = tx.session.get(SubmissionRow, submission_id)
        if merged is None or merged.state != SubmissionState.ACCEPTED:
            raise LedgerError(
                f"release {fields.id[:12]} cannot be made of {submission_id[:12]}, which is not an accepted submission",
                hint="hand the release over with the decision",
            )
    newest = tx.session.execute(select(func.max(ReleaseRow.number))).scalar_one()
    old = _current(tx.session)
    expected_parent = None if old is None else old.id
    if fields.parent != expected_parent:
        raise LedgerError(
            f"release {fields.id[:12]} is made from {_short(fields.parent)}, but the current release is "
            f"{_short(expected_parent)}",
            hint="the current release has moved meanwhile: vet and merge against it again",
        )
    expected_number = 0 if newest is None else newest + 1
    if fields.number != expected_number:
        raise LedgerError(f"release {fields.id[:12]} has number {fields.number}, the next one is {expected_number}")
    if old is not None:
        old.status = ReleaseStatus.PAST
    row = ReleaseRow(
        id=fields.id,
        number=fields.number,
        parent=fields.parent,
        manifest=manifest,
        signature=signature,
        weights_sha256=fields.weights_sha256,
        submission_id=submission_id,
        guard_state=GuardState.MISSING,
        status=ReleaseStatus.CURRENT,
        published=tx.time,
    )
    tx.session.add(row)
    body = {"release": row.id, "number": row.number, "parent": row.parent, "weights_sha256": row.weights_sha256}
    tx.append("release", body, submission=submission_id)
    return to_release(row)


def rollback(tx: Transaction, to_id: str, reason: str) -> Release:
    target = find(tx.session, ReleaseRow, to_id, "release")
    old = _current(tx.session)
    if old is None or target.id == old.id:
        raise LedgerError(f"release {target.id[:12]} is the current one already")
    if target.status != ReleaseStatus.PAST:
        raise LedgerError(
            f"release {target.id[:12]} was itself rolled back and is not offered again",
            hint="roll back to a release that `portier-owner status` lists as past",
        )
    later = (
        tx.session.execute(
            select(ReleaseRow)
            .where(ReleaseRow.number > target.number, ReleaseRow.status != ReleaseStatus.ROLLED_BACK)
            .order_by(ReleaseRow.number)
        )
        .scalars()
        .all()
    )
    for row in later:
        row.status = ReleaseStatus.ROLLED_BACK
        wake(tx, row.id)
    target.status = ReleaseStatus.CURRENT
    tx.append(
        "rollback",
        {"release": target.id, "from": old.id, "rolled_back": [row.id for row in later], "reason": reason[:2000]},
    )
    return to_release(target)


def set_guard_state(
    tx: Transaction, release_id: str, state: GuardState, error: str | None, made: Mapping[str, Any]
) -> None:
    row = find(tx.session, ReleaseRow, release_id, "release")
    error = None if error is None else shown(error)
    if row.guard_state == state and error in (None, row.guard_error):
        return
    row.guard_state = state
    row.guard_error = None if state is GuardState.READY else error or row.guard_error
    if error is not None or state in (GuardState.READY, GuardState.FAILED):
        tx.append("guard", {**made, "release": row.id, "state": str(state), **({"error": error} if error else {})})
    if state is GuardState.READY:
        wake(tx, row.id)
    tx.changed()


def wake(tx: Transaction, release_id: str) -> int:
    """awaiting-guard -> received for the submissions on a release; how many there were."""
    rows = (
        tx.session.execute(
            select(SubmissionRow).where(
                SubmissionRow.base_release == release_id, SubmissionRow.state == SubmissionState.AWAITING_GUARD
            )
        )
        .scalars()
        .all()
    )
    for row in rows:
        row.state, row.updated = SubmissionState.RECEIVED, tx.time
    if rows:
        tx.changed()
    return len(rows)


def release(session: Session, identifier: str) -> Release:
    return to_release(find(session, ReleaseRow, identifier, "release"))


def releases(session: Session) -> list[Release]:
    return [to_release(row) for row in session.execute(select(ReleaseRow).order_by(ReleaseRow.number)).scalars()]


def current(session: Session) -> Release:
    row = _current(session)
    if row is None:
        raise _none_yet()
    return to_release(row)


def root(session: Session) -> Release:
    row = session.execute(select(ReleaseRow).order_by(ReleaseRow.number).limit(1)).scalar_one_or_none()
    if row is None:
        raise _none_yet()
    return to_release(row)


def allowed_bases(session: Session, count: int) -> list[str]:
    rows = session.execute(
        select(ReleaseRow.id)
        .where(ReleaseRow.status != ReleaseStatus.ROLLED_BACK)
        .order_by(ReleaseRow.number.desc())
        .limit(count)
    )
    return list(rows.scalars())


def to_release(row: ReleaseRow) -> Release:
    return Release(
        row.id,
        row.number,
        row.parent,
        row.manifest,
        row.signature,
        row.weights_sha256,
        row.submission_id,
        GuardState(row.guard_state),
        ReleaseStatus(row.status),
        row.published,
        row.guard_error,
    )


def _current(session: Session) -> ReleaseRow | None:
    return session.execute(select(ReleaseRow).where(ReleaseRow.status == ReleaseStatus.CURRENT)).scalar_one_or_none()


def _none_yet() -> LedgerError:
    return LedgerError("there is no release yet", hint="run `portier-owner train` first")


def _short(identifier: str | None) -> str:
    return "nothing" if identifier is None else identifier[:12]
