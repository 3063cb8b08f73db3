"""The owner's shares are disjoint, stratified, complete and repeatable."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.datasets import DataSet
from common.errors import ConfigurationError, DataError
from common.examples import Examples
from common.splits import OwnerShares, owner_shares, stratified

FRACTIONS = {"train": 0.5, "references": 0.2, "trigger_fit": 0.3, "trigger_calibration": 0.3}
OF_TRAIN = ("train", "references", "unclaimed")
OF_TEST = ("trigger_fit", "trigger_calibration", "evaluation")


def numbered(classes: int, each: int, start: int) -> Examples:
    """Examples whose input is their own number."""
    total = classes * each
    names = tuple(f"class {i}" for i in range(classes))
    return Examples((torch.arange(start, start + total)[:, None],), torch.arange(classes).repeat(each), names)


@pytest.fixture
def data() -> DataSet:
    return DataSet("numbers", numbered(4, 100, 0), numbered(4, 40, 10_000))


def rows(shares: OwnerShares, name: str) -> list[int]:
    examples: Examples = getattr(shares, name)
    return [int(row) for row in examples.inputs[0].flatten()]


def test_every_example_is_in_exactly_one_share(data: DataSet) -> None:
    shares = owner_shares(data, seed=0, **FRACTIONS)
    assert sorted(row for name in OF_TRAIN for row in rows(shares, name)) == list(range(400))
    assert sorted(row for name in OF_TEST for row in rows(shares, name)) == list(range(10_000, 10_160))


def test_every_class_is_divided_alike(data: DataSet) -> None:
    shares = owner_shares(data, seed=0, **FRACTIONS)
    counts = {name: getattr(shares, name).labels.bincount().tolist() for name in (*OF_TRAIN, *OF_TEST)}
    assert counts == {
        "train": [50] * 4,
        "references": [20] * 4,
        "unclaimed": [30] * 4,
        "trigger_fit": [12] * 4,
        "trigger_calibration": [12] * 4,
        "evaluation": [16] * 4,
    }


def test_shares_repeat_with_the_seed_and_change_with_it(data: DataSet) -> None:
    first, again, other = (owner_shares(data, seed=seed, **FRACTIONS) for seed in (1, 1, 2))
    for name in (*OF_TRAIN, *OF_TEST):
        assert rows(first, name) == rows(again, name) != rows(other, name)


def test_examples_that_belong_together_are_not_parted(data: DataSet) -> None:
    tracks = torch.arange(400) // 4 % 5 + 5 * data.train.labels
    shares = owner_shares(replace(data, train_groups=tracks), seed=0, **FRACTIONS)
    seen = [{int(tracks[row]) for row in rows(shares, name)} for name in OF_TRAIN]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 20


def test_the_whole_training_set_may_be_claimed(data: DataSet) -> None:
    shares = owner_shares(data, seed=0, **(FRACTIONS | {"train": 0.7, "references": 0.3}))
    assert len(shares.unclaimed) == 0
    assert len(shares.train) == 280


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": 0.0}, "train must be above 0"),
        ({"references": 1.5}, "references must be above 0 and at most 1"),
        ({"references": float("nan")}, "references must be"),
        ({"train": 0.9}, "more than the whole training set"),
        ({"trigger_fit": 0.7}, "leaves nothing of the test set for evaluation"),
    ],
)
def test_impossible_fractions_are_refused(data: DataSet, change: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        owner_shares(data, seed=0, **(FRACTIONS | change))


def test_a_share_that_would_be_empty_is_named(data: DataSet) -> None:
    with pytest.raises(DataError, match="the trigger_fit share of numbers would hold nothing"):
        owner_shares(data, seed=0, **(FRACTIONS | {"trigger_fit": 0.001}))


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=80),
    st.lists(st.floats(0.01, 0.3), min_size=1, max_size=3),
    st.booleans(),
)
def test_stratified_shares_hold_every_index_once(classes: list[int], fractions: list[float], grouped: bool) -> None:
    labels = torch.tensor(classes)
    groups = torch.arange(len(classes)) // 3 - 1 if grouped else None
    shares = stratified(labels, fractions, torch.Generator().manual_seed(0), groups=groups)
    assert len(shares) == len(fractions) + 1
    assert torch.equal(torch.cat(shares).sort().values, torch.arange(len(classes)))
    if groups is not None:
        homes = [set(groups[share].tolist()) - {-1} for share in shares]
        assert sum(map(len, homes)) == len(set.union(*homes))


@given(st.integers(1, 200), st.floats(0.01, 0.99))
def test_a_stratified_share_is_right_to_half_an_example(count: int, fraction: float) -> None:
    share, _ = stratified(torch.zeros(count, dtype=torch.int64), [fraction], torch.Generator().manual_seed(0))
    assert abs(len(share) - fraction * count) <= 0.5 + 1e-9
