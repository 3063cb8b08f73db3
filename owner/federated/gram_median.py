"""The geometric median of few long vectors, found on their Gram matrix: an iteration costs n^2 and not n times their length."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from common.errors import GuardError

_COLUMNS = 1 << 15
"""Taken at a time, so that float64 copies stay a few megabytes."""


def gram_geometric_median(points: Sequence[Tensor], *, iterations: int = 50) -> Tensor:
    """What `owner.detectors.geometric_median` makes of `points` stacked, in the same iterates: n tensors of one shape, the median in that shape.

    Every iterate is a weighted mean of the points, centre = sum_j p_j x_j, and its distances follow from G = X X^T alone:
    ||x_i - centre||^2 = G_ii - 2 (G p)_i + p^T G p. G is of float64 and of points less their mean; what cancels is then below 1e-7
    of the points' spread, where distances are clamped at 1e-6 of it anyway.

    points: finite, at least one. iterations: fixed, so that the result depends on the points alone.
    Raises GuardError for no points.

    >>> gram_geometric_median([torch.tensor([0.0]), torch.tensor([0.0]), torch.tensor([9.0])]).round(decimals=3)
    tensor([0.])
    """
    if not len(points):
        raise GuardError("there is no geometric median of no points")
    flat = [point.detach().reshape(-1) for point in points]
    gram = torch.zeros(len(flat), len(flat), dtype=torch.float64)
    bounds = range(0, len(flat[0]), _COLUMNS)
    for start in bounds:
        columns = _columns(flat, start)
        columns -= columns.mean(0)
        gram += columns @ columns.T
    shares = _weiszfeld(gram, iterations)
    centre = torch.cat([(shares[:, None] * _columns(flat, start)).sum(0).float() for start in bounds])
    return centre.view(points[0].shape)


def _weiszfeld(gram: Tensor, iterations: int) -> Tensor:
    """Shares (n,) of the points in their median, which sum to 1."""
    shares = torch.full((len(gram),), 1 / len(gram), dtype=torch.float64)
    smallest = 1e-9 + 1e-6 * _distances(gram, shares).mean()
    for _ in range(iterations):
        weights = 1 / _distances(gram, shares).clamp(min=smallest)
        shares = weights / weights.sum()
    return shares


def _distances(gram: Tensor, shares: Tensor) -> Tensor:
    """(n,) of each point from the mean by `shares`."""
    products = gram @ shares
    return (gram.diagonal() - 2 * products + shares @ products).clamp(min=0).sqrt()


def _columns(flat: Sequence[Tensor], start: int) -> Tensor:
    return torch.stack([point[start : start + _COLUMNS] for point in flat]).double()
