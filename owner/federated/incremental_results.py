"""What came of submissions that were judged one at a time: in the shape of a federation's result, a round a submission."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from owner.federated.effects import Standing
from owner.federated.records import RoundRecord, finite
from owner.federated.results import Detection, RoundResult, auroc


@dataclass(frozen=True)
class SubmissionResult:
    """result: a round with one client in it. Its accuracy and attack success are those of the release that comes of the submission:
    merged where it is kept, the old one where it is dropped.
    attacks: the truth. standing: of the release that comes of an attacker's submission, by which his attack is judged. own_accuracy, own_attack_success: of the submission itself, None where it held no usable weights.
    p_value, own_rule_drops: see `owner.federated.alone.Finding`.
    """

    result: RoundResult
    attacks: bool
    own_accuracy: float | None = None
    own_attack_success: float | None = None
    p_value: float | None = None
    own_rule_drops: bool | None = None
    standing: Standing | None = None

    @property
    def record(self) -> RoundRecord:
        return self.result.record

    @property
    def dropped(self) -> bool:
        return self.record.clients[0].outcome == "dropped"

    def to_json(self) -> dict[str, Any]:
        return {
            **self.result.to_json(),
            "attacks": self.attacks,
            "own_accuracy": finite(self.own_accuracy),
            "own_attack_success": finite(self.own_attack_success),
            "p_value": self.p_value,
            "own_rule_drops": self.own_rule_drops,
        }


@dataclass(frozen=True)
class IncrementalResult:
    """config: flat. attackers_weight: the share of all clients' examples that attackers hold. initial_accuracy, initial_attack_success: of the
    release. attack_effective: whether the attack took, by means over the releases that come of attackers' submissions; None where there is none. submissions: in the order of their partitions.
    fitting_seconds: training the release, the references and the detector, once for all submissions.
    """

    config: dict[str, Any]
    initial_accuracy: float
    submissions: tuple[SubmissionResult, ...]
    initial_attack_success: float | None = None
    fitting_seconds: float = 0.0
    seconds: float = 0.0
    attackers_weight: float = 0.0
    attack_effective: bool | None = None

    @property
    def detection(self) -> Detection:
        """Over all submissions that came; scores are compared across them."""
        return _detection(self.submissions, [one.dropped for one in self.submissions])

    @property
    def own_rule(self) -> Detection | None:
        """What the detector's own rule would have dropped; None where it has no other than the references'."""
        judged = [one for one in self.submissions if one.own_rule_drops is not None or one.dropped]
        if all(one.own_rule_drops is None for one in judged):
            return None
        return _detection(judged, [one.dropped if one.own_rule_drops is None else one.own_rule_drops for one in judged])

    def table(self) -> list[dict[str, Any]]:
        """What must be the same for the same seed: a row a submission, nothing that depends on clocks or node ids."""
        return [
            {
                "partition": client.partition,
                "outcome": client.outcome,
                "reason": client.reason,
                "score": finite(client.score),
                "p_value": one.p_value,
                "accuracy": one.result.accuracy,
                "attack_success": finite(one.result.attack_success),
            }
            for one in self.submissions
            for client in one.record.clients
        ]

    def to_json(self) -> dict[str, Any]:
        own = self.own_rule
        return {
            "config": self.config,
            "attackers": [one.record.clients[0].partition for one in self.submissions if one.attacks],
            "attackers_wanted": self.config["attackers"],
            "attackers_weight": self.attackers_weight,
            "initial_accuracy": self.initial_accuracy,
            "initial_attack_success": finite(self.initial_attack_success),
            "attack_effective": self.attack_effective,
            "detection": self.detection.to_json(),
            "own_rule": None if own is None else own.to_json(),
            "summary": self.summary(),
            "rounds": [one.to_json() for one in self.submissions],
            "fitting_seconds": self.fitting_seconds,
            "seconds": self.seconds,
        }

    def summary(self) -> dict[str, float | None]:
        """accuracy: mean over the releases that come of single submissions. attack_success: the same, of attackers' alone.
        own_attack_success: of what attackers submitted. seconds: of judging one submission."""
        attackers = [one for one in self.submissions if one.attacks]
        return {
            "accuracy": _mean([one.result.accuracy for one in self.submissions]),
            "attack_success": _mean([one.result.attack_success for one in attackers]),
            "own_attack_success": _mean([one.own_attack_success for one in attackers]),
            "seconds_per_round": _mean([one.result.seconds for one in self.submissions]),
        }


def _detection(submissions: Sequence[SubmissionResult], dropped: Sequence[bool]) -> Detection:
    came = [
        (one, drop) for one, drop in zip(submissions, dropped, strict=True) if one.record.clients[0].outcome != "failed"
    ]
    scored = [(one.record.clients[0].score, one.attacks) for one, _ in came]
    known = [(score, attacks) for score, attacks in scored if score is not None]
    return Detection(
        true_drops=sum(one.attacks and drop for one, drop in came),
        false_drops=sum(drop and not one.attacks for one, drop in came),
        missed=sum(one.attacks and not drop for one, drop in came),
        honest_kept=sum(not one.attacks and not drop for one, drop in came),
        auroc=auroc([score for score, _ in known], [attacks for _, attacks in known]),
        judged=any(one.record.rule for one, _ in came),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
