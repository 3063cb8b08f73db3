"""One score from many: each put on the scale of honest fine-tunes, then combined.

Fitted on the scores of *fitting* references; the p-value of a combined score over *calibration* references is the rule's job.
"""

from __future__ import annotations

import math
import operator
from bisect import bisect_left
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median, quantiles
from typing import Literal, Self, get_args

import torch
from torch import Tensor

from common.errors import ConfigurationError, GuardError, UnknownNameError

Method = Literal["max", "sum", "top3", "fisher", "mahalanobis", "families", "detectors"]
Scores = Mapping[str, float]

FAMILIES: Mapping[str, str] = {
    "activation-autoencoder": "activations",
    "activation-vae": "activations",
    "activation-cvae": "activations",
    "paired-autoencoder": "activations",
    "feature-drift": "activations",
    "drift-concentration": "activations",
    "cka": "activations",
    "feature-spectrum": "activations",
    "confusion-drift": "confusion",
    "probe-bank": "probes",
    "prediction-noise-drift": "probes",
    "extrapolation": "extrapolation",
    "input-gradient-drift": "gradients",
    "head-drift": "weights",
    "batchnorm-drift": "weights",
    "channel-lipschitz": "weights",
    "update-norm": "weights",
    "update-spectrum": "weights",
    "accuracy-drop": "utility",
    "recall-drop": "utility",
}
"""Family by detector; a detector that is not here is of the family `other`."""

SIZE = "update-norm"
"""The score that says how far an update went, which `given_size` takes out of the others."""

_LEAST_SCALE = 1e-3
_FENCE = 8.0
_FEWEST_FOR_A_TREND = 10
_SHRINKAGE = 10.0
"""In references of a usual size. Of 3 to 40, 10 and 20 did best on MNIST's development base, and alike."""
_HUBER = 1.5
_BEYOND: Mapping[Method, float] = {"families": 0.0, "detectors": 0.5}
"""From where on a group adds anything, in `Scale.by_upper_tenth`."""


def family_of(score: str) -> str:
    """
    >>> family_of("probe-bank/cell"), family_of("mine")
    ('probes', 'other')
    """
    return FAMILIES.get(detector_of(score), "other")


def detector_of(score: str) -> str:
    """
    >>> detector_of("probe-bank/cell")
    'probe-bank'
    """
    return score.partition("/")[0]


@dataclass(frozen=True)
class Scale:
    """How one score varies among honest fine-tunes, after a transformation that keeps the order.

    Of scores all positive, the logarithm; otherwise asinh((x - centre) / unit), centre their median and unit thrice their
    1.4826 MAD, which is linear among honest ones and logarithmic far off.

    unit: 0 for the logarithm. centre: with the logarithm, where that of a score at or below 0 is taken.
    location, scale: median and 1.4826 MAD of the transformed references. A MAD of zero gives way to the standard deviation, and
    that of a constant to 0.001: any score beyond a constant stands far out, an equal one not at all.
    """

    unit: float
    centre: float
    location: float
    scale: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        if min(values) > 0:
            unit, centre = 0.0, 1e-6 * min(values)
        else:
            centre, spread = _location_and_spread(values)
            unit = 3 * spread if spread > 0 else 1.0
        location, spread = _location_and_spread([_transformed(value, unit, centre) for value in values])
        return cls(unit, centre, location, max(spread, _LEAST_SCALE))

    @classmethod
    def by_upper_tenth(cls, values: Sequence[float]) -> Self:
        """In the place of the MAD, how far above the median the upper tenth of the references begins.

        Where some honest fine-tunes go far, a MAD does not see them, and a score that they move would drown every other in a sum.
        By this unit all scores are as seldom beyond one among honest ones.
        """
        scale = cls.of(values)
        seen = [_transformed(value, scale.unit, scale.centre) for value in values]
        upper = quantiles(seen, n=10, method="inclusive")[-1] - scale.location
        return replace(scale, scale=upper) if upper > _LEAST_SCALE else scale

    def z(self, value: float) -> float:
        """Infinite for a value that is not finite, whichever way."""
        if not math.isfinite(value):
            return math.inf
        return (_transformed(value, self.unit, self.centre) - self.location) / self.scale


