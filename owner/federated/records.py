"""What happened in a round: who was kept, who was dropped and why, by what score, and what it cost."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

Outcome = Literal["kept", "dropped", "failed"]
"""kept: handed to the inner strategy, and merged unless the round kept the old model. dropped: a reply that came and was not handed on.
failed: no reply, or an error in its place."""


@dataclass(frozen=True)
class ClientRecord:
    """partition: what the client says it holds, and nobody has checked; None where it does not say. node: Flower's id, which the server
    knows by itself, and which is another one in each run.
    score: higher is worse; None where the strategy scores nobody, or did not get as far. reason: why dropped or failed.
    """

    partition: int | None
    node: int
    outcome: Outcome
    reason: str = ""
    score: float | None = None

    @property
    def label(self) -> str:
        return f"node {self.node}" if self.partition is None else f"partition {self.partition} (node {self.node})"


@dataclass(frozen=True)
class RoundRecord:
    """clients: all that were asked, in the order of their partitions. threshold, rule: of the round's cut; None, "" where there was none.
    kept_model: whether the old global model was kept, because nobody was left or nothing came of merging.
    vetting_seconds: reading, checking and scoring the replies. guard_seconds: fitting, or checking the range of, a guard.
    merging_seconds: the inner strategy's.
    """

    number: int
    clients: tuple[ClientRecord, ...]
    threshold: float | None = None
    rule: str = ""
    kept_model: bool = False
    vetting_seconds: float = 0.0
    guard_seconds: float = 0.0
    merging_seconds: float = 0.0
    note: str = ""

    def with_outcome(self, outcome: Outcome) -> list[ClientRecord]:
        return [client for client in self.clients if client.outcome == outcome]

    @property
    def claimed_twice(self) -> dict[int, list[int]]:
        """Nodes by the partition that more than one of them claims: one is lying, or was set up wrongly.

        >>> RoundRecord(1, tuple(ClientRecord(p, node, "kept") for node, p in enumerate((4, 5, 4)))).claimed_twice
        {4: [0, 2]}
        """
        claims: dict[int, list[int]] = {}
        for client in self.clients:
            if client.partition is not None:
                claims.setdefault(client.partition, []).append(client.node)
        return {partition: nodes for partition, nodes in claims.items() if len(nodes) > 1}

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; a score that is not finite becomes null, for NaN is no JSON, and `scored` tells it from none.

        >>> client = RoundRecord(1, (ClientRecord(0, 7, "dropped", "above", math.inf),)).to_json()["clients"][0]
        >>> client["score"], client["scored"]
        (None, True)
        """
        data = dataclasses.asdict(self)
        data["threshold"] = finite(self.threshold)
        for client in data["clients"]:
            client["scored"] = client["score"] is not None
            client["score"] = finite(client["score"])
        data["clients"] = list(data["clients"])
        data["claimed_twice"] = list(self.claimed_twice)
        return data


def finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
