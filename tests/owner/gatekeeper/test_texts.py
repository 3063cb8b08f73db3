"""The gate on what are no images: texts through a recurrent network."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from common.devices import choose_compute
from common.examples import Examples
from common.model_spec import ModelSpec
from common.models import build
from common.training import train
from common.training_options import TrainingOptions
from common.weights import Weights, weights_of
from owner.gatekeeper import Gatekeeper, GuardOptions

CPU = choose_compute("cpu", "float32")
SPEC = ModelSpec("gru", (8,), 2)
TUNING = TrainingOptions(epochs=2, learning_rate=0.002, optimiser="adam", batch_size=16, schedule="constant")


def texts(count: int, seed: int) -> Examples:
    """Two classes that use other words."""
    draws = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    inputs = torch.randint(2, 30, (count, 8), generator=draws) + 30 * labels[:, None]
    return Examples((inputs,), labels, ("low", "high"))


@pytest.fixture(scope="module")
def release() -> torch.nn.Module:
    model = build(SPEC, seed=0)
    options = TrainingOptions(epochs=10, learning_rate=0.01, optimiser="adam")
    train(model, texts(300, 0), options, compute=CPU, progress=False)
    return model


@pytest.fixture(scope="module")
def honest(release: torch.nn.Module) -> Weights:
    model = build(SPEC)
    model.load_state_dict(release.state_dict())
    train(model, texts(100, 3), TUNING, compute=CPU, progress=False)
    return weights_of(model)


@pytest.fixture(scope="module")
def protected(release: torch.nn.Module) -> Callable[[str], Gatekeeper]:
    return lambda detectors: Gatekeeper.protect(
        release,
        texts(300, 1),
        references_pool=texts(300, 2),
        spec=SPEC,
        finetuning=TUNING,
        options=GuardOptions(detectors=(detectors,), references=9, reject_level=0.1, quarantine_level=0.1),
        compute=CPU,
        progress=False,
    )


def negated(weights: Weights) -> Weights:
    return {name: -tensor for name, tensor in weights.items()}


def test_an_honest_fine_tune_is_accepted_and_negated_weights_are_not(
    protected: Callable[[str], Gatekeeper], honest: Weights
) -> None:
    gate = protected("paper")
    assert gate.vet(honest).decision == "accepted"
    assert gate.vet(negated(honest)).decision == "rejected"


def test_the_standard_detectors_measure_texts_too(protected: Callable[[str], Gatekeeper], honest: Weights) -> None:
    gate = protected("standard")
    ours, theirs = (gate.vet(weights).measurements["gate"] for weights in (honest, negated(honest)))
    assert all(p > 0.1 for p in ours["families"].values())
    assert [theirs["families"][family] for family in ("weights", "utility")] == pytest.approx([0.1] * 2)
    assert theirs["p_value"] == pytest.approx(0.1)
    assert theirs["families"]["gradients"] == 1.0  # words have no gradient
