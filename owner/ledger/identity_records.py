"""Who may contribute: invitations, enrolment, certificates, revocation. Functions over a session, used by `Store`.

A name belongs to one signing key for good. It is never given to a second person, not after a revocation either: old
submissions and receipts carry it, and whoever reads them later must not have to ask which of two people was meant. Somebody
whose certificate ran out is therefore invited again for the key they have, and for no other.
"""

from __future__ import annotations

import difflib
import re
from datetime import datetime
from typing import Final

from sqlalchemy import select, update
from sqlalchemy.engine import CursorResult
from sqlalchemy.orm import Session

from common.errors import IdentityError, InvitationError, QuotaError, RevokedError
from common.identity.invitation import token_digest
from common.identity.keys import check_public_key, fingerprint
from common.identity.names import check_contributor_name
from owner.ledger.records import CertificateRecord, Contributor, timestamp
from owner.ledger.tables import CertificateRow, ContributorRow, InvitationRow
from owner.ledger.transaction import Transaction

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SERIAL = re.compile(r"[0-9A-Za-z:]{1,64}")
_REASON = 2000
FRESH_CERTIFICATES: Final = 5
"""Certificates a name may have whose last third has not begun; clients renew in the last third, and answers can be lost."""


def invite(tx: Transaction, name: str, token_sha256: str, expires: datetime, *, renew: bool = False) -> None:
    check_contributor_name(name)
    if not _SHA256.fullmatch(token_sha256):
        raise InvitationError("an invitation is kept as the SHA-256 of its token, 64 hex digits")
    if expires <= tx.now:
        raise InvitationError(f"the invitation for {name} would have expired before it is given out")
    enrolled = tx.session.get(ContributorRow, name)
    if enrolled is not None and enrolled.revoked is not None:
        raise IdentityError(
            f"{name} was revoked on {enrolled.revoked[:10]}; a name is not given out twice",
            hint=f"invite them under a new name, {name}-2 for example",
        )
    if enrolled is not None and not renew:
        raise IdentityError(
            f"{name} is enrolled already",
            hint=f"where their certificate ran out, `portier-owner invite {name} --renew` invites the key they have; "
            f"where that key is lost, revoke {name} and invite them under a new name",
        )
    if enrolled is None and renew:
        raise _unknown(tx.session, name)
    if tx.session.get(InvitationRow, token_sha256) is not None:
        raise InvitationError("this token has been given out already; every invitation needs a fresh one")
    _withdraw(tx, name)
    row = InvitationRow(token_sha256=token_sha256, name=name, created=tx.time, expires=timestamp(expires))
    tx.session.add(row)
    bound = {} if enrolled is None else {"signing_key": enrolled.signing_key.hex()}
    tx.append("invitation", {"name": name, "token_sha256": token_sha256, "expires": row.expires, **bound})


def check_token(session: Session, token: str, now: datetime, signing_key: bytes | None) -> str:
    row = session.get(InvitationRow, token_digest(token))
    if row is None:
        raise InvitationError("this invitation is not known here", hint="ask the owner for a new one")
    enrolled = session.get(ContributorRow, row.name)
    theirs = enrolled is not None and enrolled.revoked is None and enrolled.signing_key == signing_key
    if row.used_at is not None and theirs:
        _check_expiry(row, now)
        return row.name
    _check_open(row, now)
    # An open invitation for somebody enrolled renews, and a name stands for one key: its holder's alone.
    if enrolled is not None and signing_key is not None and not theirs:
        raise InvitationError(
            f"this invitation is for the signing key that {row.name} enrolled with, not for {fingerprint(signing_key)}",
            hint="use the home that has joined as that name; where its key is lost, ask the owner for an invitation under a new name",
        )
    return row.name


def redeem(
    tx: Transaction,
    token: str,
    *,
    name: str | None,
    signing_key: bytes,
    serial: str,
    not_after: datetime,
    allow_retry: bool,
) -> Contributor:
    check_public_key(signing_key)
    invited = check_token(tx.session, token, tx.now, signing_key)
    if not allow_retry:
        _check_open(tx.session.get_one(InvitationRow, token_digest(token)), tx.now)
    if name is not None and name != invited:
        raise InvitationError(f"this invitation is for {invited}, not for {name}")
    used = tx.session.execute(
        update(InvitationRow)
        .where(
            InvitationRow.token_sha256 == token_digest(token),
            InvitationRow.used_at.is_(None),
            InvitationRow.withdrawn_at.is_(None),
            InvitationRow.expires > tx.time,
        )
        .values(used_at=tx.time)
        .execution_options(synchronize_session=False)
    )
    assert isinstance(used, CursorResult)  # noqa: S101  what an UPDATE gives
    if used.rowcount != 1:
        # `check_token` let a used invitation pass: the same person again, whose answer was lost on the way.
        add_certificate(tx, invited, serial, not_after)
        return contributor(tx.session, invited)
    body = {"name": invited, "signing_key": signing_key.hex(), "token_sha256": token_digest(token)}
    if tx.session.get(ContributorRow, invited) is not None:
        tx.append("re-enrolment", body)
        add_certificate(tx, invited, serial, not_after)
        return contributor(tx.session, invited)
    holder = tx.session.execute(
        select(ContributorRow.name).where(ContributorRow.signing_key == signing_key)
    ).scalar_one_or_none()
    if holder is not None:
        raise IdentityError(
            f"the signing key {fingerprint(signing_key)} belongs to {holder} already",
            hint="a second contributor needs a key of its own: join from a fresh home folder",
        )
    row = ContributorRow(name=invited, signing_key=signing_key, enrolled=tx.time, revoked=None, reason="")
    tx.session.add(row)
    tx.session.flush()
    tx.append("enrolment", body)
    add_certificate(tx, invited, serial, not_after)
    return to_contributor(row)


