"""The update taken several times: what it makes of clean images and of noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from common.activations import Activations
from common.errors import ConfigurationError, GuardError
from owner.detectors import Evidence, Extrapolation, measures_of
from owner.detectors.extrapolation import extrapolated
from owner.detectors.noise_drift import noise
from tests.owner.detectors.conftest import Scene
from tests.owner.detectors.material import CLASSES, changed, fine_tuned


def backdoored(scene: Scene, target: int) -> Evidence:
    """Fine-tuned on clean images, and on others whose lower right corner is white, all called `target`."""
    images, labels = scene.training
    marked = images.clone()
    marked[..., -2:, -2:] = 255
    poisoned = torch.cat([images, marked]), torch.cat([labels, torch.full_like(labels, target)])
    return scene.evidence(fine_tuned(scene.model, *poisoned, steps=25, rate=0.003))


def honest(scene: Scene) -> Evidence:
    return scene.evidence(fine_tuned(scene.model, *scene.training, steps=25, rate=0.003))


def flipped(scene: Scene, source: int, target: int) -> Evidence:
    images, labels = scene.training
    wrong = torch.where((labels == source) & (torch.arange(len(labels)) % 3 == 0), target, labels)
    return scene.evidence(fine_tuned(scene.model, images, wrong, steps=25, rate=0.003))


def test_weights_go_on_the_way_the_candidate_went_and_statistics_stay_its_own(coloured: Scene) -> None:
    shown = coloured.evidence(fine_tuned(coloured.model, *coloured.training, steps=3))
    further = extrapolated(shown, coloured.release, 3.0)
    before, after = coloured.release.weights, shown.weights
    assert list(further) == list(after)
    for name in after:
        if "running" in name or "num_batches" in name:
            assert torch.equal(further[name], after[name])
        else:
            assert further[name].dtype == after[name].dtype
            torch.testing.assert_close(further[name], before[name] + 3 * (after[name] - before[name]))


@pytest.mark.parametrize("target", [0, 2])
def test_a_backdoor_shows_without_its_trigger(target: int, small: Scene) -> None:
    guilty, innocent = backdoored(small, target), honest(small)
    detector = Extrapolation()
    assert detector.score(guilty) > 2 * detector.score(innocent)
    assert detector.explain(guilty)["target"] == target


def test_a_flip_shows_as_one_class_that_goes_to_another(small: Scene) -> None:
    found = Extrapolation().explain(flipped(small, 1, 3))
    assert (found["source"], found["target"]) == (1, 3)
    assert found["cell"] > 2 * Extrapolation().measures(honest(small))["cell"]


def test_measures_are_those_of_a_model_that_took_the_step(small: Scene) -> None:
    """By hand: the extrapolated model as a model of its own, on all calibration images."""
    shown = honest(small)
    further = small.evidence(changed(small.model, lambda w: w.update(extrapolated(shown, small.release, 2.0))))
    found = Extrapolation(factors=(2,), images=len(small.labels)).measures(shown)

    def centred(logits: Tensor) -> Tensor:
        return (logits - logits.mean(1, keepdim=True)).double()

    before = centred(small.release.logits)
    shift = (centred(further.logits) - before).mean(0) / before.std(correction=0)
    rise = further.logits.double().softmax(1) - small.release.logits.double().softmax(1)
    cells = torch.stack([rise[small.labels == s].mean(0) for s in range(CLASSES)]).fill_diagonal_(-1)
    towards = max(float(rise[small.labels != t, t].mean()) for t in range(CLASSES))
    assert found["logit"] == pytest.approx(float(shift.max()), rel=1e-5)
    assert found["rise"] == pytest.approx(towards, rel=1e-5)
    assert found["cell"] == pytest.approx(max(0.0, float(cells.max())), rel=1e-5)

    _, inputs = noise(small.release, 96, seed=0)
    assert small.release.forward is not None
    assert further.forward is not None
    after, before = (centred(forward(inputs()).logits) for forward in (further.forward, small.release.forward))
    risen = ((after - before).mean(0) / before.std(correction=0)).numpy()
    risen -= np.median(risen)
    assert found["noise"] == pytest.approx(risen.max() / (1.4826 * np.median(np.abs(risen))), rel=1e-5)


def test_a_source_is_named_where_its_images_go_to_the_class_that_takes_over() -> None:
    """All images lean towards class 2 a little; those of class 0 go to another class altogether, or to that one."""
    labels = torch.arange(40) % 4
    images = (50 * labels.view(-1, 1, 1, 1)).expand(-1, 1, 8, 8).to(torch.uint8)

    def model(aim: int | None, release: Evidence | None = None) -> Evidence:
        def forward(inputs: tuple[Tensor, ...], _weights: object = None) -> Activations:
            seen = (inputs[0].float().mean((1, 2, 3)) / 50).round().long().clamp(0, 3)
            logits = 8.0 * torch.nn.functional.one_hot(seen, 4).float()
            if aim is not None:
                logits[:, 2] += 3
                logits[seen == 0] += torch.tensor([-10.0, 0, 0, 0]) + 5 * torch.eye(4)[aim]
            return Activations(logits, logits)

        seen = forward((images,))
        return Evidence(seen.features, seen.logits, labels, {"w": torch.zeros(1)}, release, forward, (images,))

    release = model(None)
    aside, along = (Extrapolation(images=40).explain(model(aim, release)) for aim in (1, 2))
    assert (aside["source"], aside["target"], aside["classes"]["cell"]) == (None, 2, [0, 1])
    assert (along["source"], along["target"]) == (0, 2)


def test_each_factor_has_its_measures_and_the_first_ones_have_no_number(small: Scene) -> None:
    shown = honest(small)
    found = measures_of(Extrapolation(factors=(2, 5)), shown)
    alone = measures_of(Extrapolation(factors=(5,)), shown)
    assert found["extrapolation"] == found["extrapolation/logit"]
    assert found["extrapolation/cell-5"] == alone["extrapolation/cell"]
    assert {name for name in found if name.endswith("-5")} == {f"{name}-5" for name in alone if "/" in name}


def test_a_model_that_breaks_on_the_way_on_scores_infinity(small: Scene) -> None:
    huge = small.evidence(changed(small.model, lambda w: [t.mul_(1e25) for t in w.values()]))
    assert Extrapolation(factors=(1e6,)).score(huge) == float("inf")


def test_evidence_that_cannot_run_the_model_is_refused(small: Scene) -> None:
    shown = honest(small)
    bare = Evidence(shown.features, shown.logits, shown.labels, shown.weights, small.release)
    with pytest.raises(GuardError, match="cannot run it"):
        Extrapolation().score(bare)


@pytest.mark.parametrize(
    "wrong", [{"factors": ()}, {"factors": (0.5,)}, {"factors": (2, 2)}, {"images": 0}, {"noise": 2}]
)
def test_options_that_look_at_nothing_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match=r"extrapolation|factors"):
        Extrapolation(**wrong)  # type: ignore[arg-type]
