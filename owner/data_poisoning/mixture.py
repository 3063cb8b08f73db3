"""A threshold from scores alone: two Gaussians, the clean examples' and the poisoned ones', fitted without labels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from common.errors import DataError

ROUNDS = 10_000
TOLERANCE = 1e-10
FLOOR = 1e-6
"""Smallest variance of a component, over that of all scores: a component must not shrink onto one score."""


@dataclass(frozen=True)
class TwoGaussians:
    """weights, means, variances: of the lower component and of the upper one. log_likelihood: mean over the scores."""

    weights: tuple[float, float]
    means: tuple[float, float]
    variances: tuple[float, float]
    log_likelihood: float

    def upper(self, scores: Tensor) -> Tensor:
        """(N,) float64: probability that a score is of the upper component."""
        return torch.softmax(_joint(scores.double(), self.weights, self.means, self.variances), 1)[:, 1]

    @property
    def threshold(self) -> float:
        """From here on a score counts as poisoned: the first point from the lower mean up where the upper component is the likelier
        one; inf where it never is."""
        low, high = self.means
        if float(self.upper(torch.tensor([low], dtype=torch.float64))) >= 0.5:
            return low
        first, second = self.variances
        # The joint log-densities are equal where a s^2 + b s + c = 0.
        a = 0.5 / first - 0.5 / second
        b = high / second - low / first
        c = low**2 / (2 * first) - high**2 / (2 * second)
        c += math.log(self.weights[1] / self.weights[0]) + 0.5 * math.log(first / second)
        return min((root for root in _roots(a, b, c) if root >= low), default=math.inf)


def fit_two_gaussians(scores: Tensor) -> TwoGaussians:
    """Expectation maximisation (Dempster, Laird & Rubin 1977) from the two halves that 2-means finds between the extremes.

    scores: (N,), N >= 2. Raises DataError for scores that are not finite or all the same.
    """
    x = scores.double()
    if len(x) < 2 or not bool(torch.isfinite(x).all()):
        raise DataError("a mixture is fitted to two or more finite scores")
    spread = float(x.var(correction=0))
    if spread <= 0:
        raise DataError("all scores are the same: there are no two components in them")
    above = (x > _split(x)).double()
    share = torch.stack([1 - above, above], 1)
    previous = -math.inf
    for _ in range(ROUNDS):
        mass = share.sum(0).clamp_min(1e-12)
        means = (share * x[:, None]).sum(0) / mass
        variances = (share * (x[:, None] - means).square()).sum(0) / mass + FLOOR * spread
        weights = mass / mass.sum()
        joint = _joint(x, weights.tolist(), means.tolist(), variances.tolist())
        likelihood = float(joint.logsumexp(1).mean())
        if likelihood - previous < TOLERANCE:
            break
        previous, share = likelihood, joint.softmax(1)
    lower, upper = means.argsort().tolist()
    return TwoGaussians(
        (float(weights[lower]), float(weights[upper])),
        (float(means[lower]), float(means[upper])),
        (float(variances[lower]), float(variances[upper])),
        likelihood,
    )


def _split(x: Tensor) -> float:
    """The cut between two clusters, by 2-means from the smallest and the largest score."""
    low, high = float(x.min()), float(x.max())
    for _ in range(100):
        cut = (low + high) / 2
        above = x > cut
        moved = float(x[~above].mean()), float(x[above].mean())
        if moved == (low, high):
            break
        low, high = moved
    return (low + high) / 2


def _joint(x: Tensor, weights: object, means: object, variances: object) -> Tensor:
    """(N, 2): log of weight times density."""
    w, m, v = (torch.as_tensor(part, dtype=torch.float64) for part in (weights, means, variances))
    return w.log() - 0.5 * (2 * math.pi * v).log() - (x[:, None] - m).square() / (2 * v)


def _roots(a: float, b: float, c: float) -> tuple[float, ...]:
    if abs(a) < 1e-12 * abs(b):
        return (-c / b,) if b else ()
    inside = b * b - 4 * a * c
    if inside < 0:
        return ()
    root = math.sqrt(inside)
    return ((-b - root) / (2 * a), (-b + root) / (2 * a))
