"""What a contributor sees of a submission: four states and a coarse code, from which nobody can climb a score.

A quarantined submission looks like one that waits, down to its receipts: that a person looks at it is not told.
"""

from __future__ import annotations

from typing import Final

from owner.ledger.records import Submission, SubmissionState
from protos import collaboration_pb2 as wire

_STATES: Final = {
    SubmissionState.UPLOADING: wire.Submission.UPLOADING,
    SubmissionState.RECEIVED: wire.Submission.PENDING,
    SubmissionState.AWAITING_GUARD: wire.Submission.PENDING,
    SubmissionState.VETTING: wire.Submission.PENDING,
    SubmissionState.QUARANTINED: wire.Submission.PENDING,
    SubmissionState.ACCEPTED: wire.Submission.ACCEPTED,
    SubmissionState.REJECTED: wire.Submission.DECLINED,
    SubmissionState.EXPIRED: wire.Submission.DECLINED,
}
_CODES: Final = frozenset({"format", "utility", "review"})
_FINAL: Final = frozenset({wire.Submission.ACCEPTED, wire.Submission.DECLINED})


def describe(submission: Submission, committed: int) -> wire.Submission:
    """committed: bytes on disk, of one that is uploading."""
    state = _STATES[submission.state]
    uploading = state == wire.Submission.UPLOADING
    expired = submission.state is SubmissionState.EXPIRED
    final = state in _FINAL
    receipt, verdict = submission.commit_receipt, submission.verdict_receipt
    return wire.Submission(
        submission_id=submission.id,
        state=state,
        code=_code(submission),
        base_release=submission.base_release,
        committed_bytes=committed if uploading else 0 if expired else submission.weights_bytes,
        total_bytes=submission.weights_bytes,
        commit_receipt=receipt.to_bytes() if receipt is not None else b"",
        verdict_receipt=verdict.to_bytes() if verdict is not None and final else b"",
        created=submission.created,
    )


def decided(view: wire.Submission) -> bool:
    return view.state in _FINAL


def _code(submission: Submission) -> str:
    if submission.state is SubmissionState.EXPIRED:
        return "expired"
    if submission.state is not SubmissionState.REJECTED:
        return ""
    code = str((submission.verdict or {}).get("public_code", ""))
    return code if code in _CODES else "review"
