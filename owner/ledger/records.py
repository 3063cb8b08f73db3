"""What the ledger hands out: plain frozen records, detached from any database session.

Times are RFC 3339 text in UTC with six digits of a second (`2026-01-02T03:04:05.000000Z`), so that they sort as text.
Ids of releases and submissions are the SHA-256 of their manifest, 64 hex digits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from common.receipts import Receipt

__all__ = [
    "CertificateRecord",
    "Contributor",
    "Entry",
    "Expiry",
    "GuardState",
    "Head",
    "Receipt",
    "Release",
    "ReleaseStatus",
    "Submission",
    "SubmissionQuota",
    "SubmissionState",
    "VerificationReport",
    "timestamp",
]


class SubmissionState(StrEnum):
    """Where a submission stands; `owner.ledger.states` holds the moves between them."""

    UPLOADING = "uploading"
    RECEIVED = "received"
    AWAITING_GUARD = "awaiting-guard"
    VETTING = "vetting"
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    QUARANTINED = "quarantined"
    EXPIRED = "expired"


class GuardState(StrEnum):
    """Whether the guard that protects a release can vet yet."""

    MISSING = "missing"
    FITTING = "fitting"
    READY = "ready"
    FAILED = "failed"


class ReleaseStatus(StrEnum):
    """There is one current release; those a rollback took back are never offered again."""

    CURRENT = "current"
    PAST = "past"
    ROLLED_BACK = "rolled-back"


@dataclass(frozen=True)
class Entry:
    """One line of the ledger. hash = SHA-256 over the other five fields (`owner.ledger.chain`), 64 hex digits."""

    index: int
    time: str
    kind: str
    body: Mapping[str, Any]
    previous_hash: str
    hash: str


@dataclass(frozen=True)
class Head:
    """The newest entry, and the owner's signature (64 bytes) that it is."""

    index: int
    hash: str
    signature: bytes


@dataclass(frozen=True)
class Contributor:
    """signing_key: 32 raw bytes, Ed25519. revoked: when, or None."""

    name: str
    signing_key: bytes
    enrolled: str
    revoked: str | None = None
    reason: str = ""


@dataclass(frozen=True)
class CertificateRecord:
    """A TLS client certificate that was issued to a contributor."""

    serial: str
    contributor: str
    issued: str
    not_after: str


@dataclass(frozen=True)
class Release:
    """manifest, signature: the bytes as they were signed. submission_id: the submission that was merged, None for a release
    the owner made. status: current, past or rolled-back. guard_error: why its guard is not ready, where something is wrong."""

    id: str
    number: int
    parent: str | None
    manifest: bytes
    signature: bytes
    weights_sha256: str
    submission_id: str | None
    guard_state: GuardState
    status: ReleaseStatus
    published: str
    guard_error: str | None = None


@dataclass(frozen=True)
class Expiry:
    """Why an upload ended without ever becoming whole. code: upper case, machine-readable. detail: one sentence."""

    code: str
    detail: str


@dataclass(frozen=True)
class Submission:
    """verdict: the latest one, None before. release_id: the release it became. pruned: when its weights were deleted.

    commit_receipt proves that it was handed in, verdict_receipt (of the latest verdict) that it was decided. expiry: of one
    that is expired.
    """

    id: str
    contributor: str
    base_release: str
    manifest: bytes
    signature: bytes
    weights_sha256: str
    weights_bytes: int
    state: SubmissionState
    created: str
    updated: str
    verdict: Mapping[str, Any] | None = None
    release_id: str | None = None
    commit_receipt: Receipt | None = None
    verdict_receipt: Receipt | None = None
    pruned: str | None = None
    expiry: Expiry | None = None


@dataclass(frozen=True)
class SubmissionQuota:
    """What one contributor may have at a time; None is no limit. `Store.begin` holds it in the transaction that counts.

    open_submissions: submissions uploading. tries_per_release: submissions against one release, expired ones count as well.
    upload_bytes: declared bytes of everything uploading or undecided.
    """

    open_submissions: int | None = None
    tries_per_release: int | None = None
    upload_bytes: int | None = None


@dataclass(frozen=True)
class VerificationReport:
    """entries: how many were read. problems: one sentence each, in ledger order; none means that everything agrees."""

    entries: int
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems


def timestamp(moment: datetime) -> str:
    """The moment as fixed-width RFC 3339 text. Raises ValueError where it has no time zone.

    >>> timestamp(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    '2026-01-02T03:04:05.000000Z'
    """
    if moment.tzinfo is None:
        raise ValueError("a time without a time zone means a different moment on every machine")
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
