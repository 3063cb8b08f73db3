"""Refused input, told without letting anybody fill the disk: one entry for the first of its kind in an hour, one for the rest.

A bucket is one code from one contributor in one hour. Its first refusal becomes an entry with its detail and, where it is
known by then, the submission it is about; later ones only count. When the hour is over the count becomes one summary entry,
which names the first submission of the hour, written by whoever touches the buckets next.
"""

from __future__ import annotations

import re
from datetime import UTC

from sqlalchemy import select
from sqlalchemy.orm import Session

from common.words import shown
from owner.ledger.tables import ContributorRow, RefusalRow
from owner.ledger.transaction import Transaction

_CODE = re.compile(r"[A-Z0-9_]{1,64}")
_ID = re.compile(r"[0-9a-f]{64}")


def record(tx: Transaction, contributor: str | None, code: str, detail: str, submission: str | None) -> None:
    close_buckets(tx)
    # Only enrolled names get buckets of their own, only well-formed codes: others could be invented without end.
    name = contributor if contributor is not None and tx.session.get(ContributorRow, contributor) is not None else ""
    code = code_of(code)
    submission = submission if submission is not None and _ID.fullmatch(submission) else None
    hour = _hour(tx)
    row = tx.session.get(RefusalRow, (hour, name, code))
    if row is not None:
        row.count += 1
        row.submission = row.submission or submission
        return
    tx.session.add(RefusalRow(hour=hour, contributor=name, code=code, count=1, submission=submission))
    body = {"contributor": name or None, "code": code, "detail": shown(detail)}
    tx.append("refusal", body, submission=submission)


def code_of(code: str) -> str:
    """The code as it may be kept: OTHER for what is no code."""
    return code if _CODE.fullmatch(code) else "OTHER"


def close_buckets(tx: Transaction) -> int:
    """Writes the summary entries of hours that are over; how many."""
    written = 0
    rows = (
        tx.session.execute(
            select(RefusalRow)
            .where(RefusalRow.hour != _hour(tx))
            .order_by(RefusalRow.hour, RefusalRow.contributor, RefusalRow.code)
        )
        .scalars()
        .all()
    )
    for row in rows:
        if row.count > 1:
            body = {"contributor": row.contributor or None, "code": row.code, "hour": row.hour, "count": row.count}
            tx.append("refusals", body, submission=row.submission)
            written += 1
        tx.session.delete(row)
    return written


def open_counts(session: Session) -> dict[tuple[str, str], int]:
    """Refusals counted and not yet summed up, by (contributor or "", code)."""
    counts: dict[tuple[str, str], int] = {}
    for row in session.execute(select(RefusalRow)).scalars():
        key = (row.contributor, row.code)
        counts[key] = counts.get(key, 0) + row.count
    return counts


def _hour(tx: Transaction) -> str:
    return tx.now.astimezone(UTC).strftime("%Y-%m-%dT%H")
