"""The one door to the ledger. Every method is one transaction; any thread and any process may call it at any time.

Reads never wait for writers. Writers queue: within the process by a lock, between processes by the database.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, bindparam, select
from sqlalchemy.orm import Session

from common import timestamps
from common.errors import IdentityError, LedgerError
from common.identity.keys import SigningKey, fingerprint
from common.receipts import Receipt
from owner.ledger import (
    identity_records,
    refusal_records,
    release_records,
    schema,
    submission_records,
    transaction,
    verification,
)
from owner.ledger.engine import Database
from owner.ledger.records import (
    CertificateRecord,
    Contributor,
    Entry,
    GuardState,
    Head,
    Release,
    Submission,
    SubmissionQuota,
    SubmissionState,
    VerificationReport,
    timestamp,
)
from owner.ledger.tables import CertificateRow, ContributorRow, StateRow
from owner.ledger.transaction import Transaction

Clock = Callable[[], datetime]

# Asked on every call and several times a second: made once, of plain columns, since mapped ones cost several times as much.
_people = ContributorRow.__table__.c
_papers = CertificateRow.__table__.c
_CHANGES = select(StateRow.__table__.c.changes)
_REVOKED = select(_people.name).where(_people.revoked.is_not(None))
_IDENTITY = (
    select(_people.name, _people.signing_key, _people.enrolled, _people.revoked, _people.reason, _papers.not_after)
    .join_from(CertificateRow.__table__, ContributorRow.__table__, _people.name == _papers.contributor)
    .where(_papers.serial == bindparam("serial"))
)


class Store:
    """An open ledger. Use `Store.open`; `with` closes it.

    Every method raises StorageError where the database cannot be reached, is full or read-only; then nothing of the call was
    written. LedgerError says that the ledger refuses what was asked.
    """

    def __init__(self, database: Database, signing_key: SigningKey, clock: Clock) -> None:
        self._database = database
        self._key = signing_key
        self._clock = clock
        self._writing = threading.Lock()

    @classmethod
    def open(cls, place: str | Path, signing_key: SigningKey, *, clock: Clock = timestamps.now) -> Store:
        """The ledger in an SQLite file, or at a database URL (`postgresql+psycopg://user@host/name`), created or upgraded where needed.

        signing_key: the owner's; a ledger belongs to one key. clock: gives aware datetimes.
        Raises StorageError naming the path, LedgerError for another owner's ledger or one of a newer version,
        ConfigurationError for a URL that is none, MissingExtraError for a database driver that is not installed.
        """
        database = Database(place)
        try:
            schema.prepare(database)
            store = cls(database, signing_key, clock)
            store._begin()
        except BaseException:
            database.close()
            raise
        return store

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # The chain

    def head(self) -> Head:
        with self._read() as session:
            return transaction.head(session)

    def entries(
        self,
        *,
        after: int = -1,
        limit: int | None = None,
        kind: str | None = None,
        submission: str | None = None,
        newest_first: bool = False,
    ) -> list[Entry]:
        """Entries with an index above `after`. submission: full id, only entries about it."""
        with self._read() as session:
            return transaction.entries(
                session, after=after, limit=limit, kind=kind, submission=submission, newest_first=newest_first
            )

    def change_counter(self) -> int:
        """A number that grows whenever anything a watcher may care about changes, in whatever process. One row is read."""
        with self._look() as connection:
            return int(connection.execute(_CHANGES).scalar_one())

    def verify(self, receipts: Sequence[Receipt] = ()) -> VerificationReport:
        """Everything that does not agree: the chain, its signatures, the tables, and `receipts` that contributors hold.

        Reads one consistent state while others go on writing. Without receipts, a ledger cut short at its end or
        replaced by an older copy of itself looks whole.
        """
        with self._database.errors(), Session(self._database.snapshots, autoflush=False) as session:
            return verification.verify(session, self._key.public_key, receipts)

    # Who may contribute

    def invite(self, name: str, token_sha256: str, expires: datetime, *, renew: bool = False) -> None:
        """Opens an invitation; earlier open ones of this name are withdrawn.

        renew: for somebody enrolled, whose certificate ran out; it can be redeemed with the signing key they enrolled with alone.
        Raises IdentityError for a name that is enrolled (with `renew`: that is not), was revoked (names are not given out twice)
        or is no name.
        """
        with self._write() as tx:
            identity_records.invite(tx, name, token_sha256, expires, renew=renew)

    def check_token(self, token: str, *, signing_key: bytes | None = None) -> str:
        """The name an open invitation is for. Raises InvitationError where it is unknown, used, withdrawn or expired.

        signing_key: where given, an invitation this very key has used passes too until it expires: its holder's answer was
        lost on the way; and an invitation that renews somebody's enrolment passes for the key they enrolled with alone.
        """
        with self._read() as session:
            return identity_records.check_token(session, token, self._clock(), signing_key)

    def redeem(
        self,
        token: str,
        *,
        name: str | None = None,
        signing_key: bytes,
        serial: str,
        not_after: datetime,
        allow_retry: bool = False,
    ) -> Contributor:
        """Uses an invitation up, enrols its name with `signing_key` (32 bytes) and records its first certificate; or, where the
        name is enrolled with that key, records a further one.

        Of several calls with one token exactly one succeeds. allow_retry: the key that used the token may come again, for
        another certificate, until the token expires. Raises InvitationError, IdentityError for a key that is enrolled
        under another name, QuotaError as `add_certificate`.
        """
        with self._write() as tx:
            return identity_records.redeem(
                tx,
                token,
                name=name,
                signing_key=signing_key,
                serial=serial,
                not_after=not_after,
                allow_retry=allow_retry,
            )

    def add_certificate(self, name: str, serial: str, not_after: datetime) -> None:
        """Records a renewal; a serial known already is left as it is.

        Raises IdentityError, RevokedError; QuotaError where the name has `identity_records.FRESH_CERTIFICATES` whose last
        third has not begun.
        """
        with self._write() as tx:
            identity_records.add_certificate(tx, name, serial, not_after)

    def certificates(self, name: str) -> list[CertificateRecord]:
        with self._read() as session:
            return identity_records.certificates(session, name)

    def identify(self, serial: str, name: str) -> Contributor:
        """Who a TLS session with this certificate is. One row is read, so that every call can ask.

        Raises RevokedError, and IdentityError for a certificate that is not known, not this name's, or expired.
        """
        with self._look() as connection:
            found = connection.execute(_IDENTITY, {"serial": serial}).one_or_none()
        if found is None or found.name != name:
            raise IdentityError(
                f"the certificate {serial[:64]} of {name[:64]!a} is not known here",
                hint="ask the owner for an invitation",
            )
        if found.revoked is not None:
            raise identity_records.revoked_error(name, found.revoked)
        if found.not_after <= timestamp(self._clock()):
            raise IdentityError(
                f"the certificate of {name} expired at {found.not_after}",
                hint=f"ask the owner for an invitation (portier-owner invite {name} --renew), and join with it in the same home",
            )
        return Contributor(found.name, found.signing_key, found.enrolled, None, found.reason)

    def contributors(self) -> list[Contributor]:
        """In the order they enrolled."""
        with self._read() as session:
            return identity_records.contributors(session)

    def contributor(self, name: str) -> Contributor:
        """Also where revoked. Raises IdentityError for a name nobody has."""
        with self._read() as session:
            return identity_records.contributor(session, name)

    def revoke(self, name: str, reason: str = "") -> None:
        """At once and for good; open invitations of the name are withdrawn. Raises IdentityError for a name nobody has."""
        with self._write() as tx:
            identity_records.revoke(tx, name, reason)

    def revoked_names(self) -> frozenset[str]:
        with self._look() as connection:
            return frozenset(connection.execute(_REVOKED).scalars())

    # Releases

    def publish(self, manifest: bytes, signature: bytes, *, submission_id: str | None = None) -> Release:
        """Makes a release of the owner's own the current one; one published already is returned as it is.

        Releases made of a submission come by `decide`. Raises ManifestError, and LedgerError where parent or number do not
        follow the current release.
        """
        with self._write() as tx:
            return release_records.publish(tx, manifest, signature, submission_id=submission_id)

    def releases(self) -> list[Release]:
        """By number."""
        with self._read() as session:
            return release_records.releases(session)

    def release(self, identifier: str) -> Release:
        """By full id or unique prefix. Raises LedgerError."""
        with self._read() as session:
            return release_records.release(session, identifier)

    def current(self) -> Release:
        """Raises LedgerError where there is none yet."""
        with self._read() as session:
            return release_records.current(session)

    def root(self) -> Release:
        """The first release. Raises LedgerError where there is none yet."""
        with self._read() as session:
            return release_records.root(session)

    def allowed_bases(self, count: int) -> list[str]:
        """Ids of the newest `count` releases that no rollback took back, newest first."""
        with self._read() as session:
            return release_records.allowed_bases(session, count)

    def set_guard_state(
        self, identifier: str, state: GuardState, *, error: str | None = None, made: Mapping[str, Any] | None = None
    ) -> None:
        """READY also sends the submissions that await this guard back to `received`.

        error: what is wrong with the guard, kept until it is READY or another error comes; it goes into the ledger too.
        made: of a guard that is READY, where its fine-tunes come from if it did not train them; goes into the ledger.
        """
        with self._write() as tx:
            release_records.set_guard_state(tx, identifier, GuardState(state), error, made or {})

    def rollback(self, identifier: str, reason: str) -> Release:
        """Makes a past release current again and marks all later ones rolled back, for good.

        Submissions that await a guard of those are `received` again: it will not come. Raises LedgerError.
        """
        with self._write() as tx:
            return release_records.rollback(tx, identifier, reason)

    # Submissions

    def begin(
        self, manifest: bytes, signature: bytes, contributor: str, *, quota: SubmissionQuota | None = None
    ) -> Submission:
        """A new submission in state `uploading`, or the one of this manifest as it stands by now.

        quota: held in the same transaction, for a new submission only. Raises ManifestError, WireError (WRONG_CONTRIBUTOR,
        REPLAY, BASE_UNKNOWN), IdentityError, RevokedError, QuotaError. The signature is the caller's to check.
        """
        with self._write() as tx:
            return submission_records.begin(tx, manifest, signature, contributor, quota)

    def committed(self, identifier: str) -> tuple[Submission, Receipt]:
        """Its weights are whole on disk: uploading -> received, with an entry. Asked again, the same receipt."""
        with self._write() as tx:
            return submission_records.committed(tx, identifier)

    def claim(self) -> Submission | None:
        """The submission handed in first among those received, now in state `vetting`.

        Those whose base has no ready guard are passed over, unless the base was rolled back: then there is none to wait for.
        """
        with self._read() as session:
            if submission_records.due(session) is None:
                return None  # the usual answer, for which no writer need wait
        with self._write() as tx:
            return submission_records.claim(tx)

    def waiting(self) -> list[str]:
        """Releases without a ready guard that submissions wait for, not rolled back; the one waited for longest first."""
        with self._read() as session:
            return submission_records.waiting(session)

    def requeue_interrupted(self) -> int:
        """vetting -> received for all, after a crash; how many. Only while nobody vets."""
        with self._write() as tx:
            return submission_records.requeue_interrupted(tx)

    def await_guard(self, identifier: str) -> Submission:
        """received -> awaiting-guard, unless the guard became ready or the base was rolled back meanwhile."""
        with self._write() as tx:
            return submission_records.await_guard(tx, identifier)

    def guard_ready(self, release_id: str) -> int:
        """awaiting-guard -> received for the submissions on a release; how many."""
        with self._write() as tx:
            return release_records.wake(tx, release_id)

    def decide(
        self,
        identifier: str,
        state: SubmissionState,
        verdict: Mapping[str, Any],
        *,
        release: tuple[bytes, bytes] | None = None,
        instead_of: Receipt | None = None,
    ) -> tuple[Submission, Release | None, Receipt]:
        """The verdict, and with `accepted` the new release (manifest, signature), in one transaction or not at all.

        verdict: JSON of at most 4 MiB, without NaN; its digest goes into the entry, with its codes and p-value. Asked again
        with the same verdict, gives the same answer. instead_of: the receipt of the verdict whose place it is to take, and of no
        other. Raises LedgerError for a move the state machine does not have, and where the current release is no longer the parent
        of `release`; DecidedMeanwhileError where `instead_of` is no longer the latest; RevokedError for an acceptance, by whomever,
        of what a contributor handed in who has been revoked since.
        """
        with self._write() as tx:
            return submission_records.decide(tx, identifier, SubmissionState(state), verdict, release, instead_of)

    def expire_upload(self, identifier: str, code: str, detail: str) -> Submission:
        """uploading -> expired, and why; final, a contributor begins anew with a fresh nonce."""
        with self._write() as tx:
            return submission_records.expire_upload(tx, identifier, code, detail)

    def mark_pruned(self, identifier: str) -> Submission:
        """Its weights were deleted. Raises LedgerError while they are needed (only final states may be pruned)."""
        with self._write() as tx:
            return submission_records.mark_pruned(tx, identifier)

    def submission(self, identifier: str) -> Submission:
        """By full id or unique prefix. Raises LedgerError."""
        with self._read() as session:
            return submission_records.submission(session, identifier)

    def submissions(
        self,
        *,
        state: SubmissionState | None = None,
        contributor: str | None = None,
        base: str | None = None,
        limit: int | None = None,
    ) -> list[Submission]:
        """In the order they were begun; with `limit` (0 or more), the so many begun last, newest first."""
        with self._read() as session:
            return submission_records.submissions(session, state=state, contributor=contributor, base=base, limit=limit)

    def verdicts(
        self, contributor: str, *, before: int | None = None, limit: int
    ) -> list[tuple[int, SubmissionState, dict[str, Any]]]:
        """On the decided submissions of a contributor, those handed in last first: where each was handed in (its entry), what
        was decided, and the verdict. before: only those handed in before that entry."""
        with self._read() as session:
            return submission_records.verdicts(session, contributor, before=before, limit=limit)

    def counts(self) -> dict[str, dict[str, int]]:
        """Of submissions, by contributor and state."""
        with self._read() as session:
            return submission_records.counts(session)

    def tries(self, contributor: str, release_id: str) -> int:
        """Submissions a contributor has begun against a release. Expired uploads count: announcing costs the owner too."""
        with self._read() as session:
            return submission_records.tries(session, contributor, release_id)

    def open_bytes(self, contributor: str) -> int:
        """Declared bytes of a contributor's submissions that are uploading or undecided."""
        with self._read() as session:
            return submission_records.open_bytes(session, contributor)

    # What was refused

    def record_refusal(self, contributor: str | None, code: str, detail: str, *, submission: str | None = None) -> None:
        """Input that was refused before it became a submission: an entry for the first of its (contributor, code) in an
        hour, a count for the others. contributor: None, or a name nobody has, is nobody in particular. submission: the id
        it is about, also of one that was never begun; the first of the hour is kept."""
        with self._write() as tx:
            refusal_records.record(tx, contributor, code, detail, submission)

    def close_refusals(self) -> int:
        """Writes the summary entries of past hours; how many. `open` and `record_refusal` do it as well."""
        with self._write() as tx:
            return refusal_records.close_buckets(tx)

    def open_refusals(self) -> dict[tuple[str, str], int]:
        """Refusals of the hours not yet summed up, by (contributor or "", code)."""
        with self._read() as session:
            return refusal_records.open_counts(session)

    def _begin(self) -> None:
        with self._read() as session:
            owner = session.execute(select(StateRow.owner_key)).scalar_one_or_none()
            counting = bool(refusal_records.open_counts(session))
        if owner is not None and owner != self._key.public_key:
            raise LedgerError(
                f"the ledger {self._database.place} belongs to the owner's key {fingerprint(owner)}, "
                f"not to {fingerprint(self._key.public_key)}",
                hint="use the signing key this ledger was made with: it is in the same workspace",
            )
        if owner is None:
            with self._write() as tx:
                tx.begin_ledger()
        elif counting:
            self.close_refusals()

    @contextmanager
    def _look(self) -> Iterator[Connection]:
        with self._database.errors(), self._database.readers.connect() as connection:
            yield connection

    @contextmanager
    def _read(self) -> Iterator[Session]:
        with self._database.errors(), Session(self._database.readers, autoflush=False) as session:
            yield session

    @contextmanager
    def _write(self) -> Iterator[Transaction]:
        with (
            self._writing,
            self._database.errors(),
            Session(self._database.writers, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield Transaction(session, self._key, self._clock())
