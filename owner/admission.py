"""Admission: what a submission must be before any detector looks at it, cheapest first.

The service has checked most of this while the submission came in. It is checked again when the submission is vetted,
against what is on disk and in the ledger *then*: a contributor may have been revoked, a release rolled back, or a file
altered in between. Everything here reads headers and hashes; no tensor is made. What needs tensors (finite values,
BatchNorm variances) runs in the vetting process, under its limits on time and memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from common.errors import IdentityError, LedgerError, RevokedError, SignatureError, StorageError, WireError
from common.identity.keys import Domain, verify
from common.manifest import ReleaseManifest, SubmissionManifest, parse_release, parse_submission
from common.weights import check_digest, check_layout, read_header
from owner.gatekeeper.verdict import Check, Decision
from owner.ledger.records import Release, ReleaseStatus, Submission
from owner.ledger.store import Store
from owner.settings import OwnerSettings
from owner.workspace import Workspace


@dataclass
class Admission:
    """What admission found. manifest and base are there where `passed`."""

    checks: list[Check] = field(default_factory=list)
    manifest: SubmissionManifest | None = None
    base: Release | None = None

    @property
    def passed(self) -> bool:
        return all(check.decision is Decision.ACCEPTED for check in self.checks)


def admit(
    workspace: Workspace, store: Store, settings: OwnerSettings, submission: Submission, *, allow_old_base: bool = False
) -> Admission:
    """Every admission check in order, ending with the first that fails.

    allow_old_base: a person who promotes may take a submission whose base has since gone out of the allowed window.
    """
    admission = Admission()
    for name, check in (
        ("signature", lambda: _signature(admission, store, submission)),
        ("enrolment", lambda: _enrolment(store, submission)),
        ("base", lambda: _base(admission, store, settings, submission, allow_old_base=allow_old_base)),
        ("model", lambda: _model(admission)),
        ("digest", lambda: _digest(workspace, submission)),
        ("layout", lambda: _layout(workspace, submission)),
    ):
        admission.checks.append(_timed(name, check))
        if not admission.passed:
            break
    return admission


class _Refused(Exception):  # noqa: N818 - never leaves this module
    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


def _timed(name: str, check: Callable[[], str]) -> Check:
    start = time.perf_counter()
    code, detail = None, ""
    try:
        detail = check()
    except WireError as error:
        code, detail = error.code, error.message
    except _Refused as error:
        code, detail = error.code, str(error)
    except StorageError as error:
        # The owner's disk, not the contributor's model: a person has to look.
        seconds = time.perf_counter() - start
        return Check(name, Decision.QUARANTINED, seconds, code="WEIGHTS_UNREADABLE", detail=error.message)
    decision = Decision.REJECTED if code else Decision.ACCEPTED
    return Check(name, decision, time.perf_counter() - start, code=code, detail=detail)


def _signature(admission: Admission, store: Store, submission: Submission) -> str:
    manifest = parse_submission(submission.manifest)
    if manifest.id != submission.id:
        raise _Refused("MANIFEST_MISMATCH", "the manifest on file is not the one the submission is named after")
    if manifest.contributor != submission.contributor:
        raise _Refused("WRONG_CONTRIBUTOR", f"the manifest names {manifest.contributor}, not {submission.contributor}")
    listed = (submission.base_release, submission.weights_sha256, submission.weights_bytes)
    if listed != (manifest.base_release, manifest.weights_sha256, manifest.weights_bytes):
        raise _Refused("MANIFEST_MISMATCH", "the ledger lists another base, digest or size than the manifest declares")
    try:
        key = store.contributor(submission.contributor).signing_key
        verify(Domain.SUBMISSION, submission.manifest, submission.signature, key)
    except SignatureError as error:
        raise _Refused("SIGNATURE_INVALID", error.message) from None
    except IdentityError as error:
        raise _Refused("NOT_ENROLLED", error.message) from None
    admission.manifest = manifest
    return f"signed by {submission.contributor}"


def _enrolment(store: Store, submission: Submission) -> str:
    try:
        contributor = store.contributor(submission.contributor)
    except RevokedError:
        raise _Refused("REVOKED", f"{submission.contributor} has been revoked") from None
    if contributor.revoked is not None:
        raise _Refused("REVOKED", f"{contributor.name} was revoked on {contributor.revoked}")
    return f"enrolled {contributor.enrolled}"


def check_base(store: Store, settings: OwnerSettings, base: Release, *, allow_old_base: bool = False) -> None:
    """Raises WireError for a release that submissions may not, or no longer, be based on."""
    if base.status is ReleaseStatus.ROLLED_BACK:
        raise WireError("BASE_ROLLED_BACK", f"release {base.number} has been rolled back")
    if settings.merge.policy == "replace" and base.status is not ReleaseStatus.CURRENT:
        raise WireError(
            "BASE_NOT_CURRENT", f"release {base.number} is no longer current, and the merge policy is replace"
        )
    if not allow_old_base and base.id not in store.allowed_bases(settings.merge.bases_allowed):
        raise WireError(
            "BASE_NOT_ALLOWED",
            f"release {base.number} is further back than the last {settings.merge.bases_allowed} (merge.bases_allowed)",
        )


def _base(
    admission: Admission, store: Store, settings: OwnerSettings, submission: Submission, *, allow_old_base: bool
) -> str:
    try:
        base = store.release(submission.base_release)
    except LedgerError as error:
        raise _Refused("BASE_UNKNOWN", error.message) from None
    check_base(store, settings, base, allow_old_base=allow_old_base)
    admission.base = base
    return f"release {base.number} ({base.status})"


def _model(admission: Admission) -> str:
    manifest, base = admission.manifest, admission.base
    assert manifest is not None  # noqa: S101 - set by the checks before this one
    assert base is not None  # noqa: S101
    release: ReleaseManifest = parse_release(base.manifest)
    if manifest.spec != release.spec:
        raise _Refused("SPEC_MISMATCH", f"the manifest declares {manifest.spec}, the release is {release.spec}")
    return release.spec.architecture


def _digest(workspace: Workspace, submission: Submission) -> str:
    path = workspace.submission(submission.id).weights
    try:
        size = path.stat().st_size
    except OSError as error:
        raise StorageError(f"the weights of submission {submission.id[:12]} are gone: {error.strerror}") from None
    if size != submission.weights_bytes:
        code = "FILE_TOO_LONG" if size > submission.weights_bytes else "FILE_TOO_SHORT"
        raise _Refused(code, f"{size} bytes on disk, {submission.weights_bytes} declared")
    check_digest(path, submission.weights_sha256)
    return f"SHA-256 {submission.weights_sha256[:12]}..., {size} bytes"


def _layout(workspace: Workspace, submission: Submission) -> str:
    """Against the base release's own file: no model needs to be built to know which tensors it has."""
    header = read_header(workspace.submission(submission.id).weights)
    expected = read_header(workspace.release(submission.base_release).weights)
    check_layout(header, expected.layout)
    return f"{len(header.layout)} tensors"
