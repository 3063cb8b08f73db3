"""Submissions: handed in, waiting, claimed, decided. Functions over a session, used by `Store`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from common import canonical
from common.errors import LedgerError, QuotaError, TriesUsedUpError, WireError
from common.manifest import parse_submission
from common.receipts import RECEIVED, Receipt
from common.words import shown
from owner.ledger import release_records
from owner.ledger.identity_records import active
from owner.ledger.lookup import find
from owner.ledger.records import (
    Expiry,
    GuardState,
    Release,
    ReleaseStatus,
    Submission,
    SubmissionQuota,
    SubmissionState,
)
from owner.ledger.refusal_records import code_of
from owner.ledger.states import DECIDED, FINAL, DecidedMeanwhileError, check_move
from owner.ledger.tables import ReleaseRow, SubmissionRow, VerdictRow
from owner.ledger.transaction import Transaction

VERDICT_LIMIT: Final = 4 << 20
_SUMMARY = ("codes", "p_value", "public_code")
_UNDECIDED = (
    SubmissionState.UPLOADING,
    SubmissionState.RECEIVED,
    SubmissionState.AWAITING_GUARD,
    SubmissionState.VETTING,
    SubmissionState.QUARANTINED,
)


def begin(
    tx: Transaction, manifest: bytes, signature: bytes, contributor: str, quota: SubmissionQuota | None
) -> Submission:
    fields = parse_submission(manifest)
    active(tx.session, contributor)
    if fields.contributor != contributor:
        raise WireError(
            "WRONG_CONTRIBUTOR", f"the manifest names {fields.contributor} as contributor, the caller is {contributor}"
        )
    known = tx.session.get(SubmissionRow, fields.id)
    if known is not None:
        return to_submission(tx.session, known)
    replayed = tx.session.execute(
        select(SubmissionRow.id).where(SubmissionRow.contributor == contributor, SubmissionRow.nonce == fields.nonce)
    ).scalar_one_or_none()
    if replayed is not None:
        raise WireError(
            "REPLAY",
            f"the nonce {fields.nonce} was used by submission {replayed[:12]} already",
            hint="every submission needs a fresh nonce",
        )
    if tx.session.get(ReleaseRow, fields.base_release) is None:
        raise WireError("BASE_UNKNOWN", f"there is no release {fields.base_release[:12]} to base a submission on")
    if quota is not None:
        _check_quota(tx.session, contributor, fields.base_release, fields.weights_bytes, quota)
    row = SubmissionRow(
        id=fields.id,
        contributor=contributor,
        base_release=fields.base_release,
        nonce=fields.nonce,
        manifest=manifest,
        signature=signature,
        weights_sha256=fields.weights_sha256,
        weights_bytes=fields.weights_bytes,
        state=SubmissionState.UPLOADING,
        created=tx.time,
        updated=tx.time,
    )
    tx.session.add(row)
    tx.changed()
    return to_submission(tx.session, row)


def committed(tx: Transaction, identifier: str) -> tuple[Submission, Receipt]:
    row = _find(tx.session, identifier)
    if row.commit_receipt is None:
        _move(tx, row, SubmissionState.RECEIVED)
        body = {
            "contributor": row.contributor,
            "base_release": row.base_release,
            "weights_sha256": row.weights_sha256,
            "weights_bytes": row.weights_bytes,
        }
        entry = tx.append("submission", body, submission=row.id)
        row.commit_position = entry.index
        row.commit_receipt = tx.receipt(entry, row.id, RECEIVED).to_bytes()
    return to_submission(tx.session, row), Receipt.from_bytes(row.commit_receipt)


def due(session: Session) -> SubmissionRow | None:
    """The submission to vet next: handed in first of those whose base has a guard, or will not get one any more."""
    return session.execute(
        select(SubmissionRow)
        .join(ReleaseRow, ReleaseRow.id == SubmissionRow.base_release)
        .where(
            SubmissionRow.state == SubmissionState.RECEIVED,
            or_(ReleaseRow.guard_state == GuardState.READY, ReleaseRow.status == ReleaseStatus.ROLLED_BACK),
        )
        .order_by(SubmissionRow.commit_position)
        .limit(1)
    ).scalar_one_or_none()


def claim(tx: Transaction) -> Submission | None:
    row = due(tx.session)
    if row is None:
        return None
    _move(tx, row, SubmissionState.VETTING)
    return to_submission(tx.session, row)


def waiting(session: Session) -> list[str]:
    rows = session.execute(
        select(SubmissionRow.base_release)
        .join(ReleaseRow, ReleaseRow.id == SubmissionRow.base_release)
        .where(
            SubmissionRow.state.in_([SubmissionState.RECEIVED, SubmissionState.AWAITING_GUARD]),
            ReleaseRow.guard_state != GuardState.READY,
            ReleaseRow.status != ReleaseStatus.ROLLED_BACK,
        )
        .group_by(SubmissionRow.base_release)
        .order_by(func.min(SubmissionRow.commit_position))
    )
    return list(rows.scalars())


def requeue_interrupted(tx: Transaction) -> int:
    rows = (
        tx.session.execute(select(SubmissionRow).where(SubmissionRow.state == SubmissionState.VETTING)).scalars().all()
    )
    for row in rows:
        _move(tx, row, SubmissionState.RECEIVED)
    return len(rows)


def await_guard(tx: Transaction, identifier: str) -> Submission:
    row = _find(tx.session, identifier)
    base = tx.session.get_one(ReleaseRow, row.base_release)
    # Between the caller's look and this call the guard may have become ready, or the base been rolled back: then there is
    # nothing to wait for.
    settled = base.guard_state == GuardState.READY or base.status == ReleaseStatus.ROLLED_BACK
    if row.state != SubmissionState.AWAITING_GUARD and not settled:
        _move(tx, row, SubmissionState.AWAITING_GUARD)
    return to_submission(tx.session, row)


def decide(
    tx: Transaction,
    identifier: str,
    state: SubmissionState,
    verdict: Mapping[str, Any],
    release: tuple[bytes, bytes] | None,
    instead_of: Receipt | None,
) -> tuple[Submission, Release | None, Receipt]:
    row = _find(tx.session, identifier)
    if state not in DECIDED:
        raise LedgerError(f"{state} is not a decision; it is {', '.join(sorted(DECIDED))}")
    text = _verdict_text(row.id, verdict)
    digest = hashlib.sha256(text.encode()).hexdigest()
    if row.state == state and row.verdict_receipt is not None and _verdict(tx.session, row) == text:
        return to_submission(tx.session, row), _release_of(tx.session, row.id), Receipt.from_bytes(row.verdict_receipt)
    if instead_of is not None and row.verdict_receipt != instead_of.to_bytes():
        raise DecidedMeanwhileError(
            f"submission {row.id[:12]} has been decided anew meanwhile; it is {row.state}",
            hint="look at it again before another decision",
        )
    if (release is not None) != (state is SubmissionState.ACCEPTED):
        raise LedgerError(
            f"submission {row.id[:12]}: a release goes with an accepted submission and with no other",
            hint="hand over manifest and signature of the new release together with the decision",
        )
    if state is SubmissionState.ACCEPTED:
        # Vetting takes minutes, and a revocation meanwhile must win: here nothing can come in between any more.
        active(tx.session, row.contributor)
    _move(tx, row, state)
    body = {
        "decision": str(state),
        "contributor": row.contributor,
        "base_release": row.base_release,
        "weights_sha256": row.weights_sha256,
        "verdict_sha256": digest,
        **{name: verdict[name] for name in _SUMMARY if name in verdict},
    }
    entry = tx.append("verdict", body, submission=row.id)
    tx.session.add(VerdictRow(position=entry.index, submission=row.id, verdict=text))
    tx.session.flush()
    row.verdict_position = entry.index
    published = None
    if release is not None:
        published = release_records.publish(tx, *release, submission_id=row.id)
        if published.parent is None:
            raise LedgerError(f"submission {row.id[:12]} cannot become the first release")
    receipt = tx.receipt(entry, row.id, str(state))
    row.verdict_receipt = receipt.to_bytes()
    tx.session.flush()
    return to_submission(tx.session, row), published, receipt


def expire_upload(tx: Transaction, identifier: str, code: str, detail: str) -> Submission:
    row = _find(tx.session, identifier)
    if row.state != SubmissionState.EXPIRED:
        _move(tx, row, SubmissionState.EXPIRED)
        row.expiry_code, row.expiry_detail = code_of(code), shown(detail)
    return to_submission(tx.session, row)


def mark_pruned(tx: Transaction, identifier: str) -> Submission:
    row = _find(tx.session, identifier)
    if row.pruned is None:
        if SubmissionState(row.state) not in FINAL:
            raise LedgerError(f"submission {row.id[:12]} is {row.state}: its weights are still needed")
        row.pruned = tx.time
        # An upload that expired was never in the ledger, so its deletion is not either.
        if row.commit_position is not None:
            tx.append("pruned", {"weights_sha256": row.weights_sha256}, submission=row.id)
        tx.changed()
    return to_submission(tx.session, row)


def submission(session: Session, identifier: str) -> Submission:
    return to_submission(session, _find(session, identifier))


def submissions(
    session: Session,
    *,
    state: SubmissionState | None,
    contributor: str | None,
    base: str | None,
    limit: int | None = None,
) -> list[Submission]:
    query = (
        select(SubmissionRow, VerdictRow.verdict, ReleaseRow.id)
        .outerjoin(VerdictRow, VerdictRow.position == SubmissionRow.verdict_position)
        .outerjoin(ReleaseRow, ReleaseRow.submission_id == SubmissionRow.id)
    )
    if limit is None:
        query = query.order_by(SubmissionRow.created, SubmissionRow.id)
    else:
        query = query.order_by(SubmissionRow.created.desc(), SubmissionRow.id.desc()).limit(limit)
    if state is not None:
        query = query.where(SubmissionRow.state == state)
    if contributor is not None:
        query = query.where(SubmissionRow.contributor == contributor)
    if base is not None:
        query = query.where(SubmissionRow.base_release == base)
    return [_record(row, text, release_id) for row, text, release_id in session.execute(query)]


def verdicts(
    session: Session, contributor: str, *, before: int | None, limit: int
) -> list[tuple[int, SubmissionState, dict[str, Any]]]:
    # Texts of many kilobytes each: they are fetched for the few that are wanted, after those have been picked.
    picked = select(SubmissionRow.commit_position, SubmissionRow.state, SubmissionRow.verdict_position).where(
        SubmissionRow.contributor == contributor, SubmissionRow.state.in_(DECIDED)
    )
    if before is not None:
        picked = picked.where(SubmissionRow.commit_position < before)
    newest = picked.order_by(SubmissionRow.commit_position.desc()).limit(limit).subquery()
    rows = session.execute(
        select(newest.c.commit_position, newest.c.state, VerdictRow.verdict)
        .join(VerdictRow, VerdictRow.position == newest.c.verdict_position)
        .order_by(newest.c.commit_position.desc())
    )
    return [(position, SubmissionState(state), json.loads(text)) for position, state, text in rows]


def counts(session: Session) -> dict[str, dict[str, int]]:
    rows = session.execute(
        select(SubmissionRow.contributor, SubmissionRow.state, func.count()).group_by(
            SubmissionRow.contributor, SubmissionRow.state
        )
    )
    found: dict[str, dict[str, int]] = {}
    for contributor, state, number in rows:
        found.setdefault(contributor, {})[state] = number
    return found


def tries(session: Session, contributor: str, release_id: str) -> int:
    return session.execute(
        select(func.count()).where(
            SubmissionRow.contributor == contributor,
            SubmissionRow.base_release == release_id,
        )
    ).scalar_one()


def open_bytes(session: Session, contributor: str) -> int:
    total = session.execute(
        select(func.sum(SubmissionRow.weights_bytes)).where(
            SubmissionRow.contributor == contributor, SubmissionRow.state.in_(_UNDECIDED)
        )
    ).scalar_one()
    return int(total or 0)


def to_submission(session: Session, row: SubmissionRow) -> Submission:
    published = _release_of(session, row.id)
    return _record(row, _verdict(session, row), None if published is None else published.id)


def _record(row: SubmissionRow, verdict: str | None, release_id: str | None) -> Submission:
    return Submission(
        id=row.id,
        contributor=row.contributor,
        base_release=row.base_release,
        manifest=row.manifest,
        signature=row.signature,
        weights_sha256=row.weights_sha256,
        weights_bytes=row.weights_bytes,
        state=SubmissionState(row.state),
        created=row.created,
        updated=row.updated,
        verdict=None if verdict is None else json.loads(verdict),
        release_id=release_id,
        commit_receipt=None if row.commit_receipt is None else Receipt.from_bytes(row.commit_receipt),
        verdict_receipt=None if row.verdict_receipt is None else Receipt.from_bytes(row.verdict_receipt),
        pruned=row.pruned,
        expiry=None if row.expiry_code is None else Expiry(row.expiry_code, row.expiry_detail or ""),
    )


def _find(session: Session, identifier: str) -> SubmissionRow:
    return find(session, SubmissionRow, identifier, "submission")


def _move(tx: Transaction, row: SubmissionRow, state: SubmissionState) -> None:
    check_move(row.id, SubmissionState(row.state), state)
    row.state, row.updated = state, tx.time
    tx.changed()


def _verdict(session: Session, row: SubmissionRow) -> str | None:
    if row.verdict_position is None:
        return None
    return session.execute(select(VerdictRow.verdict).where(VerdictRow.position == row.verdict_position)).scalar_one()


def _release_of(session: Session, submission_id: str) -> Release | None:
    row = session.execute(select(ReleaseRow).where(ReleaseRow.submission_id == submission_id)).scalar_one_or_none()
    return None if row is None else release_records.to_release(row)


def _verdict_text(identifier: str, verdict: Mapping[str, Any]) -> str:
    try:
        data = canonical.encode(dict(verdict))
    except WireError as error:
        raise LedgerError(f"the verdict on submission {identifier[:12]} cannot be kept: {error.message}") from None
    if len(data) > VERDICT_LIMIT:
        raise LedgerError(
            f"the verdict on submission {identifier[:12]} has {len(data)} bytes, the limit is {VERDICT_LIMIT}"
        )
    return data.decode()


def _check_quota(session: Session, contributor: str, base: str, size: int, quota: SubmissionQuota) -> None:
    if quota.open_submissions is not None:
        uploading = session.execute(
            select(func.count()).where(
                SubmissionRow.contributor == contributor, SubmissionRow.state == SubmissionState.UPLOADING
            )
        ).scalar_one()
        if uploading >= quota.open_submissions:
            raise QuotaError(
                f"{contributor} has {uploading} submissions uploading, at most {quota.open_submissions} are allowed",
                hint="finish one of them, or wait until it expires",
                setting="quotas.open_submissions",
            )
    if quota.tries_per_release is not None and tries(session, contributor, base) >= quota.tries_per_release:
        raise TriesUsedUpError(
            f"{contributor} has used its {quota.tries_per_release} tries on release {base[:12]}",
            hint="wait for the next release",
            setting="quotas.tries_per_release",
        )
    if quota.upload_bytes is not None and open_bytes(session, contributor) + size > quota.upload_bytes:
        raise QuotaError(
            f"{size} bytes more would take {contributor} over its {quota.upload_bytes} bytes of undecided submissions",
            hint="wait until earlier submissions are decided",
            setting="quotas.upload_bytes",
        )
