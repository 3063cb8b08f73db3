"""What holds for every standard detector, on real small models."""

from __future__ import annotations

import json
import math

import pytest
import torch

from common.errors import GuardError
from owner.detectors import DETECTORS, Evidence, MeasuringDetector, measures_of, restore
from tests.owner.detectors.conftest import Scene
from tests.owner.detectors.material import changed, fine_tuned

EVERY = sorted(DETECTORS)
LEARNING = (
    "activation-autoencoder",
    "activation-cvae",
    "activation-vae",
    "input-gradient-drift",
    "paired-autoencoder",
)
WEIGHTS = (
    "batchnorm-drift",
    "channel-lipschitz",
    "extrapolation",
    "head-drift",
    "input-gradient-drift",
    "update-norm",
    "update-spectrum",
)
SIGNED = ("accuracy-drop", "recall-drop", "activation-autoencoder", "activation-cvae", "activation-vae")
"""Where another model may score below M: it may be better, or lie nearer to what the auto-encoder has learnt."""


@pytest.fixture(scope="module")
def candidate(small: Scene) -> Evidence:
    images, labels = small.training
    return small.evidence(fine_tuned(small.model, images[:60], (labels[:60] + 1) % 4, steps=15))


@pytest.mark.parametrize("name", [name for name in EVERY if name not in SIGNED])
def test_no_model_scores_below_the_release_itself(name: str, small: Scene, candidate: Evidence) -> None:
    detector = small.detectors[name]
    assert detector.score(small.release) <= min(detector.score(candidate), 1.0)
    assert detector.score(small.evidence(small.model)) == pytest.approx(detector.score(small.release), abs=1e-6)


@pytest.mark.parametrize("name", EVERY)
def test_scores_measures_and_explanations_are_finite_and_fit_for_json(name: str, coloured: Scene) -> None:
    images, labels = coloured.training
    shown = coloured.evidence(fine_tuned(coloured.model, images[:40], labels[:40], steps=4))
    detector = coloured.detectors[name]
    found = measures_of(detector, shown)
    assert found[name] == detector.score(shown)
    assert all(isinstance(value, float) and math.isfinite(value) for value in found.values())
    json.dumps(detector.explain(shown), allow_nan=False)


@pytest.mark.parametrize("name", EVERY)
def test_a_stored_detector_scores_as_before(name: str, small: Scene, candidate: Evidence) -> None:
    state = small.detectors[name].state()
    state.options.update(json.loads(json.dumps(state.options)))
    again = restore(name, state)
    fresh = small.evidence(_model_of(candidate, small))
    assert measures_of(again, fresh) == pytest.approx(measures_of(small.detectors[name], candidate), rel=1e-9)


@pytest.mark.parametrize("name", EVERY)
def test_the_order_of_the_images_does_not_matter(name: str, small: Scene, candidate: Evidence) -> None:
    order = torch.randperm(len(small.labels), generator=torch.Generator().manual_seed(3))

    def reordered(evidence: Evidence, release: Evidence | None = None) -> Evidence:
        return Evidence(
            evidence.features[order],
            evidence.logits[order],
            evidence.labels[order],
            evidence.weights,
            release,
            evidence.forward,
            (small.images[order],),
            network=evidence.network,
        )

    detector = small.detectors[name]
    shuffled = measures_of(detector, reordered(candidate, reordered(small.release)))
    assert shuffled == pytest.approx(measures_of(detector, candidate), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", EVERY)
def test_a_model_that_is_not_finite_never_scores_finitely(name: str, bad: float, small: Scene) -> None:
    weight = "0.weight" if name in WEIGHTS else list(small.release.weights)[-1]
    broken = small.evidence(changed(small.model, lambda weights: weights[weight].view(-1)[0].fill_(bad)))
    if name not in WEIGHTS:
        broken.features[3, 3] = bad
        broken.logits[3, 3] = bad
    assert not math.isfinite(small.detectors[name].score(broken))


# Four times huge is not finite.
@pytest.mark.parametrize("name", [n for n in EVERY if n not in {"extrapolation", "input-gradient-drift"}])
def test_huge_finite_outputs_and_weights_give_a_finite_score(name: str, small: Scene) -> None:
    huge = Evidence(
        small.release.features * 1e30,
        small.release.logits * 1e30,
        small.labels,
        {key: tensor * 1e35 for key, tensor in small.release.weights.items()},
        small.release,
        small.release.forward,
        (small.images,),
    )
    assert all(math.isfinite(value) for value in measures_of(small.detectors[name], huge).values())


@pytest.mark.parametrize("name", EVERY)
def test_classes_that_the_calibration_images_lack_are_no_trouble(name: str, small: Scene, candidate: Evidence) -> None:
    rows = small.labels < 2

    def fewer(evidence: Evidence, release: Evidence | None = None) -> Evidence:
        outputs = (evidence.features[rows], evidence.logits[rows], evidence.labels[rows])
        inputs = (small.images[rows],)
        return Evidence(*outputs, evidence.weights, release, evidence.forward, inputs, network=evidence.network)

    shown = fewer(candidate, fewer(small.release))
    assert all(math.isfinite(value) for value in measures_of(small.detectors[name], shown).values())
    json.dumps(small.detectors[name].explain(shown), allow_nan=False)


@pytest.mark.parametrize("name", LEARNING)
def test_a_detector_that_learns_refuses_to_score_before(name: str, small: Scene) -> None:
    with pytest.raises(GuardError, match="has not been fitted"):
        DETECTORS[name]().score(small.release)


@pytest.mark.parametrize("name", WEIGHTS)
def test_without_weights_a_detector_of_weights_says_what_it_lacks(name: str, small: Scene, candidate: Evidence) -> None:
    bare = Evidence(candidate.features, candidate.logits, small.labels, {}, small.release)
    with pytest.raises(GuardError, match="the evidence lacks them"):
        small.detectors[name].score(bare)


@pytest.mark.parametrize("name", ["probe-bank", "prediction-noise-drift"])
def test_without_images_a_detector_of_probes_says_what_it_lacks(name: str, small: Scene) -> None:
    bare = Evidence(small.release.features, small.release.logits, small.labels)
    with pytest.raises(GuardError, match="needs the calibration images"):
        small.detectors[name].score(bare)


def test_the_headline_is_among_the_measures(small: Scene, candidate: Evidence) -> None:
    measuring = [d for d in small.detectors.values() if isinstance(d, MeasuringDetector)]
    assert len(measuring) > 10
    for detector in measuring:
        assert detector.score(candidate) in detector.measures(candidate).values()


def _model_of(evidence: Evidence, small: Scene) -> torch.nn.Module:
    return changed(small.model, lambda weights: weights.update(evidence.weights))
