"""What a federation came to: per round what was dropped against the truth, accuracy, attack success and cost."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from owner.federated.records import RoundRecord, finite


@dataclass(frozen=True)
class Detection:
    """How dropping agreed with the truth, over all replies that came: precision, recall, F1 (Li et al. 2020).

    None where it is not defined: precision without a drop, recall and F1 without an attacker, the honest ones' share without an honest one;
    and all four where the strategy judges no client (FedAvg, FedMedian, FedTrimmedAvg) and admission dropped none.
    honest_dropped: the share of honest replies that were dropped, the only one of them that a scene without attackers has.
    auroc: of the scores, mean over the rounds that had both kinds of client; None where nobody is scored.
    """

    true_drops: int
    false_drops: int
    missed: int
    honest_kept: int
    auroc: float | None
    judged: bool = True

    @property
    def precision(self) -> float | None:
        dropped = self.true_drops + self.false_drops
        return self.true_drops / dropped if dropped else None

    @property
    def recall(self) -> float | None:
        attackers = self.true_drops + self.missed
        return self.true_drops / attackers if attackers and self._defined else None

    @property
    def f1(self) -> float | None:
        if self.recall is None:
            return None
        return 2 * self.true_drops / (2 * self.true_drops + self.false_drops + self.missed)

    @property
    def honest_dropped(self) -> float | None:
        honest = self.false_drops + self.honest_kept
        return self.false_drops / honest if honest and self._defined else None

    @property
    def _defined(self) -> bool:
        return self.judged or self.true_drops + self.false_drops > 0

    def to_json(self) -> dict[str, Any]:
        return {
            "true_drops": self.true_drops,
            "false_drops": self.false_drops,
            "missed": self.missed,
            "honest_kept": self.honest_kept,
            "precision": self.precision,
            "recall": self.recall,
            "f1": self.f1,
            "honest_dropped": self.honest_dropped,
            "auroc": self.auroc,
            "judged": self.judged,
        }


def detection(records: Sequence[RoundRecord], attackers: frozenset[int]) -> Detection:
    """Over all rounds. A client that failed sent nothing to judge; one whose reply was refused admission was dropped; one whose strategy
    merged nothing, for want of replies, was not judged."""
    counts = {(attacks, outcome): 0 for attacks in (True, False) for outcome in ("dropped", "kept")}
    areas = []
    for record in records:
        unjudged = record.kept_model and not record.rule
        for client in record.clients:
            if client.outcome == "dropped" or (client.outcome == "kept" and not unjudged):
                counts[client.partition in attackers, client.outcome] += 1
        scored = [c for c in record.clients if c.score is not None]
        area = auroc([c.score or 0.0 for c in scored], [c.partition in attackers for c in scored])
        areas += [] if area is None else [area]
    return Detection(
        counts[True, "dropped"],
        counts[False, "dropped"],
        counts[True, "kept"],
        counts[False, "kept"],
        statistics.fmean(areas) if areas else None,
        judged=any(record.rule for record in records),
    )


def auroc(scores: Sequence[float], positive: Sequence[bool]) -> float | None:
    """Share of (positive, negative) pairs in the right order, ties half; None without both kinds. NaN counts as the highest.

    >>> auroc([0.1, 0.4, 0.35, 0.8], [False, False, True, True])
    0.75
    """
    values = [math.inf if math.isnan(score) else score for score in scores]
    high = [score for score, is_positive in zip(values, positive, strict=True) if is_positive]
    low = [score for score, is_positive in zip(values, positive, strict=True) if not is_positive]
    if not high or not low:
        return None
    return sum((a > b) + 0.5 * (a == b) for a in high for b in low) / (len(high) * len(low))


@dataclass(frozen=True)
class RoundResult:
    """record: who was dropped and why. accuracy: of the global model after the round, on the owner's evaluation share.
    attack_success: of the same model on held-out data; None where no attack has a target. seconds: of the server, merging and
    vetting together. Clients' time is not in it.
    """

    record: RoundRecord
    accuracy: float
    attack_success: float | None = None

    @property
    def seconds(self) -> float:
        return self.record.vetting_seconds + self.record.guard_seconds + self.record.merging_seconds

    def to_json(self) -> dict[str, Any]:
        return {
            **self.record.to_json(),
            "accuracy": self.accuracy,
            "attack_success": finite(self.attack_success),
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class FederationResult:
    """config: flat. attackers: the partitions that attack, fewer than wanted where no more can. attackers_weight: the share of all clients'
    examples that they hold. initial_accuracy, initial_attack_success: before the first round.
    attack_effective: whether the attack reached its goal in the model at the end (`common.effectiveness`); None where nobody attacks.
    weights: of the global model at the end. fitting_seconds: training the release and the detector, before the first round.
    """

    config: dict[str, Any]
    attackers: tuple[int, ...]
    initial_accuracy: float
    rounds: tuple[RoundResult, ...]
    weights: dict[str, Tensor] = field(repr=False)
    fitting_seconds: float = 0.0
    seconds: float = 0.0
    attackers_weight: float = 0.0
    initial_attack_success: float | None = None
    attack_effective: bool | None = None

    @property
    def detection(self) -> Detection:
        return detection([result.record for result in self.rounds], frozenset(self.attackers))

    @property
    def accuracy(self) -> float:
        return self.rounds[-1].accuracy

    def table(self) -> list[dict[str, Any]]:
        """What must be the same for the same seed: a row a client and round, nothing that depends on clocks or node ids."""
        return [
            {
                "round": result.record.number,
                "partition": client.partition,
                "outcome": client.outcome,
                "reason": client.reason,
                "score": finite(client.score),
                "accuracy": result.accuracy,
                "attack_success": finite(result.attack_success),
            }
            for result in self.rounds
            for client in result.record.clients
        ]

    def to_json(self) -> dict[str, Any]:
        """Everything but the weights."""
        return {
            "config": self.config,
            "attackers": list(self.attackers),
            "attackers_wanted": self.config["attackers"],
            "attackers_weight": self.attackers_weight,
            "initial_accuracy": self.initial_accuracy,
            "initial_attack_success": finite(self.initial_attack_success),
            "attack_effective": self.attack_effective,
            "detection": self.detection.to_json(),
            "summary": self.summary(),
            "rounds": [result.to_json() for result in self.rounds],
            "fitting_seconds": self.fitting_seconds,
            "seconds": self.seconds,
        }

    def summary(self) -> dict[str, float | None]:
        """accuracy, attack_success: after the last round. seconds_per_round: of the server, mean over rounds; guard_seconds_per_round: of
        them those of fitting guards and checking their range."""
        last = self.rounds[-1]
        return {
            "accuracy": last.accuracy,
            "attack_success": finite(last.attack_success),
            "seconds_per_round": statistics.fmean(result.seconds for result in self.rounds),
            "guard_seconds_per_round": statistics.fmean(result.record.guard_seconds for result in self.rounds),
        }
