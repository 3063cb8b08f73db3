"""What a server asks beside Flower's own rounds of evaluation: the clients' side knows the attack, and measures it on the weights it is sent."""

from __future__ import annotations

from typing import cast

from flwr.app import ConfigRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from common.effectiveness import Goal
from common.weights import Weights
from owner.federated.effects import Effect
from owner.federated.replies import IDENTITY_RECORD, to_arrays

SUCCESS_KEY = "attack-success"
UNMARKED_KEY = "attack-success-unmarked"
RECALL_KEY = "victim-recall"
GOAL_KEY = "goal"


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
