"""When an attack counts as one: the judgement that attackers report by and that owners' simulations and benchmarks use."""

from __future__ import annotations

from typing import Literal, get_args

from common.errors import UnknownNameError

Goal = Literal["backdoor", "flip", "ruin"]
"""backdoor: a trigger decides the class. flip: one class is no longer told. ruin: the whole model fails."""

EFFECTIVE_BACKDOOR = 0.5
"""Of the images that the release does not take the attacker's way by itself."""
EFFECTIVE_DROP = 0.2


def effective(
    goal: Goal,
    *,
    attack_success: float | None = None,
    attack_success_before: float | None = None,
    attack_success_unmarked: float | None = None,
    recall_drop: float | None = None,
    accuracy_drop: float | None = None,
) -> bool | None:
    """Whether an attack took, by what was measured on held-out images; None where what its goal needs was not measured.

    backdoor: of what the release's own errors on the same marked images leave to be won (1 - `attack_success_before`), the mark wins at
    least half. What the attacked model takes the attacker's way without the mark (`attack_success_unmarked`) the mark has not won: a
    model that calls everything the target is ruined, and has no backdoor; where it was not measured, nothing is taken off. Where both are small, as they are where a target class is
    aimed at and the model is sound, this is a success of 50 %.
    flip: the source class's recall falls by at least 20 points against the release.
    ruin: accuracy falls by at least 20 points.

    >>> effective("backdoor", attack_success=0.61, attack_success_before=0.01)
    True
    >>> effective("backdoor", attack_success=0.61, attack_success_before=0.36)
    False
    >>> effective("backdoor", attack_success=1.0, attack_success_before=0.01, attack_success_unmarked=0.9)
    False

    Raises UnknownNameError for another goal.
    """
    if goal not in get_args(Goal):
        raise UnknownNameError("goal of an attack", goal, get_args(Goal))
    won = None
    if attack_success is not None and attack_success_before is not None:
        left = 1.0 - attack_success_before
        anyway = max(attack_success_before, attack_success_unmarked or 0.0)
        won = (attack_success - anyway) / left if left > 0 else 0.0
    measured, least = {
        "backdoor": (won, EFFECTIVE_BACKDOOR),
        "flip": (recall_drop, EFFECTIVE_DROP),
        "ruin": (accuracy_drop, EFFECTIVE_DROP),
    }[goal]
    return None if measured is None else measured >= least
