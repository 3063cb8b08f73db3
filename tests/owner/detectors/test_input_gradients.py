"""Slopes of the logits in the inputs, of the update taken several times."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from common.errors import ConfigurationError, GuardError
from owner.detectors import Evidence, InputGradientDrift, measures_of
from owner.detectors.input_gradients import MOST_CLASSES, mean_slopes
from tests.owner.detectors.conftest import Scene
from tests.owner.detectors.material import COMPUTE, changed, fine_tuned


def linear(classes: int = 3, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(6, classes))


def shown(model: nn.Module, inputs: Tensor, labels: Tensor, release: Evidence | None = None) -> Evidence:
    """Of a model whose outputs stand for its features too."""
    with torch.no_grad():
        logits = model(inputs.float() / 255 if inputs.dtype == torch.uint8 else inputs)
    return Evidence(
        logits, logits, labels, dict(model.state_dict()), release, inputs=(inputs,), network=model, compute=COMPUTE
    )


def test_of_a_linear_model_the_score_is_that_of_its_rows() -> None:
    images = torch.randint(0, 256, (30, 1, 2, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(30) % 3
    before, after = linear(), linear(seed=2)
    release = shown(before, images, labels)
    detector = InputGradientDrift(factors=(2, 5), images=30).fit(release)
    found = measures_of(detector, shown(after, images, labels, release))

    moved = (after[1].weight - before[1].weight).detach().double()  # type: ignore[union-attr,operator]
    rows = (moved - moved.mean(0)).abs().sum(1)
    logits = release.logits.double()
    spread = (logits - logits.mean(1, keepdim=True)).std(correction=0)
    assert found["input-gradient-drift"] == pytest.approx(float(2 * rows.max() / spread), rel=1e-5)
    assert found["input-gradient-drift/push"] == found["input-gradient-drift"]
    assert found["input-gradient-drift/push-5"] == pytest.approx(float(5 * rows.max() / spread), rel=1e-5)


def test_slopes_are_what_differences_give_over_images_of_other_classes() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    inputs, labels = torch.rand(8, 1, 2, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    found = mean_slopes(model, COMPUTE, dict(model.state_dict()), (inputs,), labels)
    assert found is not None

    def mean_rise(x: Tensor, target: int) -> Tensor:
        logits = model(x)
        return (logits[:, target] - logits.mean(1))[labels != target].mean()

    for target in range(3):
        for pixel in range(6):
            step = torch.zeros(6, dtype=torch.float64)
            step[pixel] = 1e-5
            by_hand = (mean_rise(inputs + step.view(1, 2, 3), target) - mean_rise(inputs, target)) / 1e-5
            assert float(found[target, pixel]) == pytest.approx(float(by_hand.detach()), abs=1e-4)


@pytest.mark.parametrize("target", [0, 3])
def test_a_backdoor_shows_whatever_its_mark(target: int, small: Scene) -> None:
    images, labels = small.training
    marks: list[Callable[[Tensor], None]] = [
        lambda x: x[..., -2:, -2:].fill_(255),
        lambda x: x[..., ::2].add_(60 * (x[..., ::2] < 190)),
    ]
    detector = InputGradientDrift().fit(small.release)
    honest = small.evidence(fine_tuned(small.model, images, labels, steps=25, rate=0.003))
    for mark in marks:
        marked = images.clone()
        mark(marked)
        poisoned = torch.cat([images, marked]), torch.cat([labels, torch.full_like(labels, target)])
        guilty = small.evidence(fine_tuned(small.model, *poisoned, steps=25, rate=0.003))
        assert detector.score(guilty) > 1.5 * detector.score(honest)
        assert detector.explain(guilty)["target"] == target


def test_the_network_lends_its_layers_and_nothing_else(small: Scene) -> None:
    candidate = small.evidence(fine_tuned(small.model, *small.training, steps=5))
    detector = InputGradientDrift().fit(small.release)
    expected = measures_of(detector, candidate)
    assert candidate.network is not None
    lent = copy.deepcopy(candidate.network).train()
    with torch.no_grad():
        for parameter in lent.parameters():
            parameter.fill_(0.5)
    fresh = dataclasses.replace(candidate, network=lent, _derived={})
    assert measures_of(detector, fresh) == expected
    assert lent.training
    assert all(p.grad is None and bool((p == 0.5).all()) for p in lent.parameters())


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.second(self.first(x.flatten(1)).relu()).relu())
        return logits


class _InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(x.sub_(0.5).flatten(1))
        return logits


@pytest.mark.parametrize("model", [_Tied(), _InPlace()], ids=["tied weights", "changes its input"])
def test_models_that_autograd_finds_awkward_are_followed_all_the_same(model: nn.Module) -> None:
    inputs, labels = torch.rand(12, 1, 2, 3), torch.arange(12) % 3
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.inference_mode():  # whatever the caller is in
        found = mean_slopes(model, COMPUTE, weights, (inputs,), labels)
    assert found is not None
    assert bool(found.abs().sum() > 0)


class _Cut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = self.head(x.flatten(1))
        return logits


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layer(x.flatten(1, 2))[0][:, -1])
        return logits


class _Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(9, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.words(x).mean(1))
        return logits


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (_Cut(), torch.rand(12, 1, 2, 3)),
        (_Recurrent(), torch.rand(12, 1, 2, 3)),
        (_Tokens(), torch.arange(24).view(12, 2) % 9),
        (linear(MOST_CLASSES + 1), torch.rand(12, 1, 2, 3)),
    ],
    ids=["without a graph", "recurrent", "tokens", "too many classes"],
)
def test_where_there_is_nothing_to_follow_nobody_stands_out(model: nn.Module, inputs: Tensor) -> None:
    labels = torch.arange(12) % 3
    release = shown(model, inputs, labels)
    detector = InputGradientDrift().fit(release)
    again = InputGradientDrift.from_state(detector.state())
    other = shown(changed(model, lambda w: [t.mul_(1.5) for t in w.values()]), inputs, labels, release)
    assert again.measures(other) == {"push": 0.0, "push-4": 0.0}
    assert again.explain(other)["applicable"] is False


def test_evidence_without_a_model_is_refused(small: Scene) -> None:
    bare = dataclasses.replace(small.release, network=None, _derived={})
    with pytest.raises(GuardError, match="holds no model"):
        InputGradientDrift().fit(bare)
    detector = InputGradientDrift().fit(small.release)
    with pytest.raises(GuardError, match="holds no model"):
        detector.score(dataclasses.replace(bare, release=small.release))
    with pytest.raises(GuardError, match="has not been fitted"):
        InputGradientDrift().score(small.release)


def test_a_model_that_breaks_on_the_way_on_scores_infinity(small: Scene) -> None:
    huge = small.evidence(changed(small.model, lambda w: [t.mul_(1e25) for t in w.values()]))
    assert InputGradientDrift(factors=(1e6,)).fit(small.release).score(huge) == float("inf")


@pytest.mark.parametrize("wrong", [{"factors": ()}, {"factors": (0.5,)}, {"factors": (2, 2)}, {"images": 0}])
def test_options_that_look_at_nothing_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match=r"input-gradient-drift|factors"):
        InputGradientDrift(**wrong)  # type: ignore[arg-type]
