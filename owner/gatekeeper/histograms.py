"""Histograms of per-image errors on a logarithmic axis, in the manner of the paper's Fig. 5."""

from __future__ import annotations

import math

import torch
from torch import Tensor

BINS = 60


def log_edges(*errors: Tensor, bins: int = BINS) -> list[float]:
    """bins + 1 edges, evenly spaced in log10, from a decade below the smallest to two above the largest positive error.

    >>> [round(e, 3) for e in log_edges(torch.tensor([1.0, 10.0]), bins=4)]
    [0.1, 1.0, 10.0, 100.0, 1000.0]
    """
    positive = torch.cat([e.double().flatten() for e in errors])
    positive = positive[(positive > 0) & torch.isfinite(positive)]
    low, high = (float(positive.min()), float(positive.max())) if len(positive) else (1.0, 1.0)
    return [float(e) for e in torch.logspace(math.log10(low) - 1, math.log10(high) + 2, bins + 1, dtype=torch.float64)]


def counts(errors: Tensor, edges: list[float]) -> list[int]:
    """How many errors fall into each bin; those beyond either end count in the last bin there, NaN in the uppermost.

    >>> counts(torch.tensor([0.0, 1.5, 99.0]), [1.0, 2.0, 4.0])
    [2, 1]
    """
    inner = torch.tensor(edges[1:-1], dtype=torch.float64)
    finite = torch.nan_to_num(errors.double().flatten(), nan=math.inf, posinf=math.inf)
    return [int(n) for n in torch.bincount(torch.bucketize(finite, inner, right=True), minlength=len(edges) - 1)]
