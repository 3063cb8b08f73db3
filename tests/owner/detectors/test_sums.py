"""Sums block by block, against numpy's over everything at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from owner.detectors import sums


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rows", [0, 1, 64, 65, 200])
def test_squared_distances_are_numpys_however_many_blocks_there_are(rows: int) -> None:
    x, y = random(rows, 7), random(rows, 7, seed=1)
    wide = x.double().numpy(), y.double().numpy()
    np.testing.assert_allclose(sums.squared_distances(x, y).numpy(), ((wide[0] - wide[1]) ** 2).sum(1), rtol=1e-12)
    np.testing.assert_allclose(sums.squared_distances(x).numpy(), (wide[0] ** 2).sum(1), rtol=1e-12)


@pytest.mark.parametrize("entries", [0, 5, sums._ENTRIES, 2 * sums._ENTRIES + 3])
def test_the_norm_is_numpys_however_many_blocks_there_are(entries: int) -> None:
    values = random(entries)
    values[-3:] *= 1e3
    assert sums.norm(values) == pytest.approx(float(np.linalg.norm(values.double().numpy())))
