"""The classification auto-encoder finds what is rebuilt badly or labelled wrongly, on a case where both are plain to see."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional as F

from common.errors import ConfigurationError, DataError, ModelError
from owner.data_poisoning import CaeDetector, CaeOptions, CaePlusDetector

SMALL = CaeOptions(hidden=32, latent=8, epochs=60, learning_rate=3e-3)


def shapes(count: int = 300, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two classes of 16 numbers: the first half bright, or the second, in a little noise."""
    draws = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    bright = (torch.arange(16) < 8).float()
    pictures = torch.where(labels[:, None] == 0, bright, 1 - bright)
    return (0.2 + 0.6 * pictures + 0.05 * torch.randn(count, 16, generator=draws)).clamp(0, 1), labels


def attacked(kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """A tenth poisoned: labels flipped, inputs that are no shape at all, or the right shape in too strong a contrast."""
    inputs, labels = shapes(seed=1)
    poisoned = torch.arange(300) >= 270
    if kind == "labels":
        return inputs, torch.where(poisoned, 1 - labels, labels), poisoned
    if kind == "contrast":
        return torch.where(poisoned[:, None], inputs.round(), inputs), labels, poisoned
    odd = torch.rand(300, 16, generator=torch.Generator().manual_seed(2))
    return torch.where(poisoned[:, None], odd, inputs), labels, poisoned


Kind = type[CaeDetector] | type[CaePlusDetector]


@pytest.mark.parametrize("kind", ["labels", "inputs"])
@pytest.mark.parametrize(
    ("detector_of", "learnt_from"), [(CaeDetector, "clean"), (CaeDetector, "attacked"), (CaePlusDetector, "attacked")]
)
def test_poisoned_examples_are_flagged_without_labels_of_what_is_poisoned(
    detector_of: Kind, kind: str, learnt_from: str
) -> None:
    inputs, labels, poisoned = attacked(kind)
    detector = detector_of(SMALL).fit(*(shapes() if learnt_from == "clean" else (inputs, labels)))
    flagged, mixture = detector.flag(inputs, labels)
    hits = int((flagged & poisoned).sum())
    assert 2 * hits / (int(flagged.sum()) + 30) > 0.95
    assert torch.equal(flagged, detector.score(inputs, labels) >= mixture.threshold)


@pytest.mark.parametrize(("alpha", "kind"), [(1.0, "labels"), (0.0, "contrast")])
def test_half_of_the_score_alone_misses_the_other_kind(alpha: float, kind: str) -> None:
    inputs, labels, poisoned = attacked(kind)
    options = CaeOptions(alpha, hidden=32, latent=8, epochs=60, learning_rate=3e-3)
    alone = CaeDetector(options).fit(*shapes()).score(inputs, labels)
    both = CaeDetector(SMALL).fit(*shapes()).score(inputs, labels)
    assert roc_auc_score(poisoned, both) > 0.99
    assert roc_auc_score(poisoned, alone) < 0.95


def weighed(alpha: float, rebuilt: Tensor, logits: Tensor) -> Tensor:
    """The authors' score, from its definition."""
    inputs, labels = shapes()
    e, c = (inputs - rebuilt).abs().mean(1), -F.log_softmax(logits, 1)[torch.arange(300), labels]
    return alpha * e / e.square().sum().sqrt() + (1 - alpha) * c / c.square().sum().sqrt()


def test_the_score_of_cae_is_the_authors_sum() -> None:
    inputs, labels = shapes()
    detector = CaeDetector(CaeOptions(0.3, hidden=8, latent=4, epochs=1)).fit(inputs, labels)
    with torch.no_grad():
        expected = weighed(0.3, *detector.network_(inputs))
    torch.testing.assert_close(detector.score(inputs, labels).float(), expected)


def test_cae_plus_rebuilds_by_one_network_and_classifies_by_another() -> None:
    inputs, labels = shapes()
    detector = CaePlusDetector(CaeOptions(0.3, hidden=8, latent=4, epochs=2)).fit(inputs, labels)
    with torch.no_grad():
        rebuilt, logits = detector.rae_(inputs)[0], detector.cae_.network_(inputs)[1]
        expected = weighed(0.3, rebuilt, logits)
    torch.testing.assert_close(detector.score(inputs, labels).float(), expected)
    assert not torch.allclose(detector.score(inputs, labels), detector.cae_.score(inputs, labels))


def test_what_cae_plus_rebuilds_does_not_depend_on_labels() -> None:
    inputs, labels = shapes()
    options = CaeOptions(hidden=8, latent=4, epochs=2)
    first, second = (CaePlusDetector(options).fit(inputs, given) for given in (labels, labels.flip(0)))
    assert torch.equal(first.errors(inputs, labels)[0], second.errors(inputs, labels)[0])
    assert not torch.allclose(first.cae_.errors(inputs, labels)[0], second.cae_.errors(inputs, labels)[0])


def test_alpha_weighs_in_the_score_and_not_in_training() -> None:
    inputs, labels = shapes()
    first, second = (
        CaeDetector(CaeOptions(alpha, hidden=8, latent=4, epochs=2)).fit(inputs, labels).errors(inputs, labels)
        for alpha in (0.0, 1.0)
    )
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_the_same_seed_gives_the_same_scores_and_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (
        CaeDetector(CaeOptions(hidden=8, latent=4, epochs=2, seed=seed)).fit(*shapes()).score(*shapes())
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("detector_of", [CaeDetector, CaePlusDetector])
def test_a_score_before_fit_says_so(detector_of: Kind) -> None:
    with pytest.raises(ModelError, match="is not fitted"):
        detector_of().score(*shapes())


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        (torch.zeros(4, 2, dtype=torch.uint8), "rows of floating numbers"),
        (torch.zeros(4, 2, 2), "rows of floating numbers"),
        (torch.zeros(3, 2), "with 4 labels"),
        (torch.full((4, 2), 255.0), r"inputs in \[0, 1\]"),
        (torch.full((4, 2), torch.nan), r"inputs in \[0, 1\]"),
    ],
)
def test_inputs_it_cannot_take_are_refused(inputs: Tensor, says: str) -> None:
    with pytest.raises(DataError, match=says):
        CaeDetector().fit(inputs, torch.tensor([0, 1, 0, 1]))


def test_a_label_that_training_did_not_have_is_refused() -> None:
    detector = CaeDetector(CaeOptions(hidden=8, latent=4, epochs=1)).fit(*shapes())
    with pytest.raises(DataError, match="16 inputs and 2 classes"):
        detector.score(shapes()[0], torch.full((300,), 2))


def test_an_alpha_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="alpha must be from 0 to 1"):
        CaeOptions(1.5)
