"""The threshold: two Gaussians as scikit-learn fits them, and the point where the upper one becomes the likelier."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.mixture import GaussianMixture

from common.errors import DataError
from owner.data_poisoning import TwoGaussians, fit_two_gaussians


def scores(low: int = 400, high: int = 80, *, gap: float = 4.0, wide: float = 1.5, seed: int = 0) -> torch.Tensor:
    draws = np.random.default_rng(seed)
    return torch.from_numpy(np.concatenate([draws.normal(1, 0.5, low), draws.normal(1 + gap, wide, high)]))


@pytest.mark.parametrize("gap", [2.0, 4.0, 9.0])
@pytest.mark.parametrize("high", [30, 300])
def test_the_mixture_is_that_of_scikit_learn(gap: float, high: int) -> None:
    x = scores(high=high, gap=gap)
    ours = fit_two_gaussians(x)
    theirs = GaussianMixture(2, tol=1e-12, max_iter=20_000, means_init=[[1.0], [1 + gap]]).fit(x.numpy()[:, None])
    order = theirs.means_[:, 0].argsort()
    assert ours.means == pytest.approx(theirs.means_[order, 0], rel=1e-3)
    assert ours.variances == pytest.approx(theirs.covariances_[order, 0, 0], rel=1e-2)
    assert ours.weights == pytest.approx(theirs.weights_[order], rel=1e-2)
    assert ours.log_likelihood == pytest.approx(theirs.score(x.numpy()[:, None]), abs=1e-5)
    posterior = theirs.predict_proba(x.numpy()[:, None])[:, order[1]]
    assert ours.upper(x).numpy() == pytest.approx(posterior, abs=1e-2)


@pytest.mark.parametrize("variances", [(0.25, 2.0), (2.0, 0.25), (1.0, 1.0)])
def test_the_threshold_is_where_the_weighted_densities_cross(variances: tuple[float, float]) -> None:
    mixture = TwoGaussians((0.8, 0.2), (1.0, 5.0), variances, 0.0)
    cut = mixture.threshold
    assert 1 < cut < 5
    low, high = (w * norm(m, math.sqrt(v)).pdf(cut) for w, m, v in zip((0.8, 0.2), (1.0, 5.0), variances, strict=True))
    assert low == pytest.approx(high, rel=1e-9)
    assert float(mixture.upper(torch.tensor([cut], dtype=torch.float64))) == pytest.approx(0.5, abs=1e-9)


def test_where_the_upper_component_is_everywhere_likelier_the_lower_mean_is_the_threshold() -> None:
    assert TwoGaussians((0.01, 0.99), (1.0, 1.1), (1.0, 1.0), 0.0).threshold == 1.0


def test_where_the_upper_component_is_never_likelier_nothing_is_flagged() -> None:
    assert TwoGaussians((0.999, 0.001), (1.0, 1.1), (1.0, 0.9), 0.0).threshold == math.inf


def test_a_component_does_not_shrink_onto_one_score() -> None:
    mixture = fit_two_gaussians(torch.cat([scores(high=0), torch.tensor([50.0])]))
    assert mixture.variances[1] > 0
    assert 5 < mixture.threshold < 50


@pytest.mark.parametrize("x", [torch.tensor([1.0]), torch.tensor([1.0, torch.nan]), torch.tensor([1.0, torch.inf])])
def test_scores_that_make_no_mixture_are_refused(x: torch.Tensor) -> None:
    with pytest.raises(DataError, match="two or more finite scores"):
        fit_two_gaussians(x)


def test_equal_scores_are_refused() -> None:
    with pytest.raises(DataError, match="all scores are the same"):
        fit_two_gaussians(torch.ones(5))
