"""The utility check: what a would-be release may lose."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from common.errors import ConfigurationError
from common.evaluation import Evaluation
from owner.gatekeeper import UtilityLimits
from owner.gatekeeper.utility import check_accuracy, check_recall, recall_allowance

CLASSES = 4
NAMES = ("cat", "dog", "bird", "fish")


def evaluation(right: list[int], each: int = 100) -> Evaluation:
    """An evaluation with `right[c]` of `each` images of class c right; wrong ones go to the next class."""
    labels = torch.arange(CLASSES).repeat_interleave(each)
    place = torch.arange(each).repeat(CLASSES)
    predicted = torch.where(place < torch.tensor(right)[labels], labels, (labels + 1) % CLASSES)
    return Evaluation.from_logits(torch.nn.functional.one_hot(predicted, CLASSES).float(), labels, CLASSES)


BEFORE = evaluation([90, 90, 90, 90])


@pytest.mark.parametrize(
    ("right", "decision"),
    [([90, 90, 90, 86], "accepted"), ([90, 90, 90, 85], "rejected"), ([99, 99, 99, 99], "accepted")],
)
def test_accuracy_may_fall_by_one_point_and_no_more(right: list[int], decision: str) -> None:
    found = check_accuracy(BEFORE, evaluation(right), UtilityLimits(), seconds=0.0)
    assert found.decision == decision
    assert found.code == (None if decision == "accepted" else "UTILITY_ACCURACY")


def test_the_allowance_of_a_class_is_five_points_beyond_binomial_noise() -> None:
    lowest = 91 / 102 - 0.05
    expected = 0.05 + 1.645 * np.sqrt(lowest * (1 - lowest) / 100)
    assert recall_allowance(0.9, 100, 0.05) == pytest.approx(expected)


@pytest.mark.parametrize(("right", "decision"), [(80, "accepted"), (78, "rejected")])
def test_one_class_may_lose_its_allowance_whatever_the_others_gain(right: int, decision: str) -> None:
    found = check_recall(BEFORE, evaluation([100, 100, right, 100]), UtilityLimits(), NAMES, seconds=0.0)
    assert found.decision == decision
    assert "bird" in found.detail


def test_the_class_that_exceeds_its_limit_is_named() -> None:
    found = check_recall(BEFORE, evaluation([90, 20, 90, 88]), UtilityLimits(), NAMES, seconds=0.0)
    assert found.code == "UTILITY_RECALL"
    assert "dog, recall 0.900 -> 0.200" in found.detail


@pytest.mark.parametrize("few", [0, 1], ids=["few images first", "few images last"])
def test_the_class_that_decides_is_the_one_that_exceeds_its_own_limit_whatever_others_lose(few: int) -> None:
    """Two of ten images are no more than chance allows for, fourteen of a hundred are."""
    each = (10, 100) if few == 0 else (100, 10)
    labels = torch.tensor([0, 1]).repeat_interleave(torch.tensor(each))

    def seen(of_few: int, of_many: int) -> Evaluation:
        right = (of_few, of_many) if few == 0 else (of_many, of_few)
        place = torch.cat([torch.arange(count) for count in each])
        predicted = torch.where(place < torch.tensor(right)[labels], labels, 1 - labels)
        return Evaluation.from_logits(torch.nn.functional.one_hot(predicted, CLASSES).float(), labels, CLASSES)

    found = check_recall(seen(10, 95), seen(8, 81), UtilityLimits(), NAMES, seconds=0.0)
    assert (found.decision, found.score) == ("rejected", pytest.approx(0.14))
    assert found.threshold == recall_allowance(0.95, 100, 0.05)
    assert NAMES[1 - few] in found.detail


def test_few_images_are_given_more_room() -> None:
    assert recall_allowance(1.0, 10, 0.05) > recall_allowance(1.0, 1000, 0.05) > 0.05


def test_a_class_without_images_is_left_out() -> None:
    labels = torch.zeros(50, dtype=torch.int64)
    seen = Evaluation.from_logits(torch.nn.functional.one_hot(labels, CLASSES).float(), labels, CLASSES)
    assert check_recall(seen, seen, UtilityLimits(), NAMES, seconds=0.0).decision == "accepted"


def test_a_release_that_truly_loses_the_allowed_five_points_passes_nineteen_times_in_twenty() -> None:
    random = np.random.default_rng(0)
    before, n = 0.9, 400
    right = random.binomial(n, before - 0.05, size=5000) / n
    rejected = (before - right > recall_allowance(before, n, 0.05)).mean()
    assert rejected <= 0.06


@pytest.mark.parametrize("wrong", [{"accuracy_drop": -0.1}, {"recall_drop": 1.5}])
def test_limits_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        UtilityLimits(**wrong)


def test_a_model_that_is_not_useful_enough_is_told_so_and_not_suspected() -> None:
    after = evaluation([90, 90, 60, 90])
    for found in (
        check_accuracy(BEFORE, after, UtilityLimits(), seconds=0.0),
        check_recall(BEFORE, after, UtilityLimits(), NAMES, seconds=0.0),
    ):
        assert found.decision == "rejected"
        assert "less useful" in found.detail
        assert "says nothing of intent" in found.detail
