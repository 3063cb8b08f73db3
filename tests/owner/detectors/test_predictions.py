"""Predictions on clean images: drops, and drift from class to class."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import Tensor

from owner.detectors import AccuracyDrop, ConfusionDrift, Evidence, RecallDrop
from tests.owner.detectors.material import shown

C, PER_CLASS = 5, 40
LABELS = torch.arange(C * PER_CLASS) % C


def sure(predicted: Tensor) -> Tensor:
    return 6.0 * torch.nn.functional.one_hot(predicted, C).float()


RELEASE = shown(torch.zeros(len(LABELS), 2), sure(LABELS), LABELS)


def predicting(predicted: Tensor) -> Evidence:
    return shown(RELEASE.features, sure(predicted), LABELS, RELEASE)


def flipped(source: int, target: int, count: int) -> Tensor:
    predicted = LABELS.clone()
    predicted[(source == LABELS).nonzero().flatten()[:count]] = target
    return predicted


def test_drops_are_those_of_counting() -> None:
    worse = predicting(flipped(2, 0, 10))
    assert AccuracyDrop().score(worse) == pytest.approx(10 / 200)
    assert RecallDrop().score(worse) == pytest.approx(10 / 40)
    assert RecallDrop().explain(worse)["class"] == 2


def test_a_better_model_has_a_negative_drop() -> None:
    release = shown(RELEASE.features, sure(flipped(1, 3, 20)), LABELS)
    assert AccuracyDrop().score(shown(RELEASE.features, sure(LABELS), LABELS, release)) == pytest.approx(-0.1)


def test_the_largest_drop_is_told_though_another_class_gained_more() -> None:
    release = shown(RELEASE.features, sure(flipped(1, 3, 30)), LABELS)
    found = RecallDrop().explain(shown(RELEASE.features, sure(flipped(4, 0, 8)), LABELS, release))
    assert (found["drop"], found["class"]) == (pytest.approx(8 / 40), 4)
    assert found["per_class"][1] == pytest.approx(-30 / 40)


def test_confusion_drift_is_that_of_counting_by_hand() -> None:
    """Cell by cell, with a class that the images lack."""
    draws = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 1, 2, 4]).repeat_interleave(torch.tensor([30, 20, 25, 40]))
    before, after = (2 * torch.randn(len(labels), C, generator=draws) + sure(labels) / 3 for _ in range(2))
    sources = (0, 1, 2, 4)

    def largest(probabilities: tuple[np.ndarray, np.ndarray]) -> float:
        old, new = ([p[labels.numpy() == s].mean(0) for s in sources] for p in probabilities)
        change = np.array(new) - np.array(old)
        change -= change.mean(0)  # over the rows; over a row it is nothing, for both sum to one
        found = []
        for row, s in enumerate(sources):
            n = int((labels == s).sum())
            for t in set(range(C)) - {s}:
                q = ((new[row][t] + old[row][t]) / 2 * n + 0.5) / (n + 1)
                found.append(change[row, t] / np.sqrt(q * (1 - q) / n))
        return max(found)

    def counted(logits: Tensor) -> np.ndarray:
        return np.eye(C)[logits.argmax(1).numpy()]

    release = shown(torch.zeros(len(labels), 2), before, labels)
    found = ConfusionDrift().measures(shown(release.features, after, labels, release))
    assert found["soft"] == pytest.approx(largest((softmax(before.numpy(), 1), softmax(after.numpy(), 1))), rel=1e-4)
    assert found["hard"] == pytest.approx(largest((counted(before), counted(after))), rel=1e-6)


def test_a_flip_is_found_with_its_source_and_target() -> None:
    found = ConfusionDrift().explain(predicting(flipped(3, 1, 12)))
    assert (found["source"], found["target"]) == (3, 1)
    assert found["soft"] > 3


def test_a_general_leaning_towards_one_class_counts_less_than_the_same_number_of_flips_from_one() -> None:
    leaning = LABELS.clone()
    for source in (0, 2, 3, 4):
        leaning[(source == LABELS).nonzero().flatten()[:4]] = 1
    detector = ConfusionDrift()
    assert detector.score(predicting(leaning)) < 0.5 * detector.score(predicting(flipped(3, 1, 16)))


def test_more_flips_score_higher() -> None:
    scores = [ConfusionDrift().score(predicting(flipped(3, 1, count))) for count in (0, 3, 8, 20)]
    assert scores == sorted(scores)
    assert scores[0] == 0


def test_the_same_share_of_flips_among_fewer_images_counts_less() -> None:
    """Binomial noise: 4 of 10 images say less than 16 of 40."""
    rows = torch.arange(C * 10)
    release = shown(RELEASE.features[rows], RELEASE.logits[rows], LABELS[rows])
    few = shown(release.features, sure(flipped(3, 1, 4)[rows]), LABELS[rows], release)
    assert ConfusionDrift().score(few) < ConfusionDrift().score(predicting(flipped(3, 1, 16)))
