"""Detectors learn from the release alone, and score what another model shows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from common.errors import ConfigurationError, GuardError
from owner.detectors import (
    ActivationAutoEncoder,
    AutoEncoderOptions,
    DetectorState,
    Evidence,
    restore,
)


def on_a_plane(n: int, seed: int, *, shift: float = 0.0) -> Tensor:
    """Activations (n, 40) near a 5-dimensional set, as a classifier's are."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.randn(5, 40, generator=torch.Generator().manual_seed(99)) / 5**0.5
    return torch.relu(torch.randn(n, 5, generator=generator) @ axes + shift)


def evidence(features: Tensor, classes: int = 3) -> Evidence:
    labels = torch.arange(len(features)) % classes
    return Evidence(features, torch.zeros(len(features), classes), labels)


SMALL = AutoEncoderOptions(hidden=32, latent=8, epochs=40, batch_size=16)


@pytest.fixture(scope="module")
def fitted() -> ActivationAutoEncoder:
    return ActivationAutoEncoder(SMALL).fit(evidence(on_a_plane(400, seed=0)))


def test_fitting_lowers_the_error_on_activations_that_were_not_fitted(fitted: ActivationAutoEncoder) -> None:
    barely = ActivationAutoEncoder(AutoEncoderOptions(hidden=32, latent=8, epochs=1, batch_size=16)).fit(
        evidence(on_a_plane(400, seed=0))
    )
    unseen = evidence(on_a_plane(400, seed=1))
    assert fitted.score(unseen) < 0.5 * barely.score(unseen)


def test_activations_off_the_learnt_set_score_higher(fitted: ActivationAutoEncoder) -> None:
    elsewhere = torch.rand(400, 40, generator=torch.Generator().manual_seed(2)) * 2
    assert fitted.score(evidence(elsewhere)) > 3 * fitted.score(evidence(on_a_plane(400, seed=1)))


def test_the_score_is_the_mean_over_images_of_the_mean_squared_error_over_features(
    fitted: ActivationAutoEncoder,
) -> None:
    features = on_a_plane(7, seed=3)
    weights = {name: t.double().numpy() for name, t in fitted.state().tensors.items()}
    layer = features.double().numpy()
    for i in (0, 2, 4, 6):
        layer = layer @ weights[f"network.{i}.weight"].T + weights[f"network.{i}.bias"]
        layer = np.maximum(layer, 0) if i < 6 else layer
    expected = ((features.double().numpy() - layer) ** 2).mean(axis=1)
    np.testing.assert_allclose(fitted.image_scores(evidence(features)).numpy(), expected, rtol=1e-4)
    assert fitted.score(evidence(features)) == pytest.approx(expected.mean(), rel=1e-4)


def test_the_layers_are_those_of_the_paper() -> None:
    state = ActivationAutoEncoder(AutoEncoderOptions(epochs=1)).fit(evidence(on_a_plane(32, seed=0))).state()
    shapes = [tuple(state.tensors[f"network.{i}.weight"].shape) for i in (0, 2, 4, 6)]
    assert shapes == [(256, 40), (64, 256), (256, 64), (40, 256)]
    assert (AutoEncoderOptions().epochs, AutoEncoderOptions().scaling) == (60, "none")


def test_one_seed_gives_one_auto_encoder_and_another_seed_another() -> None:
    first, second, other = (
        ActivationAutoEncoder(dataclasses.replace(SMALL, epochs=1, seed=seed)).fit(evidence(on_a_plane(64, seed=0)))
        for seed in (0, 0, 1)
    )
    tensors = [one.state().tensors for one in (first, second, other)]
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
    # It starts elsewhere, and does not only take the images in another order.
    assert not torch.allclose(tensors[0]["network.0.weight"], tensors[2]["network.0.weight"], atol=0.05)


def test_fitting_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    ActivationAutoEncoder(SMALL).fit(evidence(on_a_plane(64, seed=0)))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
@pytest.mark.parametrize("scaling", ["scalar", "feature"])
def test_with_scaling_the_score_does_not_depend_on_the_unit_of_the_activations(scaling: str, scale: float) -> None:
    options = AutoEncoderOptions(hidden=32, latent=8, epochs=5, scaling=scaling)  # type: ignore[arg-type]
    train, test = on_a_plane(200, seed=0), on_a_plane(200, seed=1)
    plain = ActivationAutoEncoder(options).fit(evidence(train)).score(evidence(test))
    scaled = ActivationAutoEncoder(options).fit(evidence(train * scale)).score(evidence(test * scale))
    assert scaled == pytest.approx(plain, rel=0.02)


