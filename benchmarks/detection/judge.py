"""From scores to figures: what a gate that is calibrated on its base's references does with models nobody chose anything on.

A *judged* model has one score from one scorer (a detector, or a combination of several) and the p-value of that score over
the calibration references of its base. Rates at a nominal level are of those p-values: nothing here looks for a threshold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.detection.metrics import Interval, Rate, bootstrap_auroc, oracle_tpr, pooled_auroc, rate
from owner.gatekeeper.rules import p_value
from owner.levels import resolution

Population = Literal["effective", "effective-passing-utility", "failed"]
PRIMARY: Population = "effective-passing-utility"
POPULATIONS: tuple[Population, ...] = (PRIMARY, "effective", "failed")
LEVELS = (0.05, 0.01)
FEWEST = 20
"""Attacked models that a figure is of: the share of fewer says little."""
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Model:
    """One model of a base, as it was measured and scored.

    family: of its attack or, of a placebo, of the recipe; None where it is honest. effective: None where it is honest. measures: by score name.
    stratum: what kind of honest contributor made it, "" for an attacked one. merged_effective: whether its attack still takes in the
        release that averages it in; None where it is honest.
    """

    base: int
    name: str
    family: str | None
    effective: bool | None
    passes_utility: bool
    measures: Mapping[str, float]
    stratum: str = ""
    merged_effective: bool | None = None

    def belongs(self, population: Population) -> bool:
        if self.family is None:
            return False
        if population == "failed":
            return self.effective is False
        return self.effective is True and (population == "effective" or self.passes_utility)


@dataclass(frozen=True)
class Base:
    """Everything scored on one base. fitting, calibration: measures of the references."""

    number: int
    fitting: Sequence[Mapping[str, float]]
    calibration: Sequence[Mapping[str, float]]
    honest: Sequence[Model]
    attacked: Sequence[Model]
    placebos: Sequence[Model] = ()


Score = Callable[[Mapping[str, float]], float]
Fit = Callable[[Base], Score]
"""From a base's fitting references to the score it gives a model's measures."""


@dataclass(frozen=True)
class Judged:
    model: Model
    score: float
    p: float


@dataclass(frozen=True)
class Group:
    """Judged models that compare with each other: of one base, by one scorer."""

    base: int
    honest: tuple[Judged, ...]
    attacked: tuple[Judged, ...]
    references: int


def judge(base: Base, fit: Fit, attacked: Iterable[Model]) -> Group:
    """Scores and p-values of a base's honest test models and of these attacked ones."""
    score = fit(base)
    calibration = [score(measures) for measures in base.calibration]

    def judged(model: Model) -> Judged:
        found = score(model.measures)
        return Judged(model, found, p_value(found, calibration))

    return Group(base.number, tuple(map(judged, base.honest)), tuple(map(judged, attacked)), len(calibration))


@dataclass(frozen=True)
class Figures:
    """auroc: NaN without models on both sides. tpr, fpr: by nominal level; oracle: None where the honest models do not resolve it.

    A level finer than the references resolve is left out of `tpr` and `fpr`. In JSON, what is of fewer than `FEWEST` attacked models is null.
    """

    auroc: float
    auroc_interval: Interval | None
    tpr: Mapping[float, Rate]
    fpr: Mapping[float, Rate]
    oracle: Mapping[float, float | None]
    n_honest: int
    n_attacked: int

    def to_json(self) -> dict[str, Any]:
        def at(rates: Mapping[float, Rate], level: float) -> float | None:
            return rates[level].value if level in rates and rates[level].n else None

        enough = self.n_attacked >= FEWEST
        tpr: Mapping[float, Rate] = self.tpr if enough else {}
        oracle = self.oracle if enough else dict.fromkeys(LEVELS)
        ci: dict[str, Any] = {"auroc": self.auroc_interval if enough else None}
        for level in LEVELS:
            for name, rates in (("tpr", tpr), ("realised_fpr", self.fpr)):
                key = f"{name}_at_{100 * level:.0f}"
                ci[key] = list(rates[level].interval) if level in rates and rates[level].n else None
        return {
            "n_honest": self.n_honest,
            "n_attacked": self.n_attacked,
            "auroc": self.auroc if enough and not math.isnan(self.auroc) else None,
            "tpr_at_5": at(tpr, 0.05),
            "tpr_at_1": at(tpr, 0.01),
            "realised_fpr_at_5": at(self.fpr, 0.05),
            "realised_fpr_at_1": at(self.fpr, 0.01),
            "oracle_tpr_at_5": oracle[0.05],
            "oracle_tpr_at_1": oracle[0.01],
            "ci": ci,
        }


def figures(
    groups: Sequence[Group], population: Population, *, whole_gate: bool = False, intervals: bool = True
) -> Figures:
    """Pooled over groups; scores compare within a group only. Where attacks that pass utility are judged, so are honest models.

    intervals: whether the AUROC's is drawn, which takes time.
    whole_gate: a model that fails utility counts as rejected at every level, honest ones too.
    """
    peers = [[one for one in group.honest if one.model.passes_utility or population != PRIMARY] for group in groups]
    honest = [[_seen(one, whole_gate) for one in side] for side in peers]
    attacked = [[_seen(one, whole_gate) for one in group.attacked if one.model.belongs(population)] for group in groups]
    levels = [a for a in LEVELS if groups and all(a >= resolution(group.references) - _ROUNDING for group in groups)]
    scores = [[score for score, _ in side] for side in honest], [[score for score, _ in side] for side in attacked]
    enough = intervals and any(h and a for h, a in zip(*scores, strict=True))

    def passed(side: Sequence[Sequence[tuple[float, float]]], level: float) -> Rate:
        return rate([p <= level + _ROUNDING for group in side for _, p in group])

    def wrongly(level: float) -> Rate:
        """Of honest models, each once: judged by the gates of several families it counts by how many of them reject it."""
        votes: dict[tuple[int, str], list[bool]] = {}
        for side in peers:
            for one in side:
                rejected = _seen(one, whole_gate)[1] <= level + _ROUNDING
                votes.setdefault((one.model.base, one.model.name), []).append(rejected)
        return Rate(round(sum(sum(mine) / len(mine) for mine in votes.values())), len(votes))

    return Figures(
        pooled_auroc(*scores),
        bootstrap_auroc(*scores, [group.base for group in groups]) if enough else None,
        {level: passed(attacked, level) for level in levels},
        {level: wrongly(level) for level in levels},
        {level: _pooled_oracle(*scores, level) for level in LEVELS},
        len({(one.model.base, one.model.name) for side in peers for one in side}),
        sum(map(len, attacked)),
    )


def _seen(one: Judged, whole_gate: bool) -> tuple[float, float]:
    turned_away = whole_gate and not one.model.passes_utility
    return (math.inf, 0.0) if turned_away else (one.score, one.p)


def _pooled_oracle(
    honest: Sequence[Sequence[float]], attacked: Sequence[Sequence[float]], level: float
) -> float | None:
    found = [(oracle_tpr(h, a, level), len(a)) for h, a in zip(honest, attacked, strict=True) if a]
    known = [(value, n) for value, n in found if value is not None]
    if not known or len(known) < len(found):
        return None
    return sum(value * n for value, n in known) / sum(n for _, n in known)
