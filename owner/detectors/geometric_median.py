"""The geometric median: the point nearest to many points, which a minority of outliers cannot carry off."""

from __future__ import annotations

from torch import Tensor


def geometric_median(points: Tensor, *, iterations: int = 50) -> Tensor:
    """The point (d,) with the least summed distance to `points` (n, d), by Weiszfeld's iteration, smoothed at the points.

    points: finite. iterations: fixed, so that the result depends on the points alone.

    >>> import torch
    >>> geometric_median(torch.tensor([[0.0], [0.0], [9.0]])).round(decimals=3)
    tensor([0.])
    """
    x = points.double()
    centre = x.mean(0)
    smallest = 1e-9 + 1e-6 * (x - centre).norm(dim=1).mean()
    for _ in range(iterations):
        weights = 1 / (x - centre).norm(dim=1).clamp(min=smallest)
        centre = (weights[:, None] * x).sum(0) / weights.sum()
    return centre.float()
