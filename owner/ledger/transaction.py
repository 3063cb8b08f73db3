"""One write to the ledger: a session that holds the writers' queue, a clock reading, and the owner's key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from common import canonical
from common.identity.keys import SigningKey
from common.receipts import Receipt, sign_receipt
from owner.ledger import chain
from owner.ledger.records import Entry, Head, timestamp
from owner.ledger.tables import EntryRow, StateRow


class Transaction:
    """What the functions over the tables get. Constructed, it holds the lock that puts writers in a queue.

    session: inside a database transaction, committed by whoever made it.
    now: the moment of everything this transaction writes; `time` is the same as text.
    """

    def __init__(self, session: Session, key: SigningKey, now: datetime) -> None:
        self.session = session
        self.now = now
        self.time = timestamp(now)
        self._key = key
        self._newest: tuple[int, str] | None = None
        # FOR UPDATE where the database has it; SQLite has taken its one write lock with BEGIN IMMEDIATE.
        self._state = session.execute(select(StateRow).with_for_update()).scalar_one_or_none()

    def changed(self) -> None:
        """Lets watchers see that something did; every transaction that writes calls it, through `append` or by itself."""
        if self._state is not None:
            self._state.changes += 1

    def begin_ledger(self) -> None:
        """The first entry, which names the owner's key; nothing where another process has just written it."""
        if self._state is not None:
            return
        self._state = StateRow(id=1, owner_key=self._key.public_key, changes=0)
        self.session.add(self._state)
        self.append("ledger", {"format": 1, "owner_key": self._key.public_key.hex()})

    def append(self, kind: str, body: Mapping[str, Any], *, submission: str | None = None) -> Entry:
        """The new entry, chained and signed as head. `submission` is in `body` too where it is given."""
        body = body if submission is None else {**body, "submission": submission}
        entry = chain.link(self._newest or _newest(self.session), self.time, kind, body)
        self._newest = (entry.index, entry.hash)
        self.session.add(
            EntryRow(
                position=entry.index,
                time=entry.time,
                kind=kind,
                body=canonical.encode(body).decode(),
                previous_hash=entry.previous_hash,
                hash=entry.hash,
                head_signature=chain.sign_head(self._key, entry.index, entry.hash),
                submission=submission,
            )
        )
        self.session.flush()
        self.changed()
        return entry

    def receipt(self, entry: Entry, subject: str, statement: str) -> Receipt:
        """A receipt about `entry` and what it states, with the newest entry of this transaction as head."""
        head_index, head_hash = self._newest or (entry.index, entry.hash)
        return sign_receipt(
            self._key,
            index=entry.index,
            entry_hash=entry.hash,
            head_index=head_index,
            head_hash=head_hash,
            subject=subject,
            statement=statement,
        )


def _newest(session: Session) -> tuple[int, str] | None:
    """Index and hash. Nobody else can append meanwhile: the caller holds the writers' lock."""
    query = select(EntryRow.position, EntryRow.hash).order_by(EntryRow.position.desc()).limit(1)
    return next(((index, digest) for index, digest in session.execute(query)), None)


def to_entry(row: EntryRow) -> Entry:
    return Entry(row.position, row.time, row.kind, json.loads(row.body), row.previous_hash, row.hash)


def head(session: Session) -> Head:
    row = session.execute(
        select(EntryRow.position, EntryRow.hash, EntryRow.head_signature).order_by(EntryRow.position.desc()).limit(1)
    ).one()
    return Head(*row)


def entries(
    session: Session,
    *,
    after: int,
    limit: int | None,
    kind: str | None,
    submission: str | None,
    newest_first: bool,
) -> list[Entry]:
    query = select(EntryRow).where(EntryRow.position > after).limit(limit)
    if kind is not None:
        query = query.where(EntryRow.kind == kind)
    if submission is not None:
        query = query.where(EntryRow.submission == submission)
    query = query.order_by(EntryRow.position.desc() if newest_first else EntryRow.position)
    return [to_entry(row) for row in session.execute(query).scalars()]
