"""What scores are worth: rates over models with exact intervals, AUROC with a bootstrap over models. Nothing here knows a detector.

Higher scores are worse throughout; ties count half in the AUROC and against the gate in every rate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.rates import clopper_pearson

Interval = tuple[float, float]
Scores = Sequence[float] | np.ndarray


def auroc(honest: Scores, attacked: Scores) -> float:
    """P(an attacked model scores above an honest one), ties half. NaN where one side is empty.

    >>> auroc([0.0, 1.0], [1.0, 2.0])
    0.875
    """
    if not len(honest) or not len(attacked):
        return math.nan
    ordered = np.sort(np.asarray(honest, dtype=float))
    scores = np.asarray(attacked, dtype=float)
    below, up_to = np.searchsorted(ordered, scores, "left"), np.searchsorted(ordered, scores, "right")
    return float((below + up_to).mean() / 2 / len(ordered))


def oracle_tpr(honest: Sequence[float], attacked: Sequence[float], fpr: float) -> float | None:
    """Share of attacked models above the cut that `fpr` of these honest models exceed: what no real gate could know.

    None where the honest models do not resolve that rate: fewer than 1 / fpr of them.

    >>> oracle_tpr([0.1 * i for i in range(20)], [1.85, 1.95], 0.05)
    1.0
    """
    if len(honest) * fpr < 1 - 1e-9 or not len(attacked):
        return None
    allowed = math.floor(len(honest) * fpr + 1e-9)
    cut = sorted(honest, reverse=True)[allowed] if allowed < len(honest) else -math.inf
    return float(np.mean(np.asarray(attacked, dtype=float) > cut))


@dataclass(frozen=True)
class Rate:
    hits: int
    n: int

    @property
    def value(self) -> float | None:
        return self.hits / self.n if self.n else None

    @property
    def interval(self) -> Interval:
        return clopper_pearson(self.hits, self.n)

    def to_json(self) -> dict[str, object]:
        return {"hits": self.hits, "n": self.n, "value": self.value, "interval": list(self.interval)}


def rate(decisions: Sequence[bool]) -> Rate:
    return Rate(sum(decisions), len(decisions))


def bootstrap_auroc(
    honest: Sequence[Sequence[float]],
    attacked: Sequence[Sequence[float]],
    bases: Sequence[int],
    *,
    draws: int = 1000,
    seed: int = 0,
) -> Interval:
    """95 % percentile interval of the AUROC pooled over groups, models drawn with replacement within each base.

    honest, attacked: scores, one sequence a group. bases: of the groups; those of one base are of the same honest models, in the same order,
    which are drawn once for all of them: were they drawn for each, the interval would be of so many more models than there are.
    Scores of different groups are compared only with their own group's, so each group's AUROC is weighed by its number of pairs.
    """
    random = np.random.default_rng(seed)
    groups = [
        (np.asarray(h, dtype=float), np.asarray(a, dtype=float), base)
        for h, a, base in zip(honest, attacked, bases, strict=True)
        if len(h) and len(a)
    ]
    counts = {base: len(h) for h, _, base in groups}
    drawn = []
    for _ in range(draws):
        who = {base: random.integers(count, size=count) for base, count in counts.items()}
        drawn.append(
            pooled_auroc([h[who[base]] for h, _, base in groups], [random.choice(a, len(a)) for _, a, _ in groups])
        )
    return float(np.quantile(drawn, 0.025)), float(np.quantile(drawn, 0.975))


def pooled_auroc(honest: Sequence[Scores], attacked: Sequence[Scores]) -> float:
    """AUROC over pairs of the same base.

    >>> pooled_auroc([[0.0], [10.0]], [[1.0], [9.0]])
    0.5
    """
    weights, areas = [], []
    for h, a in zip(honest, attacked, strict=True):
        if len(h) and len(a):
            weights.append(len(h) * len(a))
            areas.append(auroc(h, a))
    return float(np.average(areas, weights=weights)) if weights else math.nan
