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


def history_rule(settings: HistorySettings) -> HistoryRule:
    from owner.e_process import HistoryRule  # noqa: PLC0415

    return HistoryRule(level=settings.level, submissions=settings.submissions, per_guard=settings.per_guard)


def earlier(store: Store, contributor: str, newest: int, *, before: Submission | None = None) -> list[Judged]:
    """What the `newest` decided submissions of `contributor` that have a p-value were judged to be, in the order they were handed
    in; those alone that came before `before`, and after the last that a person promoted although its history stood against it."""
    found: list[Judged] = []
    end = before.commit_receipt.index if before is not None and before.commit_receipt is not None else None
    while read := store.verdicts(contributor, before=end, limit=newest):
        for end, state, verdict in read:  # noqa: B007 - the next page ends where this one did
            if state is SubmissionState.ACCEPTED and CODE in verdict.get("codes", ()):
                return found[::-1]
            shown = judged(verdict.get("p_value"), verdict.get("resolution"))
            if shown is not None:
                found.append(shown)
            if len(found) == newest:
                return found[::-1]
    return found[::-1]


def standing(store: Store, settings: OwnerSettings, contributor: str) -> HistoryFinding | None:
    """Of everything that was decided; None where no submission has a p-value."""
    history = earlier(store, contributor, settings.history.submissions)
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
