"""Sums of squares in float64 over float32 tensors, block by block: a float64 copy of the whole would not fit the cache, and
writing and reading it would cost more than the sum."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_ROWS = 64
_ENTRIES = 1 << 16


def squared_distances(x: Tensor, y: Tensor | None = None) -> Tensor:
    """||x_i - y_i||^2, or ||x_i||^2, (N,) float64, of rows (N, d) of any floating dtype.

    >>> squared_distances(torch.tensor([[1.0, 2.0], [0.0, 3.0]]), torch.ones(2, 2))
    tensor([1., 5.], dtype=torch.float64)
    """
    found = torch.empty(len(x), dtype=torch.float64)
    for start in range(0, len(x), _ROWS):
        rows = slice(start, start + _ROWS)
        block = x[rows].to(torch.float64, copy=True)
        if y is not None:
            block.sub_(y[rows])
        torch.sum(block.square_(), 1, out=found[rows])
    return found


def norm(tensor: Tensor) -> float:
    """Euclidean norm of all entries; squares of float32 do not overflow.

    >>> round(norm(torch.tensor([[3e30], [4e30]])) / 1e30, 6)
    5.0
    """
    flat = tensor.reshape(-1)
    return math.hypot(
        *(
            float(torch.linalg.vector_norm(flat[start : start + _ENTRIES], dtype=torch.float64))
            for start in range(0, len(flat), _ENTRIES)
        )
    )
