"""The victim: a linear support vector machine of two classes, exact, so that an attacker can differentiate through its training.

min_w 1/2 |w|^2 + C sum_i max(0, 1 - y_i w.x_i)^2 over inputs with a 1 appended, y = +1 for class 1 and -1 for class 0: what
scikit-learn's LinearSVC minimises by default. The squared hinge loss makes it smooth, and Newton steps solve it exactly
(Chapelle 2007, "Training a Support Vector Machine in the Primal", 3).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from common.errors import ConfigurationError, DataError, ModelError

STEPS = 100
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Svm:
    """weights: (d + 1,) float64, the last one the bias. cost: C."""

    weights: Tensor
    cost: float

    def decide(self, inputs: Tensor) -> Tensor:
        """(N,) float64, above 0 for class 1. inputs: (N, d)."""
        return with_one(inputs) @ self.weights

    def accuracy(self, inputs: Tensor, labels: Tensor) -> float:
        return float(((self.decide(inputs) > 0) == (labels == 1)).double().mean())

    def loss(self, inputs: Tensor, labels: Tensor) -> float:
        """Mean squared hinge loss."""
        return float((1 - signs(labels) * self.decide(inputs)).clamp_min(0).square().mean())


def fit_svm(inputs: Tensor, labels: Tensor, *, cost: float = 1.0, start: Tensor | None = None) -> Svm:
    """inputs: (N, d) floating; labels: (N,) of 0 and 1. start: weights to begin at, (d + 1,); they change the time it takes alone.

    >>> fit_svm(torch.tensor([[0.0], [1.0]]), torch.tensor([0, 1]), cost=100.0).accuracy(torch.tensor([[0.9]]), torch.tensor([1]))
    1.0

    Raises DataError for labels that are not 0 and 1, both of them; ConfigurationError for a cost that is not positive;
    ModelError where Newton's method does not end.
    """
    if not 0 < cost < float("inf"):
        raise ConfigurationError(f"cost must be a positive number, not {cost!r}")
    if set(found := torch.unique(labels).tolist()) != {0, 1}:
        raise DataError(f"a support vector machine learns from the classes 0 and 1, not {found}")
    rows, y = with_one(inputs), signs(labels)
    w = torch.zeros(rows.shape[1], dtype=torch.float64) if start is None else start.clone()
    value = _objective(rows, y, w, cost)
    for _ in range(STEPS):
        slack = 1 - y * (rows @ w)
        active = slack > 0
        gradient = w - 2 * cost * rows[active].T @ (y * slack)[active]
        if float(gradient.norm()) <= TOLERANCE * (1 + float(w.norm())):
            return Svm(w, cost)
        step = solve_hessian(rows[active], cost, gradient)
        share, expected = 1.0, float(gradient @ step)
        while True:
            ahead = w - share * step
            reached = _objective(rows, y, ahead, cost)
            if reached <= value - 1e-4 * share * expected:
                break
            share /= 2
            if share < 1e-12:  # no representable step goes down: this is the minimum
                return Svm(w, cost)
        w, value = ahead, reached
    raise ModelError(f"the support vector machine was not done after {STEPS} Newton steps", hint="lower its cost")


def solve_hessian(active: Tensor, cost: float, vector: Tensor) -> Tensor:
    """(I + 2 C A^T A)^-1 v: the Hessian of the objective, inverted. active: A, (a, d + 1) rows with slack; vector: v, (d + 1,)."""
    count, width = active.shape
    if count == 0:
        return vector
    if count < width:  # Woodbury's identity: a system of a unknowns in place of d + 1
        inner = active @ active.T
        inner.diagonal().add_(1 / (2 * cost))
        return vector - active.T @ _solved(inner, active @ vector)
    hessian = 2 * cost * active.T @ active
    hessian.diagonal().add_(1)
    return _solved(hessian, vector)


def with_one(inputs: Tensor) -> Tensor:
    """(N, d + 1) float64: the bias is the weight of a constant."""
    return torch.cat([inputs.double(), torch.ones(len(inputs), 1, dtype=torch.float64)], 1)


def signs(labels: Tensor) -> Tensor:
    """(N,) float64: -1 for class 0, +1 for class 1."""
    return labels.double() * 2 - 1


def _solved(matrix: Tensor, vector: Tensor) -> Tensor:
    return torch.cholesky_solve(vector[:, None], torch.linalg.cholesky(matrix)).squeeze(1)


def _objective(rows: Tensor, y: Tensor, w: Tensor, cost: float) -> float:
    return float(0.5 * w @ w + cost * (1 - y * (rows @ w)).clamp_min(0).square().sum())
