"""The variational auto-encoders learn M's activations, one of them class by class."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from common.errors import ConfigurationError, GuardError
from owner.detectors import ActivationCVAE, ActivationVAE, CVAEOptions, DetectorState, Evidence, VAEOptions, restore
from owner.detectors.geometric_median import geometric_median

QUICK = {"epochs": 30, "batch_size": 60, "learning_rate": 3e-3}


def clusters(count: int, seed: int) -> Tensor:
    """(n, 20) around one centre for each of three classes, labels in turn."""
    centres = 2 * torch.randn(3, 20, generator=torch.Generator().manual_seed(7))
    noise = torch.randn(count, 20, generator=torch.Generator().manual_seed(seed))
    return centres[torch.arange(count) % 3] + 0.3 * noise


def evidence(features: Tensor, shift: int = 0) -> Evidence:
    labels = (torch.arange(len(features)) + shift) % 3
    return Evidence(features, torch.zeros(len(features), 3), labels)


Variational = ActivationVAE | ActivationCVAE


@pytest.fixture(scope="module", params=["vae", "cvae"])
def fitted(request: pytest.FixtureRequest) -> Variational:
    made: Variational
    made = ActivationVAE(VAEOptions(**QUICK)) if request.param == "vae" else ActivationCVAE(CVAEOptions(**QUICK))  # type: ignore[arg-type]
    return made.fit(evidence(clusters(300, 0)))


def test_activations_off_the_learnt_set_score_higher(fitted: Variational) -> None:
    elsewhere = evidence(2 * torch.randn(150, 20, generator=torch.Generator().manual_seed(3)))
    assert fitted.score(elsewhere) > 1.5 * fitted.score(evidence(clusters(150, 1)))


def test_the_conditional_one_sees_activations_of_another_class_and_the_plain_one_does_not() -> None:
    plain = ActivationVAE(VAEOptions(**QUICK)).fit(evidence(clusters(300, 0)))  # type: ignore[arg-type]
    conditional = ActivationCVAE(CVAEOptions(**QUICK)).fit(evidence(clusters(300, 0)))  # type: ignore[arg-type]
    own, other = evidence(clusters(150, 1)), evidence(clusters(150, 1), shift=1)
    assert conditional.score(other) > 1.5 * conditional.score(own)
    assert plain.score(other) == plain.score(own)


def test_one_seed_gives_one_fit(fitted: Variational) -> None:
    again = type(fitted)(fitted.options).fit(evidence(clusters(300, 0))).state()  # type: ignore[arg-type]
    assert all(torch.equal(tensor, again.tensors[name]) for name, tensor in fitted.state().tensors.items())


def test_the_conditional_one_has_the_widths_of_fedclean() -> None:
    tensors = ActivationCVAE(CVAEOptions(epochs=1)).fit(evidence(clusters(30, 0))).state().tensors
    assert tensors["network.encoder.0.weight"].shape == (100, 20 + 3)
    assert tensors["network.mean.weight"].shape == (8, 100)
    assert tensors["network.decoder.0.weight"].shape == (100, 8 + 3)


def test_a_state_of_other_shapes_is_refused(fitted: Variational) -> None:
    state = fitted.state()
    with pytest.raises(GuardError, match="does not fit"):
        restore(fitted.name, DetectorState(state.tensors, state.options | {"latent": 9}))


def test_activations_of_another_width_are_refused(fitted: Variational) -> None:
    with pytest.raises(GuardError, match="fitted on 20 features"):
        fitted.score(evidence(torch.zeros(6, 21)))


@pytest.mark.parametrize("options", [{"hidden": 0}, {"learning_rate": 0.0}, {"kl_weight": -1.0}])
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        VAEOptions(**options)  # type: ignore[arg-type]


def test_the_geometric_median_stays_with_the_many() -> None:
    points = torch.cat([torch.randn(40, 3, generator=torch.Generator().manual_seed(0)) * 0.1, torch.full((9, 3), 50.0)])
    assert geometric_median(points).norm() < 0.3