def add_certificate(tx: Transaction, name: str, serial: str, not_after: datetime) -> None:
    if not _SERIAL.fullmatch(serial):
        raise IdentityError(f"{serial[:80]!a} is not a certificate serial: up to 64 digits, letters and colons")
    active(tx.session, name)
    known = tx.session.get(CertificateRow, serial)
    if known is not None:
        if known.contributor == name:
            return
        raise IdentityError(f"certificate {serial} was issued to {known.contributor}, not to {name}")
    fresh = sum(_is_fresh(record, tx.now) for record in certificates(tx.session, name))
    if fresh >= FRESH_CERTIFICATES:
        raise QuotaError(
            f"{name} has {fresh} certificates that need no renewal yet, at most {FRESH_CERTIFICATES} are allowed",
            hint="go on with one of them; the next is issued once the last third of its lifetime has begun",
        )
    tx.session.add(CertificateRow(serial=serial, contributor=name, issued=tx.time, not_after=timestamp(not_after)))
    tx.append("certificate", {"name": name, "serial": serial, "not_after": timestamp(not_after)})


def revoke(tx: Transaction, name: str, reason: str) -> None:
    withdrawn = _withdraw(tx, name)
    row = tx.session.get(ContributorRow, name)
    if row is None:
        if not withdrawn:
            raise _unknown(tx.session, name)
        tx.append("invitation-withdrawn", {"name": name, "reason": reason[:_REASON]})
    elif row.revoked is None:
        row.revoked, row.reason = tx.time, reason[:_REASON]
        tx.append("revocation", {"name": name, "reason": row.reason})


def contributor(session: Session, name: str) -> Contributor:
    row = session.get(ContributorRow, name)
    if row is None:
        raise _unknown(session, name)
    return to_contributor(row)


def contributors(session: Session) -> list[Contributor]:
    rows = session.execute(select(ContributorRow).order_by(ContributorRow.enrolled, ContributorRow.name))
    return [to_contributor(row) for row in rows.scalars()]


def certificates(session: Session, name: str) -> list[CertificateRecord]:
    rows = session.execute(
        select(CertificateRow).where(CertificateRow.contributor == name).order_by(CertificateRow.issued)
    )
    return [CertificateRecord(row.serial, row.contributor, row.issued, row.not_after) for row in rows.scalars()]


def active(session: Session, name: str) -> ContributorRow:
    """Raises IdentityError for a name nobody has, RevokedError."""
    row = session.get(ContributorRow, name)
    if row is None:
        raise _unknown(session, name)
    if row.revoked is not None:
        raise revoked_error(name, row.revoked)
    return row


def to_contributor(row: ContributorRow) -> Contributor:
    return Contributor(row.name, row.signing_key, row.enrolled, row.revoked, row.reason)


def revoked_error(name: str, when: str) -> RevokedError:
    return RevokedError(f"{name} was revoked on {when[:10]}", hint="ask the owner")


def _check_open(row: InvitationRow, now: datetime) -> None:
    if row.used_at is not None:
        raise InvitationError(
            f"the invitation for {row.name} has been used already",
            hint="an invitation works once; if it was not you who used it, tell the owner at once",
        )
    if row.withdrawn_at is not None:
        raise InvitationError(f"the invitation for {row.name} was withdrawn", hint="ask the owner for a new one")
    _check_expiry(row, now)


def _check_expiry(row: InvitationRow, now: datetime) -> None:
    if row.expires <= timestamp(now):
        raise InvitationError(
            f"the invitation for {row.name} expired at {row.expires}", hint="ask the owner for a new one"
        )


def _is_fresh(record: CertificateRecord, now: datetime) -> bool:
    issued, not_after = datetime.fromisoformat(record.issued), datetime.fromisoformat(record.not_after)
    return now < not_after - (not_after - issued) / 3


def _withdraw(tx: Transaction, name: str) -> bool:
    """Closes the open invitations of a name: the newest one is the only one that works.

    The entry that the caller appends accounts for it; `owner.ledger.replay` follows the same rule.
    """
    rows = tx.session.execute(
        select(InvitationRow).where(
            InvitationRow.name == name, InvitationRow.used_at.is_(None), InvitationRow.withdrawn_at.is_(None)
        )
    ).scalars()
    withdrawn = False
    for row in rows:
        row.withdrawn_at = tx.time
        withdrawn = True
    return withdrawn


def _unknown(session: Session, name: str) -> IdentityError:
    known = list(session.execute(select(ContributorRow.name)).scalars())
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "`portier-owner contributors` lists everybody"
    return IdentityError(f"nobody called {name[:80]!a} is enrolled", hint=hint)
