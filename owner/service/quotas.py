"""What is refused when a submission is announced, before a byte of it is taken.

The counts (open submissions, bytes, tries) are held by the ledger in the transaction that counts them; here stands what
needs no ledger: sizes, and room on the disk. Calls open at a time are held by `owner.service.calls`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable

from common.errors import QuotaError, WeightsError, WireError
from common.files import storage_errors
from common.manifest import SubmissionManifest
from common.weights import LIMITS
from owner.ledger.records import Release, Submission, SubmissionQuota
from owner.service.limits import DISK_RESERVE_BYTES, HEADROOM_BYTES, MANIFEST_BYTES, SIGNATURE_BYTES
from owner.settings import QuotaSettings
from owner.workspace import SubmissionFiles, Workspace


def check_lengths(manifest: bytes, signature: bytes) -> None:
    """Before anything is parsed. Raises WireError FIELD_TOO_LONG, FIELD_LENGTH."""
    if len(manifest) > MANIFEST_BYTES:
        raise WireError("FIELD_TOO_LONG", f"manifest has {len(manifest)} bytes, the limit is {MANIFEST_BYTES}")
    if len(signature) != SIGNATURE_BYTES:
        raise WireError("FIELD_LENGTH", f"signature has {len(signature)} bytes, it must have {SIGNATURE_BYTES}")


def check_size(manifest: SubmissionManifest, base_weights_bytes: int) -> None:
    """Raises WeightsError FILE_TOO_LONG where the declared size cannot be that of a model like the base release."""
    limit = min(LIMITS.file_bytes, 2 * base_weights_bytes + HEADROOM_BYTES)
    if manifest.weights_bytes > limit:
        raise WeightsError(
            "FILE_TOO_LONG",
            f"weights_bytes declares {manifest.weights_bytes}, the limit for this base release is {limit}",
        )


def check_room(workspace: Workspace, wanted: int, uploading: Iterable[Submission]) -> None:
    """uploading: the submissions whose bytes are on their way; what is missing of each is spoken for.

    Raises QuotaError where the owner's disk has no room for `wanted` bytes more; StorageError where it cannot be asked.
    """
    directory = workspace.submissions
    with storage_errors("look at the disk of", directory):
        # What arrives between the two readings is then counted twice, never not at all.
        outstanding = sum(_outstanding(workspace.submission(submission.id), submission) for submission in uploading)
        free = shutil.disk_usage(directory).free
    if free < wanted + outstanding + DISK_RESERVE_BYTES:
        raise QuotaError("the owner's disk has no room for this submission", hint="tell the owner, and try again later")


def _outstanding(files: SubmissionFiles, submission: Submission) -> int:
    for path in (files.part, files.weights):
        try:
            return max(0, submission.weights_bytes - path.stat().st_size)
        except FileNotFoundError:
            continue
    return submission.weights_bytes


def of(settings: QuotaSettings) -> SubmissionQuota:
    return SubmissionQuota(
        open_submissions=settings.open_submissions,
        tries_per_release=settings.tries_per_release,
        upload_bytes=settings.upload_bytes,
    )


def allowed(release: Release, allowed_bases: list[str], *, policy: str) -> None:
    """Raises WireError BASE_NOT_ALLOWED where a submission may not be based on `release`."""
    bases = allowed_bases[:1] if policy == "replace" else allowed_bases
    if release.id not in bases:
        raise WireError(
            "BASE_NOT_ALLOWED",
            f"base_release {release.id[:12]} is release {release.number}; submissions may be based on the last "
            f"{len(bases)} (merge.bases_allowed, merge.policy)",
            hint="fetch the current release and fine-tune that",
        )
