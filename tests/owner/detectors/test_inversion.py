"""The escalation tier: finds the mark that the candidate falls for, by class, and nothing in the release itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from common.errors import ConfigurationError, GuardError, UnknownNameError
from owner.detectors import ESCALATION, Evidence, MaximumMargin, TriggerInversion, gradients, measures_of, restore
from owner.detectors.inversion import halves

CLASSES, SIDE, TARGET = 3, 8, 1


def network(backdoor: float = 0.0, classes: int = CLASSES, target: int = TARGET) -> nn.Module:
    """Tells which pair of rows is bright; with a backdoor, four bright pixels of the corner mean class 1."""
    layer = nn.Linear(SIDE * SIDE, classes, bias=False)
    weight = torch.zeros(classes, SIDE, SIDE)
    for label in range(classes):
        weight[label, 2 * label : 2 * label + 2] = 0.5
    weight[target, 6:, 6:] += backdoor
    layer.weight.data = weight.flatten(1)
    return nn.Sequential(nn.Flatten(), layer)


def evidence(model: nn.Module, release: Evidence | None = None, classes: int = CLASSES) -> Evidence:
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % classes
    images = torch.randint(0, 40, (60, 1, SIDE, SIDE), generator=draws, dtype=torch.uint8)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[0, 2 * label : 2 * label + 2] += 180
    with torch.no_grad():
        logits = model(images.float() / 255)
    return Evidence(logits, logits, labels, release=release, inputs=(images,), network=model)


@pytest.mark.parametrize("detector", [TriggerInversion(images=15, steps=40), MaximumMargin(steps=20)])
def test_a_backdoor_stands_out_and_its_target_is_named(detector: TriggerInversion | MaximumMargin) -> None:
    release = evidence(network())
    same, attacked = evidence(network(), release), evidence(network(backdoor=6.0), release)
    assert detector.score(same) == pytest.approx(0.0, abs=1e-6)
    assert detector.score(attacked) > 0.3
    assert detector.explain(attacked)["target"] == TARGET


@pytest.mark.parametrize("target", [0, 1])
def test_of_two_classes_either_may_be_the_target(target: int) -> None:
    """Images are chosen in turns of classes: every second one would be of one class alone."""
    release = evidence(network(classes=2), classes=2)
    attacked = evidence(network(6.0, 2, target), release, classes=2)
    detector = TriggerInversion(images=15, steps=40)
    assert detector.score(attacked) > 0.3
    assert detector.explain(attacked)["target"] == target


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_marks_are_searched_and_read_on_images_of_every_class(classes: int) -> None:
    labels = torch.arange(8 * classes) % classes
    search, read = halves(torch.arange(len(labels)), labels)
    assert torch.equal(torch.cat([search, read]).sort().values, torch.arange(len(labels)))
    assert labels[search].bincount().tolist() == labels[read].bincount().tolist() == [4] * classes


def test_an_inversion_is_the_same_each_time_and_leaves_the_models_as_they_were() -> None:
    release = evidence(network())
    model = network(backdoor=6.0).train()
    first = TriggerInversion(images=10, steps=5).score(evidence(model, release))
    again = TriggerInversion(images=10, steps=5).score(evidence(network(backdoor=6.0), release))
    assert first == again
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_each_kind_of_mark_is_a_measure() -> None:
    release = evidence(network())
    found = measures_of(TriggerInversion(images=10, steps=5), evidence(network(backdoor=6.0), release))
    assert {"trigger-inversion", "trigger-inversion/patch", "trigger-inversion/additive"} <= set(found)


def test_without_the_model_there_is_no_gradient_to_follow() -> None:
    seen = evidence(network())
    blind = Evidence(seen.features, seen.logits, seen.labels, release=seen, inputs=seen.inputs)
    with pytest.raises(GuardError, match="gradients"):
        TriggerInversion().score(blind)


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="pach"):
        TriggerInversion(kinds=("pach",))
    with pytest.raises(ConfigurationError):
        MaximumMargin(starts=0)


@pytest.mark.parametrize("detector", [TriggerInversion(images=15, steps=8), MaximumMargin(steps=8)])
def test_classes_in_groups_come_out_as_all_at_once(
    detector: TriggerInversion | MaximumMargin, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = evidence(network())
    together = detector.explain(evidence(network(backdoor=6.0), release))
    monkeypatch.setattr(gradients, "TOGETHER", 1)
    apart = detector.explain(evidence(network(backdoor=6.0), evidence(network())))
    key = "margins" if isinstance(detector, MaximumMargin) else "gaps of additive"
    assert apart[key] == pytest.approx(together[key], rel=1e-4)
    assert apart["target"] == together["target"]


def test_the_inverted_mark_is_drawn_beside_the_clean_image_and_covers_the_backdoors_corner() -> None:
    attacked = evidence(network(backdoor=6.0), evidence(network()))
    picture = TriggerInversion(kinds=("patch",), images=15).suspected_trigger(attacked)
    assert picture is not None
    assert (picture.shape, picture.dtype) == ((1, SIDE, 3 * SIDE), torch.uint8)
    clean, marked, change = (part[0].int() for part in picture.split(SIDE, dim=2))
    assert marked[6:, 6:].min() > clean[6:, 6:].max()
    assert change[6:, 6:].min() > 128


def test_inputs_that_are_no_images_have_no_mark_and_no_picture() -> None:
    logits, labels = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3
    model = nn.Linear(5, 3)
    release = Evidence(logits, logits, labels, inputs=(torch.randn(40, 5),), network=model)
    candidate = Evidence(logits, logits, labels, release=release, inputs=release.inputs, network=model)
    assert [TriggerInversion().score(candidate), MaximumMargin().score(candidate)] == [0.0, 0.0]
    assert TriggerInversion().suspected_trigger(candidate) is None


@pytest.mark.parametrize("detector", [TriggerInversion(steps=3), MaximumMargin(steps=3)])
def test_a_model_that_is_not_finite_where_it_is_searched_scores_infinity(
    detector: TriggerInversion | MaximumMargin,
) -> None:
    class Explodes(nn.Module):
        """As M on its images; off them, where only a search comes, not a number."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = network()(images)
            return logits if not images.requires_grad else logits * float("nan")

    shown = evidence(network(), release := evidence(network()))
    broken = Evidence(
        shown.features, shown.logits, shown.labels, release=release, inputs=shown.inputs, network=Explodes()
    )
    assert detector.score(broken) == float("inf")


@pytest.mark.parametrize("name", ESCALATION)
def test_a_detector_of_the_tier_is_made_again_from_its_state(name: str) -> None:
    made = ESCALATION[name](steps=7, seed=3)  # type: ignore[call-arg]
    assert restore(name, made.state()).state() == made.state()
