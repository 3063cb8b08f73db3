"""Rows by their full id or by a prefix that only one of them has, as a person types it."""

from __future__ import annotations

import re
from typing import TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from common.errors import LedgerError
from owner.ledger.tables import ReleaseRow, SubmissionRow

_PREFIX = re.compile(r"[0-9a-f]{1,64}")
Row = TypeVar("Row", ReleaseRow, SubmissionRow)


def find(session: Session, kind: type[Row], identifier: str, what: str) -> Row:
    """Raises LedgerError where none or several match; `what` is the word errors call it by."""
    if len(identifier) == 64:
        row = session.get(kind, identifier)
        if row is None:
            raise _unknown(identifier, what)
        return row
    if not _PREFIX.fullmatch(identifier):
        raise LedgerError(f"{identifier[:80]!a} is not a {what} id: up to 64 of 0-9 a-f")
    # A range, not LIKE, so that the primary key is searched: every hex digit sorts before "g".
    query = select(kind).where(kind.id >= identifier, kind.id < identifier + "g").order_by(kind.id).limit(2)
    rows = session.execute(query).scalars().all()
    if not rows:
        raise _unknown(identifier, what)
    if len(rows) > 1:
        raise LedgerError(
            f"several {what}s begin with {identifier}",
            hint=f"give more digits: {rows[0].id[:16]} or {rows[1].id[:16]}?",
        )
    return rows[0]


def _unknown(identifier: str, what: str) -> LedgerError:
    return LedgerError(f"there is no {what} {identifier[:12]}", hint="`portier-owner log` lists what there is")
