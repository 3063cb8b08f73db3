"""The top singular value, against the full decomposition."""

from __future__ import annotations

import pytest
import torch

from owner.detectors.spectra import top_singular


@pytest.mark.parametrize("shape", [(6, 30), (30, 6), (200, 130), (130, 200), (1, 9)])
def test_it_is_that_of_the_full_decomposition(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    matrix += 3 * torch.outer(torch.ones(shape[0]), torch.linspace(-1, 1, shape[1]))
    _, values, vectors = torch.linalg.svd(matrix.double(), full_matrices=False)
    share, direction = top_singular(matrix)
    assert share == pytest.approx(float(values[0] ** 2 / values.square().sum()), rel=1e-3)
    assert top_singular(matrix, norm=float(matrix.norm()))[0] == pytest.approx(share, rel=1e-5)
    assert abs(float(direction @ vectors[0])) == pytest.approx(1, abs=1e-3)


def test_on_a_flat_spectrum_the_estimate_stays_below_and_near() -> None:
    matrix = torch.randn(300, 200, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(matrix)
    exact = float(values[0] ** 2 / values.square().sum())
    assert 0.75 * exact < top_singular(matrix)[0] <= exact * (1 + 1e-5)


def test_zeros_have_no_direction() -> None:
    share, direction = top_singular(torch.zeros(60, 60))
    assert (share, float(direction.norm())) == (0.0, 0.0)


def test_scale_does_not_matter_even_beyond_single_precision_squares() -> None:
    matrix = torch.randn(60, 70, generator=torch.Generator().manual_seed(2))
    assert top_singular(matrix * 1e30)[0] == pytest.approx(top_singular(matrix)[0], rel=1e-4)
