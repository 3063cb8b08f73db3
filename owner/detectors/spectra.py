"""The top singular value of a matrix, as cheaply as a detector needs it."""

from __future__ import annotations

import torch
from torch import Tensor

from owner.detectors import sums

_EXACT_SIDE = 48
_BLOCK = 6
_ROUNDS = 3


def top_singular(matrix: Tensor, *, seed: int = 0, norm: float | None = None) -> tuple[float, Tensor]:
    """Share sigma_1^2 / ||A||_F^2 in [0, 1] of a matrix (m, n), and its first right singular vector (n,) float64.

    Exact for a side of up to 48, otherwise by subspace iteration from a seeded start (Halko, Martinsson, Tropp 2011,
    algorithm 4.4: 6 vectors, 3 rounds), which can only underestimate
    the share, and hardly where it is large.
    norm: ||A||_F, where it is known already.
    A matrix of zeros gives 0 and a vector of zeros.

    >>> share, direction = top_singular(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
    >>> round(share, 6), direction.abs().round().tolist()
    (0.9, [1.0, 0.0])
    """
    largest = float(torch.linalg.vector_norm(matrix, torch.inf)) if matrix.numel() else 0.0
    if largest == 0:
        return 0.0, torch.zeros(matrix.shape[-1], dtype=torch.float64)
    exact = min(matrix.shape) <= _EXACT_SIDE
    # Squares of huge entries would overflow in float32; shares do not change with the scale.
    scaled = matrix.double() / largest if exact else (matrix / largest).float()
    if exact:
        tall = scaled.shape[0] >= scaled.shape[1]
        values, vectors = torch.linalg.eigh(scaled.T @ scaled if tall else scaled @ scaled.T)
        direction = vectors[:, -1] if tall else scaled.T @ vectors[:, -1]
        return float(values[-1] / values.clamp(min=0).sum()), _unit(direction)
    right = torch.randn(scaled.shape[1], _BLOCK, generator=torch.Generator().manual_seed(seed))
    for _ in range(_ROUNDS):
        right = torch.linalg.qr(scaled.T @ (scaled @ right)).Q
    reduced = scaled @ right
    values, vectors = torch.linalg.eigh((reduced.T @ reduced).double())
    size = sums.norm(scaled) if norm is None else norm / largest
    share = float(values[-1]) / size**2
    return min(share, 1.0), _unit(right.double() @ vectors[:, -1])


def _unit(vector: Tensor) -> Tensor:
    unit: Tensor = vector / vector.norm().clamp(min=torch.finfo(torch.float64).tiny)
    return unit
