"""What the ledger tells of a contributor's earlier submissions. What is made of it is imported where there is any:
commands that only look do not wait for numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from owner.ledger.records import Submission, SubmissionState
from owner.ledger.store import Store
from owner.settings import HistorySettings, OwnerSettings

if TYPE_CHECKING:
    from owner.e_process import HistoryFinding, HistoryRule, Judged

CODE = "HISTORY"
"""In the verdict on a submission that is held for its contributor's history."""
_DECIDED = (SubmissionState.ACCEPTED, SubmissionState.REJECTED, SubmissionState.QUARANTINED)


def history_rule(settings: HistorySettings) -> HistoryRule:
    from owner.e_process import HistoryRule  # noqa: PLC0415

    return HistoryRule(level=settings.level, submissions=settings.submissions, per_guard=settings.per_guard)


def earlier(store: Store, contributor: str, *, before: Submission | None = None) -> list[Judged]:
    """What the decided submissions of `contributor` were judged to be, in the order they were handed in; those alone that came
    before `before`, and after the last that a person promoted although its history stood against it."""
    limit = _position(before) if before is not None else None
    found: list[Judged] = []
    for one in sorted(store.submissions(contributor=contributor), key=_position):
        if one.state not in _DECIDED or one.verdict is None or (limit is not None and _position(one) >= limit):
            continue
        if one.state is SubmissionState.ACCEPTED and CODE in one.verdict.get("codes", ()):
            found.clear()
            continue
        shown = judged(one.verdict.get("p_value"), one.verdict.get("resolution"))
        if shown is not None:
            found.append(shown)
    return found


def standing(store: Store, settings: OwnerSettings, contributor: str) -> HistoryFinding | None:
    """Of everything that was decided; None where no submission has a p-value."""
    history = earlier(store, contributor)
    if not history:
        return None
    from owner.e_process import judge_history  # noqa: PLC0415

    return judge_history(history, history_rule(settings.history))


def judged(p_value: object, resolution: object) -> Judged | None:
    """Of a verdict with this p-value and resolution; None of one without, as of a rule without an error rate."""
    if not isinstance(p_value, int | float) or not isinstance(resolution, int | float):
        return None
    from owner.e_process import Judged  # noqa: PLC0415

    return Judged(float(p_value), round(1 / resolution) - 1)


def _position(submission: Submission) -> int:
    """Of its commit in the ledger; what was never handed in comes first, and is never decided."""
    return -1 if submission.commit_receipt is None else submission.commit_receipt.index
