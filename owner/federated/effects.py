"""Whether an attack took: what its model was before and after. The clients' side knows the attack, and measures it on what the server
sends; the server asks for it beside Flower's own rounds of evaluation."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from flwr.app import ConfigRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from common.effectiveness import Goal, effective
from common.weights import Weights
from owner.federated.replies import IDENTITY_RECORD, to_arrays

SUCCESS_KEY = "attack-success"
UNMARKED_KEY = "attack-success-unmarked"
RECALL_KEY = "victim-recall"
GOAL_KEY = "goal"


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


def success_of(strategy: Strategy, grid: Grid, weights: Weights, *, number: int, timeout: float) -> float | None:
    """The attack's success; None where there is no attack or it has no target. number: of the round, which the draws follow from."""
    content = _asked(strategy, grid, weights, number, timeout, success_alone())
    return None if content is None else _metric(content, SUCCESS_KEY)


def effect_of(strategy: Strategy, grid: Grid, weights: Weights, *, number: int, timeout: float) -> Effect:
    """See `success_of`."""
    told = ConfigRecord({"accuracy": False, "success": False, "effect": True})
    content = _asked(strategy, grid, weights, number, timeout, told)
    record = None if content is None else content.get(IDENTITY_RECORD)
    if content is None or not isinstance(record, ConfigRecord) or GOAL_KEY not in record:
        return Effect()
    return Effect(cast(Goal, str(record[GOAL_KEY])), _metric(content, UNMARKED_KEY), _metric(content, RECALL_KEY))


def success_alone() -> ConfigRecord:
    """Tells a client that the server measures accuracy itself."""
    return ConfigRecord({"accuracy": False})


def _asked(
    strategy: Strategy, grid: Grid, weights: Weights, number: int, timeout: float, told: ConfigRecord
) -> RecordDict | None:
    """The first answer that has any content: it is the same number whichever client is asked."""
    messages = list(strategy.configure_evaluate(number, to_arrays(weights), told, grid))
    if not messages:  # there is no attack
        return None
    for reply in grid.send_and_receive(messages, timeout=timeout):
        if reply.has_content():
            return reply.content
    return None


def _metric(content: RecordDict, key: str) -> float | None:
    found = next((record[key] for record in content.metric_records.values() if key in record), None)
    return float(found) if isinstance(found, (int, float)) else None
