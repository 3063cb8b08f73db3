"""Whether an attack took: what its model was before and after."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from common.effectiveness import Goal, effective


@dataclass(frozen=True)
class Effect:
    """What an attack's own goal is judged by beside accuracy and success, of one model; see `common.effectiveness.effective`.

    goal: None where there is no attack, or clients of somebody's own that do not tell. unmarked: success without the trigger.
    victim_recall: of the class that a flip is to lower.
    """

    goal: Goal | None = None
    unmarked: float | None = None
    victim_recall: float | None = None


@dataclass(frozen=True)
class Standing:
    """accuracy: on the owner's evaluation share. success: of the attack, on held-out data; None where it has no target."""

    accuracy: float
    success: float | None
    effect: Effect = Effect()


def took(before: Standing, after: Standing) -> bool | None:
    """Whether the attack that made the second model of the first reached its goal; None where that was not measured.

    >>> flip = [Standing(0.9, s, Effect("flip", victim_recall=r)) for s, r in ((0.0, 0.95), (0.4, 0.5))]
    >>> took(*flip)
    True
    """
    goal, was, left = after.effect.goal, before.effect.victim_recall, after.effect.victim_recall
    if goal is None:
        return None
    return effective(
        goal,
        attack_success=after.success,
        attack_success_before=before.success,
        attack_success_unmarked=after.effect.unmarked,
        recall_drop=None if was is None or left is None else was - left,
        accuracy_drop=before.accuracy - after.accuracy,
    )


def mean_of(standings: Sequence[Standing]) -> Standing:
    """Of models of the same attack, at least one."""

    def mean(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return statistics.fmean(known) if known else None

    return Standing(
        statistics.fmean(one.accuracy for one in standings),
        mean([one.success for one in standings]),
        Effect(
            standings[0].effect.goal,
            mean([one.effect.unmarked for one in standings]),
            mean([one.effect.victim_recall for one in standings]),
        ),
    )
