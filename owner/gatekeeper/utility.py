"""The utility check: a would-be release must still do the current release's work.

It is the same for everybody, suspected or not, and it says nothing about intent: a contributor whose data hold few classes costs
recall honestly, and is told so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from common.errors import ConfigurationError
from common.evaluation import Evaluation
from owner.gatekeeper.stored import whole
from owner.gatekeeper.verdict import Check, Decision

_Z95 = 1.645


@dataclass(frozen=True)
class UtilityLimits:
    """accuracy_drop: accuracy the would-be release may lose against the current one, both on the evaluation share.
    recall_drop: recall any class may lose beyond binomial noise (see `recall_allowance`).
    """

    accuracy_drop: float = 0.01
    recall_drop: float = 0.05

    def __post_init__(self) -> None:
        for name in ("accuracy_drop", "recall_drop"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigurationError(f"{name} must be from 0 to 1, not {getattr(self, name)}")

    def to_json(self) -> dict[str, Any]:
        return {"accuracy_drop": self.accuracy_drop, "recall_drop": self.recall_drop}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Raises ConfigurationError for a field that is missing."""
        return cls(**whole(data, cls, "the limits of the utility check"))


def recall_allowance(recall: float, support: int, recall_drop: float) -> float:
    """The largest drop of one class's recall that passes: recall_drop + 1.645 * sqrt(q (1 - q) / n).

    n is the class's number of evaluation images. q is the lowest recall that is still allowed, (correct + 1) / (n + 2) -
    recall_drop; the current recall is smoothed (Laplace) so that a class of few images, all of them right, still has noise.
    1.645 is the one-sided 95 % point: a release whose true recall is q passes 19 times in 20. The two recalls are measured
    on the same images, which makes the noise of their difference smaller than this: the rule errs on the lenient side.

    >>> round(recall_allowance(0.8, 100, 0.05), 3)
    0.122
    """
    lowest = max((recall * support + 1) / (support + 2) - recall_drop, 0.0)
    return recall_drop + _Z95 * math.sqrt(lowest * (1 - lowest) / max(support, 1))


def check_accuracy(current: Evaluation, would_be: Evaluation, limits: UtilityLimits, *, seconds: float) -> Check:
    """Accuracy of the would-be release may be at most `accuracy_drop` below current's."""
    drop = current.accuracy - would_be.accuracy
    passes = drop <= limits.accuracy_drop + 1e-9
    return Check(
        "utility-accuracy",
        Decision.ACCEPTED if passes else Decision.REJECTED,
        seconds,
        score=drop,
        threshold=limits.accuracy_drop,
        code=None if passes else "UTILITY_ACCURACY",
        detail=f"accuracy {current.accuracy:.4f} -> {would_be.accuracy:.4f} on {int(current.support.sum())} images"
        + _meaning(passes),
    )


def check_recall(
    current: Evaluation, would_be: Evaluation, limits: UtilityLimits, class_names: Sequence[str], *, seconds: float
) -> Check:
    """No class may lose more recall than its allowance. Score and threshold are those of the class that exceeds it most."""
    worst_excess, worst = -math.inf, 0
    for c, support in enumerate(current.support.tolist()):
        if support:
            drop = float(current.recall[c] - would_be.recall[c])
            excess = drop - recall_allowance(float(current.recall[c]), support, limits.recall_drop)
            if excess > worst_excess:
                worst_excess, worst = excess, c
    before, after, support = float(current.recall[worst]), float(would_be.recall[worst]), int(current.support[worst])
    passes = worst_excess <= 1e-9
    return Check(
        "utility-recall",
        Decision.ACCEPTED if passes else Decision.REJECTED,
        seconds,
        score=before - after,
        threshold=recall_allowance(before, support, limits.recall_drop),
        code=None if passes else "UTILITY_RECALL",
        detail=f"class nearest its limit: {class_names[worst]}, recall {before:.3f} -> {after:.3f} on {support} images"
        + _meaning(passes),
    )


def _meaning(passes: bool) -> str:
    return (
        "" if passes else "; merged, it would be less useful than is allowed to anybody, which says nothing of intent"
    )