@dataclass(frozen=True)
class Trend:
    """How a z-score goes with the size of the update among honest fine-tunes: z = intercept + slope (s - middle), give or take
    `spread` and what the line itself is unsure of.

    A robust line (Huber's weights), its slope shrunk to none by ten references' worth. s is the size's own z, kept between those of
    the smallest and the largest honest update: what lies beyond them explains nothing.

    information: weighted sum of (s - middle)^2 over the references, and the ten. count: references.
    """

    intercept: float
    slope: float
    spread: float
    smallest: float
    largest: float
    middle: float
    information: float
    count: int

    @classmethod
    def of(cls, sizes: Sequence[float], values: Sequence[float]) -> Self:
        s = [min(max(size, -_FENCE), _FENCE) for size in sizes]
        y = [min(max(value, -_FENCE), _FENCE) for value in values]
        weights, level, slope = [1.0] * len(s), 0.0, 0.0
        for _ in range(10):
            total = math.fsum(weights)
            middle = math.fsum(map(operator.mul, weights, s)) / total
            level = math.fsum(map(operator.mul, weights, y)) / total
            away = [a - middle for a in s]
            covariance = math.fsum(w * a * (b - level) for w, a, b in zip(weights, away, y, strict=True))
            information = math.fsum(w * a * a for w, a in zip(weights, away, strict=True)) + _SHRINKAGE
            slope = covariance / information
            left = [b - level - slope * a for a, b in zip(away, y, strict=True)]
            limit = _HUBER * max(_location_and_spread(left)[1], _LEAST_SCALE)
            weights = [min(1.0, limit / abs(one)) if one else 1.0 for one in left]
        location, spread = _location_and_spread(left)
        spread = max(spread, _LEAST_SCALE)
        return cls(level + location, slope, spread, min(s), max(s), middle, information, len(s))

    def z(self, value: float, size: float) -> float:
        """What the size does not explain, over what a new honest one would be off by: the spread, and the error of the line there
        (the predictive deviation of a ridge line). Few references say little of the largest and the smallest updates."""
        away = min(max(size, self.smallest), self.largest) - self.middle
        unsure = 1 + 1 / self.count + away * away / self.information
        return (value - self.intercept - self.slope * away) / (self.spread * math.sqrt(unsure))


