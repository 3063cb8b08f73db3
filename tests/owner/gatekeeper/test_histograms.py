"""Histograms of errors on a logarithmic axis."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from owner.gatekeeper.histograms import counts, log_edges


def test_counts_agree_with_numpy_inside_the_edges() -> None:
    errors = torch.from_numpy(np.random.default_rng(0).lognormal(sigma=2, size=1000))
    edges = log_edges(errors)
    assert counts(errors, edges) == np.histogram(errors.numpy(), bins=np.array(edges))[0].tolist()


def test_edges_are_even_in_the_logarithm_and_leave_room_for_submissions() -> None:
    edges = log_edges(torch.tensor([0.5]), torch.tensor([50.0]), bins=10)
    assert edges[0] == pytest.approx(0.05)
    assert edges[-1] == pytest.approx(5000)
    assert np.allclose(np.diff(np.log10(edges)), 0.5)


@pytest.mark.parametrize("errors", [[0.0, 0.0], [1e300, -1.0], [math.nan, math.inf], []])
def test_every_error_is_counted_whatever_it_is(errors: list[float]) -> None:
    assert sum(counts(torch.tensor(errors, dtype=torch.float64), [1.0, 2.0, 3.0])) == len(errors)


def test_errors_that_are_not_finite_count_as_the_worst() -> None:
    assert counts(torch.tensor([math.nan, math.inf]), [1.0, 2.0, 3.0]) == [0, 2]


def test_a_perfect_auto_encoder_still_has_an_axis() -> None:
    assert all(math.isfinite(e) for e in log_edges(torch.zeros(5)))
