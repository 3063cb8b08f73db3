"""Predictions on inputs that show nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import softmax

from common.errors import ConfigurationError
from owner.detectors import PredictionNoiseDrift
from owner.detectors.noise_drift import noise
from tests.owner.detectors.conftest import Scene
from tests.owner.detectors.material import changed


def test_a_class_that_takes_over_on_noise_is_seen_and_named(small: Scene) -> None:
    favour = torch.tensor([0.0, 0.0, 0.0, 300.0])
    found = PredictionNoiseDrift().explain(
        small.evidence(changed(small.model, lambda w: list(w.values())[-1].add_(favour)))
    )
    assert found["class"] == 3
    assert found["predicted"] == [0, 0, 0, 96]
    before = PredictionNoiseDrift().explain(small.release)["predicted"]
    assert found["histogram"] == pytest.approx(1 - before[3] / 96)


def test_the_measures_are_those_of_numpy(small: Scene) -> None:
    shown = small.evidence(
        changed(small.model, lambda w: list(w.values())[-1].add_(torch.tensor([1.0, 0.0, 3.0, -2.0])))
    )
    found = PredictionNoiseDrift().measures(shown)
    _, inputs = noise(small.release, 96, seed=0)
    assert shown.forward is not None
    assert small.release.forward is not None
    after, before = (forward(inputs()).logits.double().numpy() for forward in (shown.forward, small.release.forward))
    soft = softmax(after, 1).mean(0) - softmax(before, 1).mean(0)
    counted = [np.bincount(x.argmax(1), minlength=4) / 96 for x in (after, before)]
    centred = [x - x.mean(1, keepdims=True) for x in (after, before)]
    assert found["histogram"] == pytest.approx(np.abs(counted[0] - counted[1]).sum() / 2)
    assert found["soft"] == pytest.approx(np.abs(soft).sum() / 2, rel=1e-5)
    assert found["rise"] == pytest.approx(soft.max(), rel=1e-5)
    assert found["logits"] == pytest.approx((centred[0] - centred[1]).mean(0).max() / centred[1].std(), rel=1e-5)


def test_the_change_grows_with_the_push(small: Scene) -> None:
    scores = []
    for push in (0.0, 1.0, 4.0):
        favour = torch.tensor([0.0, 0.0, push, 0.0])
        shown = small.evidence(changed(small.model, lambda w, favour=favour: list(w.values())[-1].add_(favour)))
        scores.append(PredictionNoiseDrift().measures(shown)["logits"])
    assert scores == sorted(scores)
    assert scores[0] == 0 < scores[1]


def test_fewer_inputs_than_kinds_of_noise_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="images"):
        PredictionNoiseDrift(images=2)