def test_what_is_subtracted_and_divided_by_is_as_the_options_say() -> None:
    features = on_a_plane(60, seed=0) + 0.1
    features[:, 7] = 3.0
    plain = features.double().numpy()
    std = np.where(plain.std(axis=0) > 1e-6, plain.std(axis=0), 1.0)
    expected = {
        "none": (np.zeros(40), np.ones(40)),
        "scalar": (np.zeros(40), np.full(40, np.sqrt((plain**2).mean()))),
        "feature": (plain.mean(axis=0), std),
    }
    for scaling, (mean, scale) in expected.items():
        options = dataclasses.replace(SMALL, epochs=1, scaling=scaling)  # type: ignore[arg-type]
        tensors = ActivationAutoEncoder(options).fit(evidence(features)).state().tensors
        np.testing.assert_allclose(tensors["mean"].numpy(), mean, rtol=1e-5)
        np.testing.assert_allclose(tensors["scale"].numpy(), scale, rtol=1e-5)


def test_a_stored_detector_scores_as_before(fitted: ActivationAutoEncoder) -> None:
    again = restore("activation-autoencoder", fitted.state())
    unseen = evidence(on_a_plane(50, seed=4))
    assert again.score(unseen) == fitted.score(unseen)


def test_scoring_before_fitting_is_a_clear_error() -> None:
    with pytest.raises(GuardError, match="has not been fitted"):
        ActivationAutoEncoder().score(evidence(on_a_plane(4, seed=0)))


def test_activations_of_another_width_are_refused(fitted: ActivationAutoEncoder) -> None:
    with pytest.raises(GuardError, match="fitted on 40 features"):
        fitted.score(evidence(torch.zeros(4, 41)))


def test_a_release_with_activations_that_are_not_finite_cannot_be_fitted() -> None:
    features = on_a_plane(40, seed=0)
    features[3, 3] = torch.inf
    with pytest.raises(GuardError, match="not finite"):
        ActivationAutoEncoder(SMALL).fit(evidence(features))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_an_activation_that_is_not_finite_never_gives_a_finite_score(fitted: ActivationAutoEncoder, bad: float) -> None:
    features = on_a_plane(40, seed=1)
    features[3, 3] = bad
    assert not np.isfinite(fitted.score(evidence(features)))


def test_huge_finite_activations_give_a_huge_finite_score(fitted: ActivationAutoEncoder) -> None:
    score = fitted.score(evidence(on_a_plane(40, seed=1) * 1e25))
    assert np.isfinite(score)
    assert score > 1e40


def test_explanation_names_the_class_whose_activations_moved(fitted: ActivationAutoEncoder) -> None:
    shown = evidence(on_a_plane(300, seed=1))
    moved = shown.features.clone()
    moved[shown.labels == 2] += 2
    per_class = fitted.explain(evidence(moved))["per_class"]
    assert per_class.index(max(per_class)) == 2


def test_explanation_describes_the_errors_per_image(fitted: ActivationAutoEncoder) -> None:
    shown = evidence(on_a_plane(31, seed=1))
    errors, found = fitted.image_scores(shown).numpy(), fitted.explain(shown)
    assert (found["e_mse"], found["std"]) == pytest.approx((errors.mean(), errors.std()))
    assert [found[name] for name in ("p05", "median", "p95")] == pytest.approx(np.quantile(errors, [0.05, 0.5, 0.95]))
    assert found["per_class"] == pytest.approx([errors[c::3].mean() for c in range(3)])


def test_explanation_of_a_class_without_images_is_none(fitted: ActivationAutoEncoder) -> None:
    shown = Evidence(on_a_plane(10, seed=1), torch.zeros(10, 4), torch.zeros(10, dtype=torch.int64))
    assert fitted.explain(shown)["per_class"][1:] == [None, None, None]


@pytest.mark.parametrize(
    "options", [{"hidden": 0}, {"latent": 0}, {"epochs": 0}, {"batch_size": 0}, {"learning_rate": 0.0}]
)
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        AutoEncoderOptions(**options)  # type: ignore[arg-type]


def test_a_state_of_other_shapes_is_refused(fitted: ActivationAutoEncoder) -> None:
    state = fitted.state()
    with pytest.raises(GuardError, match="does not fit"):
        restore("activation-autoencoder", DetectorState(state.tensors, state.options | {"latent": 9}))
