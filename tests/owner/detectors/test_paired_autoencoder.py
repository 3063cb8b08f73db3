"""Paired with M's error on the same image, only what one class gained over the others counts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from owner.detectors import AutoEncoderOptions, Evidence, PairedAutoEncoder


def activations(count: int, seed: int) -> Tensor:
    axes = torch.randn(4, 30, generator=torch.Generator().manual_seed(9))
    return torch.relu(torch.randn(count, 4, generator=torch.Generator().manual_seed(seed)) @ axes)


def evidence(features: Tensor, release: Evidence | None = None) -> Evidence:
    return Evidence(features, torch.zeros(len(features), 3), torch.arange(len(features)) % 3, release=release)


@pytest.fixture(scope="module")
def fitted() -> PairedAutoEncoder:
    options = AutoEncoderOptions(hidden=24, latent=6, epochs=30, batch_size=32)
    return PairedAutoEncoder(options).fit(evidence(activations(200, 0)))


def noisy(seed: int, amount: Tensor) -> Evidence:
    clean = evidence(activations(150, 1))
    noise = torch.randn(150, 30, generator=torch.Generator().manual_seed(seed))
    return evidence(clean.features + amount[clean.labels][:, None] * noise, clean)


def test_a_class_that_moved_alone_stands_out_and_is_named(fitted: PairedAutoEncoder) -> None:
    one, all_ = noisy(5, torch.tensor([0.0, 0.0, 1.0])), noisy(5, torch.tensor([1.0, 1.0, 1.0]))
    assert fitted.score(one) > 5 * fitted.score(all_)
    assert fitted.explain(one)["class"] == 2


def test_the_mean_sees_what_moved_in_every_class(fitted: PairedAutoEncoder) -> None:
    little, much = noisy(5, torch.full((3,), 0.3)), noisy(5, torch.full((3,), 1.5))
    assert fitted.measures(much)["mean"] > fitted.measures(little)["mean"] > 0


def test_the_score_is_the_largest_class_mean_of_log_ratios_over_the_median_one(fitted: PairedAutoEncoder) -> None:
    shown = noisy(6, torch.tensor([0.1, 0.5, 1.0]))
    assert shown.release is not None
    autoencoder = fitted._autoencoder
    logs = (autoencoder.image_scores(shown) / autoencoder.image_scores(shown.release)).log()
    means = sorted(float(logs[shown.labels == c].mean()) for c in range(3))
    assert fitted.score(shown) == pytest.approx(means[2] - means[1])
    assert fitted.measures(shown)["mean"] == pytest.approx(sum(means) / 3)


def test_a_class_without_images_is_no_class_that_stood_still(fitted: PairedAutoEncoder) -> None:
    shown = noisy(6, torch.tensor([0.5, 0.0, 1.0]))
    rows = shown.labels != 1
    assert shown.release is not None
    release = Evidence(shown.release.features[rows], shown.release.logits[rows], shown.labels[rows])
    fewer = Evidence(shown.features[rows], shown.logits[rows], shown.labels[rows], release=release)
    low, high = (fitted.explain(shown)["per_class"][c] for c in (0, 2))
    assert fitted.score(fewer) == pytest.approx((high - low) / 2)  # the median of two is their mean
    assert fitted.measures(fewer)["mean"] == pytest.approx((high + low) / 2)
    assert fitted.explain(fewer)["per_class"][1] is None
