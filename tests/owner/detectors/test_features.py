"""Drift of activations: how far, how unevenly, along how many directions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from owner.detectors import CKA, DriftConcentration, Evidence, FeatureDrift, FeatureSpectrum
from tests.owner.detectors.material import shown

N, D, C = 120, 16, 4
LABELS = torch.arange(N) % C
LOGITS = torch.zeros(N, C)


def noise(seed: int, width: int = D) -> Tensor:
    return torch.randn(N, width, generator=torch.Generator().manual_seed(seed))


RELEASE = shown(noise(0), LOGITS, LABELS)


def moved(change: Tensor) -> Evidence:
    return shown(RELEASE.features + change, LOGITS, LABELS, RELEASE)


def test_drift_is_the_moved_energy_over_the_releases_per_class() -> None:
    found = FeatureDrift().explain(moved(torch.where(LABELS[:, None] == 1, RELEASE.features, 0)))
    assert found["per_class"] == pytest.approx([0, 1, 0, 0])
    assert found["mean"] == pytest.approx(0.25)
    assert found["largest"] == pytest.approx(1)


def test_drift_of_a_class_on_which_the_release_is_silent_is_finite() -> None:
    features = torch.where(LABELS[:, None] == 2, 0, noise(0))
    silent = shown(features, LOGITS, LABELS)
    assert 0 < FeatureDrift().score(shown(features + 1, LOGITS, LABELS, silent)) < 10


def test_concentration_does_not_depend_on_how_far_all_moved() -> None:
    weak, strong = (DriftConcentration().score(moved(factor * noise(1))) for factor in (0.1, 3.0))
    assert weak == pytest.approx(strong, rel=1e-4)
    assert weak < 1.5


def test_one_class_that_moves_more_is_concentration_and_is_named() -> None:
    uneven = moved(noise(1) * torch.where(LABELS == 3, 3.0, 0.5)[:, None])
    assert DriftConcentration().score(uneven) > 20
    assert DriftConcentration().explain(uneven)["class"] == 3


def test_one_class_among_still_ones_gives_a_finite_concentration() -> None:
    assert 100 < DriftConcentration().score(moved(torch.where(LABELS[:, None] == 0, 1.0, 0.0).expand(N, D))) < 1e6


def test_cka_is_blind_to_rotation_and_scale() -> None:
    rotation = torch.linalg.qr(noise(2)[:D]).Q
    assert CKA().score(shown(5 * RELEASE.features @ rotation, LOGITS, LABELS, RELEASE)) == pytest.approx(0, abs=1e-5)


def test_cka_is_the_same_by_both_of_its_formulas() -> None:
    """With more features than images the other product is used: zero columns change nothing but which one."""
    wide = torch.zeros(N, 200)
    padded = shown(torch.cat([RELEASE.features, wide], 1), LOGITS, LABELS)
    other = torch.cat([RELEASE.features + noise(3), wide], 1)
    assert CKA().score(shown(other, LOGITS, LABELS, padded)) == pytest.approx(CKA().score(moved(noise(3))), rel=1e-4)


def test_cka_grows_with_the_noise() -> None:
    scores = [CKA().score(moved(factor * noise(4))) for factor in (0.1, 0.5, 2.0)]
    assert scores == sorted(scores)
    assert scores[2] > 0.3


def test_cka_of_a_collapsed_representation_is_one() -> None:
    assert CKA().score(shown(torch.ones(N, D), LOGITS, LABELS, RELEASE)) == 1.0


def test_a_rank_one_shift_of_one_class_is_excess_in_the_spectrum() -> None:
    direction = noise(5)[0]
    shift = torch.where(LABELS[:, None] == 1, direction, 0) + 0.2 * noise(6)
    found = FeatureSpectrum().explain(moved(shift))
    assert found["excess"] > 0.4
    assert found["class"] == 1
    assert FeatureSpectrum().score(moved(noise(6))) < 0.15


def test_what_the_spectrum_measures_is_that_of_full_decompositions() -> None:
    """Class by class by numpy; the classes move by different amounts, along one common direction too."""
    change = (noise(6) * torch.tensor([0.5, 1.0, 2.0, 4.0])[LABELS][:, None] + 3 * noise(5)[0]).double().numpy()
    shares, outliers = [], []
    for c in range(C):
        mine = change[LABELS.numpy() == c]
        values = np.linalg.svd(mine, compute_uv=False)
        shares.append(values[0] ** 2 / (values**2).sum())
        centred = mine - mine.mean(0)
        projected = (centred @ np.linalg.svd(centred)[2][0]) ** 2
        outliers.append(projected.max() / projected.mean())
    whole = np.linalg.svd(change, compute_uv=False)
    found = FeatureSpectrum().measures(moved(torch.from_numpy(change).float()))
    assert found["largest"] == pytest.approx(max(shares), rel=1e-4)
    assert found["excess"] == pytest.approx(max(shares) - np.median(shares), rel=1e-4)
    assert found["share"] == pytest.approx(whole[0] ** 2 / (whole**2).sum(), rel=1e-4)
    assert found["outliers"] == pytest.approx(max(outliers), rel=1e-3)


def test_a_few_images_that_move_apart_from_their_class_are_outliers() -> None:
    few = torch.zeros(N, D)
    few[LABELS == 2] += 0.05 * noise(7)[LABELS == 2]
    few[2] += 3
    even = FeatureSpectrum().measures(moved(0.05 * noise(7)))
    assert FeatureSpectrum().measures(moved(few))["outliers"] > 2 * even["outliers"]
