"""Partitions hand out every example once, and as flwr-datasets does."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConfigurationError, DataError, UnknownNameError
from common.examples import Examples
from common.partitions import dirichlet, iid, natural, parse_partition, pathological


def labels(classes: int = 10, each: int = 60, seed: int = 0) -> torch.Tensor:
    order = torch.randperm(classes * each, generator=torch.Generator().manual_seed(seed))
    return torch.arange(classes).repeat_interleave(each)[order]


def assert_each_once(shares: list[torch.Tensor], total: int) -> None:
    assert torch.equal(torch.cat(shares).sort().values, torch.arange(total))


def flower(partitioner, targets: torch.Tensor) -> list[np.ndarray]:  # type: ignore[no-untyped-def]
    import datasets

    partitioner.dataset = datasets.Dataset.from_dict({"label": targets.tolist(), "row": range(len(targets))})
    return [np.array(partitioner.load_partition(i)["row"]) for i in range(partitioner.num_partitions)]


@pytest.fixture(scope="module")
def partitioners():  # type: ignore[no-untyped-def]
    if importlib.util.find_spec("flwr_datasets") is None:
        pytest.skip("flwr-datasets is not installed")
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from flwr_datasets import partitioner
    return partitioner


@given(st.integers(1, 7), st.integers(7, 60), st.integers(0, 99))
def test_iid_shares_differ_in_size_by_one_at_most(count: int, total: int, seed: int) -> None:
    shares = iid(torch.zeros(total), count, seed)
    assert_each_once(shares, total)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(st.integers(1, 8), st.floats(0.05, 100), st.integers(0, 99))
def test_dirichlet_gives_every_example_to_one_share(count: int, alpha: float, seed: int) -> None:
    targets = labels(each=20)
    assert_each_once(dirichlet(targets, count, alpha, seed, min_size=0), len(targets))


@given(st.integers(1, 12), st.integers(1, 10), st.integers(0, 99))
def test_pathological_shares_hold_exactly_their_number_of_classes(count: int, each: int, seed: int) -> None:
    targets = labels(each=20)
    if count * each < 10:
        with pytest.raises(ConfigurationError, match="to nobody"):
            pathological(targets, count, each, seed)
        return
    shares = pathological(targets, count, each, seed)
    assert_each_once(shares, len(targets))
    assert [len(targets[share].unique()) for share in shares] == [each] * count
    holders = [sum(int((targets[share] == label).any()) for share in shares) for label in range(10)]
    assert max(holders) - min(holders) <= 1


@pytest.mark.parametrize(
    "divide", [iid, lambda *a: dirichlet(a[0], a[1], 0.5, a[2]), lambda *a: pathological(a[0], a[1], 3, a[2])]
)
def test_shares_repeat_with_the_seed_and_change_with_it(divide) -> None:  # type: ignore[no-untyped-def]
    first, again, other = (divide(labels(), 5, seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_small_alpha_skews_classes_and_a_large_one_does_not() -> None:
    def largest_class(alpha: float) -> float:
        shares = dirichlet(labels(), 6, alpha, seed=3, min_size=1)
        return float(np.mean([int(labels()[s].bincount().max()) / len(s) for s in shares]))

    assert largest_class(0.1) > 0.4
    assert largest_class(1000) < 0.15


def test_iid_shares_are_those_of_flowers_partitioner_on_the_shuffled_data(partitioners) -> None:  # type: ignore[no-untyped-def]
    order = np.random.default_rng(5).permutation(600)
    theirs = flower(partitioners.IidPartitioner(7), labels()[order])
    ours = iid(labels(), 7, seed=5)
    assert all(np.array_equal(order[their], our.numpy()) for their, our in zip(theirs, ours, strict=True))


@pytest.mark.parametrize(("count", "alpha", "seed"), [(5, 0.5, 0), (12, 0.3, 7), (3, 100.0, 42)])
def test_dirichlet_shares_are_those_of_flowers_partitioner(partitioners, count: int, alpha: float, seed: int) -> None:  # type: ignore[no-untyped-def]
    import warnings

    theirs_of = partitioners.DirichletPartitioner(count, "label", alpha, min_partition_size=10, seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns when it draws again
        theirs = flower(theirs_of, labels())
    ours = dirichlet(labels(), count, alpha, seed, min_size=10)
    assert all(np.array_equal(their, our.numpy()) for their, our in zip(theirs, ours, strict=True))


def test_pathological_shares_have_the_properties_of_flowers_partitioner(partitioners) -> None:  # type: ignore[no-untyped-def]
    deterministic = partitioners.PathologicalPartitioner(10, "label", 2, class_assignment_mode="deterministic", seed=1)
    theirs = flower(deterministic, labels())
    ours = [share.numpy() for share in pathological(labels(), 10, 2, seed=1)]

    def properties(shares: list[np.ndarray]) -> list[list[int]]:
        counts = [np.bincount(labels().numpy()[share], minlength=10) for share in shares]
        return sorted(sorted(int(n) for n in count if n) for count in counts)

    assert properties(ours) == properties(theirs) == [[30, 30]] * 10


def whose(count: int = 90, clients: int = 6) -> torch.Tensor:
    """Clients with numbers of their own, 10, 20 ..., of unequal sizes."""
    draws = torch.Generator().manual_seed(0)
    return 10 * (1 + torch.cat([torch.arange(clients), torch.randint(clients, (count - clients,), generator=draws)]))


def test_natural_shares_are_the_clients_own_examples_in_the_order_of_their_numbers() -> None:
    shares = natural(whose(), 6, seed=0)
    assert_each_once(shares, 90)
    assert [whose()[share].unique().tolist() for share in shares] == [[10], [20], [30], [40], [50], [60]]


@given(st.integers(1, 6), st.integers(0, 99))
def test_fewer_natural_shares_hold_whole_clients(count: int, seed: int) -> None:
    shares = natural(whose(), count, seed)
    assert_each_once(shares, 90)
    held = [set(whose()[share].tolist()) for share in shares]
    assert sum(len(one) for one in held) == 6
    assert max(map(len, held)) - min(map(len, held)) <= 1


def test_natural_shares_are_those_of_flowers_partitioner(partitioners) -> None:  # type: ignore[no-untyped-def]
    import datasets

    theirs_of = partitioners.NaturalIdPartitioner("client")
    theirs_of.dataset = datasets.Dataset.from_dict({"client": whose().tolist(), "row": range(90)})
    theirs = [frozenset(theirs_of.load_partition(i)["row"]) for i in range(theirs_of.num_partitions)]
    assert set(theirs) == {frozenset(share.tolist()) for share in natural(whose(), 6, seed=0)}


def test_a_natural_partition_takes_one_clients_examples_and_stays_divisible() -> None:
    examples = Examples((torch.arange(90)[:, None],), torch.zeros(90, dtype=torch.int64), ("a",), whose())
    mine = parse_partition("natural:index=2,count=6").apply(examples)
    assert mine.clients is not None
    assert mine.clients.unique().tolist() == [30]
    assert torch.equal(mine.inputs[0].flatten(), torch.nonzero(whose() == 30).flatten())


def test_more_natural_shares_than_clients_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="of 6 clients and can be divided among 1 to 6, not 7"):
        natural(whose(), 7, 0)


def test_data_that_nobody_divided_have_no_natural_shares() -> None:
    examples = Examples((torch.zeros(4, 1),), torch.zeros(4, dtype=torch.int64), ("a",))
    with pytest.raises(DataError, match="do not say whose each example is"):
        parse_partition("natural:index=0,count=2").apply(examples)


def test_a_minimum_nobody_can_have_is_an_error_that_says_what_to_change() -> None:
    with pytest.raises(DataError, match="at least 101") as caught:
        dirichlet(labels(each=100), 10, 0.5, 0, min_size=101)
    assert "lower min_size" in caught.value.hint


def test_more_shares_than_examples_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="1 to 3, not 4"):
        iid(torch.zeros(3), 4, 0)


def test_a_class_too_small_for_its_holders_is_named() -> None:
    with pytest.raises(DataError, match="class 1 has 1"):
        pathological(torch.tensor([0, 0, 0, 0, 1]), 4, 2, 0)


def test_a_partition_gives_one_share_of_the_examples() -> None:
    targets = labels()
    examples = Examples((torch.arange(600)[:, None],), targets, tuple("abcdefghij"))
    parts = [parse_partition(f"dirichlet:alpha=0.5,index={i},count=4,seed=9").apply(examples) for i in range(4)]
    rows = torch.cat([part.inputs[0].flatten() for part in parts])
    assert torch.equal(rows.sort().values, torch.arange(600))
    assert torch.equal(parts[2].labels, targets[parts[2].inputs[0].flatten()])


@pytest.mark.parametrize(
    "text",
    [
        "iid:index=0,count=3",
        "dirichlet:index=1,count=2,alpha=0.05,min_size=3",
        "pathological:index=0,count=9,classes=4",
        "natural:index=22,count=23",
    ],
)
def test_a_specification_reads_back_as_itself(text: str) -> None:
    partition = parse_partition(text)
    assert parse_partition(str(partition)) == partition


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("iid", "needs index, count"),
        ("iid:index=0", "needs count"),
        ("iid:index=3,count=3", "index must be from 0 to 2, not 3"),
        ("iid:index=-1,count=3", "index must be from 0 to 2"),
        ("iid:index=0,count=0", "count must be from 1"),
        ("iid:index=0,count=two", "count must be a whole number, not 'two'"),
        ("iid:index=0,count=2.5", "count must be a whole number"),
        ("dirichlet:index=0,count=2,alpha=0", "alpha must be from 1e-06"),
        ("dirichlet:index=0,count=2,alpha=nan", "alpha must be from"),
        ("pathological:index=0,count=2,classes=0", "classes must be from 1"),
        ("iid:index=0,index=1,count=2", "gives index twice"),
        ("iid:", "ends after the colon"),
        ("iid:index", "not key=value"),
        ("iid:" + "x" * 1000, "at most 1000"),
    ],
)
def test_a_wrong_specification_is_refused_naming_field_and_limit(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        parse_partition(text)


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("dirichle:index=0,count=2", "dirichlet"),
        ("iid:idx=0,count=2", "index"),
        ("dirichlet:index=0,count=2,aplha=1", "alpha"),
    ],
)
def test_a_misspelt_name_gets_the_nearest_one(text: str, nearest: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        parse_partition(text)
    assert f"did you mean {nearest}?" in caught.value.hint


WORDS = st.sampled_from(
    [
        "iid",
        "dirichlet",
        "pathological",
        "natural",
        "index",
        "count",
        "seed",
        "alpha",
        "0",
        "1",
        "7",
        "1e9",
        "nan",
        "-3",
    ]
)


@given(st.lists(st.one_of(WORDS, st.sampled_from(":,=_- "), st.text(max_size=3)), max_size=14).map("".join))
def test_whatever_is_given_is_read_or_refused(text: str) -> None:
    try:
        partition = parse_partition(text)
    except ConfigurationError:
        return
    assert parse_partition(str(partition)) == partition