def _location_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Median and 1.4826 MAD, or where that is (next to) nothing the standard deviation."""
    location = median(values)
    spread = 1.4826 * median(abs(value - location) for value in values)
    if spread <= 1e-9 * max(map(abs, values)):
        mean = math.fsum(values) / len(values)
        spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    return location, spread


def _transformed(value: float, unit: float, centre: float) -> float:
    return math.log(max(value, centre)) if unit == 0 else math.asinh((value - centre) / unit)


@dataclass
class Combination:
    """One score from a dict of scores, higher is worse.

    method: over z_j, the robust z of each score (`Scale`):
        max          the largest z_j
        sum          sum of max(z_j, 0)
        top3         mean of the three largest z_j
        fisher       -2 sum log p_j, p_j = (1 + #{references >= x_j}) / (K + 1): ties count as exceeding, so a constant says nothing
        mahalanobis  sqrt((z - m)' S^-1 (z - m)), S shrunk (Ledoit, Wolf 2004); the one method that is two-sided, and not
                     monotone in a single score
        families     sum over families of max(u_f, 0), u_f how far the family's largest z_j is above its median, in units of how far
                     the upper tenth of honest ones begins above it (`Scale.by_upper_tenth`)
        detectors    sum over detectors of max(u_d - 1/2, 0), u_d the same of a detector: of many, what is usual adds up
    use: which scores take part; None is all that the references have. Others are ignored.
    given_size: every z_j but those of `update-norm` itself is taken as what the size of the update does not explain (`Trend`):
        who trains longer moves everything further, honestly. It changes nothing without `update-norm` among the scores, or with
        fewer than 10 references, of which a line would follow the noise.

    A score that is not finite makes the combination infinite. One that is missing counts as the references' median.

    >>> references = [{"a": 1.0 + k / 10, "b": float(k % 3)} for k in range(10)]
    >>> combination = Combination("sum").fit(references)
    >>> combination.score({"a": 9.0, "b": 0.0}) > combination.score({"a": 1.5, "b": 0.0})
    True
    """

    method: Method = "max"
    use: tuple[str, ...] | None = None
    given_size: bool = False
    scales_: dict[str, Scale] = field(default_factory=dict, repr=False)
    trends_: dict[str, Trend] = field(default_factory=dict, repr=False)
    references_: dict[str, list[float]] = field(default_factory=dict, repr=False)
    group_scales_: dict[str, Scale] = field(default_factory=dict, repr=False)
    mean_: Tensor = field(default_factory=lambda: torch.zeros(0), repr=False, compare=False)
    precision_: Tensor = field(default_factory=lambda: torch.zeros(0, 0), repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise UnknownNameError("combination", self.method, get_args(Method))

    def fit(self, references: Sequence[Scores]) -> Self:
        """references: the score dicts of honest fine-tunes that calibrate nothing.

        Raises ConfigurationError for fewer than 2, or where none has a finite score of those to use.
        """
        if len(references) < 2:
            raise ConfigurationError(f"a combination is fitted on at least 2 references, not {len(references)}")
        names = dict.fromkeys(name for scores in references for name in scores)
        columns = {
            name: [s[name] for s in references if name in s and math.isfinite(s[name])]
            for name in names
            if self.use is None or name in self.use
        }
        columns = {name: values for name, values in columns.items() if values}
        if not columns:
            raise ConfigurationError("the references hold none of the scores to combine")
        self.scales_ = {name: Scale.of(values) for name, values in columns.items()}
        self.trends_ = {}
        if self.given_size and SIZE in self.scales_ and len(references) >= _FEWEST_FOR_A_TREND:
            plain = [self.z(scores) for scores in references]
            sizes = [row[SIZE] for row in plain]
            others = [name for name in self.scales_ if detector_of(name) != SIZE]
            self.trends_ = {name: Trend.of(sizes, [row[name] for row in plain]) for name in others}
        rows = [self.z(scores) for scores in references]
        self.references_ = {name: sorted(row[name] for row in rows) for name in self.scales_}
        self.group_scales_ = {
            group: Scale.by_upper_tenth([min(max(row[name] for name in members), 1e6) for row in rows])
            for group, members in self._members(self._group).items()
        }
        if self.method == "mahalanobis":
            self._fit_covariance(rows)
        return self

    def z(self, scores: Scores) -> dict[str, float]:
        """z_j of every fitted score, 0 for one that is missing. Raises GuardError before `fit`."""
        self._check_fitted()
        z = {name: scale.z(scores[name]) if name in scores else 0.0 for name, scale in self.scales_.items()}
        explained = {name: trend.z(z[name], z[SIZE]) for name, trend in self.trends_.items() if name in scores}
        return z | explained

    def score(self, scores: Scores) -> float:
        """The combined score; infinite where a score is not finite. Raises GuardError before `fit`."""
        return self._combined(self.z(scores), self.scales_, scores)

    def parts(self, scores: Scores) -> dict[str, float]:
        """What each family, or each detector, adds to the score of the methods that are named after them, which is the sum of it.

        Raises GuardError before `fit`, ConfigurationError for another method.
        """
        if self.method not in _BEYOND:
            raise ConfigurationError(f"the combination {self.method!r} is no sum of parts")
        return self._parts(self.z(scores))

    def families(self, scores: Scores) -> dict[str, float]:
        """The combined score of each family by itself, by the same method. Raises GuardError before `fit`."""
        z = self.z(scores)
        return {family: self._combined(z, members, scores) for family, members in self._members(family_of).items()}

    def _check_fitted(self) -> None:
        if not self.scales_:
            raise GuardError("the combination has not been fitted", hint="call fit(scores of the fitting references)")

    @property
    def _group(self) -> Callable[[str], str]:
        """What a score belongs to, where scores are combined by groups."""
        return detector_of if self.method == "detectors" else family_of

    def _members(self, group: Callable[[str], str]) -> dict[str, list[str]]:
        self._check_fitted()
        found: dict[str, list[str]] = {}
        for name in self.scales_:
            found.setdefault(group(name), []).append(name)
        return found

    def _combined(self, z: Mapping[str, float], names: Iterable[str], known: Container[str]) -> float:
        """known: the scores that the model has, by name."""
        names = list(names)
        values = [z[name] for name in names]
        if math.inf in values:
            return math.inf
        positive = [max(value, 0.0) for value in values]
        top = sorted(values)[-3:]
        match self.method:
            case "max":
                found = max(values)
            case "sum":
                found = math.fsum(positive)
            case "top3":
                found = math.fsum(top) / len(top)
            case "fisher":
                found = -2 * math.fsum(math.log(self._rank_p(name, z)) for name in names if name in known)
            case "mahalanobis":
                found = self._distance(z, names)
            case "families" | "detectors":
                found = math.fsum(self._parts({name: z[name] for name in names}).values())
        return found

    def _parts(self, z: Mapping[str, float]) -> dict[str, float]:
        """By group. A stored guard has them in another order, so they must be added without rounding (`fsum`)."""
        beyond, found = _BEYOND[self.method], {}
        for group, members in self._members(self._group).items():
            mine = [z[name] for name in members if name in z]
            found[group] = max(self.group_scales_[group].z(max(mine)) - beyond, 0.0) if mine else 0.0
        return found

    def _rank_p(self, name: str, z: Mapping[str, float]) -> float:
        references = self.references_[name]
        return (1 + len(references) - bisect_left(references, z[name])) / (len(references) + 1)

    def _fit_covariance(self, rows: Sequence[Mapping[str, float]]) -> None:
        # A reference far out on one score must not stretch the whole matrix.
        z = torch.tensor([list(row.values()) for row in rows], dtype=torch.float64).nan_to_num(posinf=_FENCE)
        z = z.clamp(-_FENCE, _FENCE)
        self.mean_, self.precision_ = z.mean(0), torch.linalg.inv(shrunk_covariance(z))

    def _distance(self, z: Mapping[str, float], names: Iterable[str]) -> float:
        """Of the scores named, the rest taken at the references' mean."""
        wanted = set(names)
        taken = torch.tensor([z[name] if name in wanted else math.nan for name in self.scales_], dtype=torch.float64)
        away = (taken - self.mean_).nan_to_num(nan=0.0)
        return math.sqrt(max(float(away @ self.precision_ @ away), 0.0))


def shrunk_covariance(rows: Tensor) -> Tensor:
    """(m, m) float64: (1 - a) S + a mean(diag S) I of rows (K, m), with the a of Ledoit and Wolf 2004, Lemma 3.2-3.3.

    Invertible whatever K and m, unless nothing varies; then it is the identity.
    """
    x = rows.double() - rows.double().mean(0)
    count, width = x.shape
    covariance = x.T @ x / count
    level = float(covariance.diagonal().mean())
    if level <= 0:
        return torch.eye(width, dtype=torch.float64)
    target = level * torch.eye(width, dtype=torch.float64)
    distance = float((covariance - target).square().sum())
    noise = float((x.square().sum(1).square().sum() / count - covariance.square().sum()) / count)
    share = 1.0 if distance <= 0 else min(1.0, max(noise, 0.0) / distance)
    # A trace of the identity stays, so that scores that copy each other cannot make the matrix singular.
    share = max(share, 1e-6)
    return (1 - share) * covariance + share * target
