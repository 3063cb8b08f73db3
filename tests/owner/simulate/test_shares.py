"""Contributors' shares: nobody's image is somebody else's, and none is the owner's."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from common.datasets import load, load_examples
from common.errors import ConfigurationError, DataError
from common.examples import Examples
from owner.simulate.checking import check
from owner.simulate.scenario import Scenario, parse
from owner.simulate.shares import divide, write_shares

FOUR = """
[settings.data]
train = 0.4
references = 0.2
[[contributors]]
name = "ada"
[[contributors]]
name = "bo"
partition = "dirichlet:alpha=0.3,min_size=1"
[[contributors]]
name = "cy"
partition = "dirichlet:alpha=0.3,min_size=1"
[[contributors]]
name = "eve"
attack = "flip"
"""


@pytest.fixture
def scenario() -> Scenario:
    return parse(FOUR, name="four", seed=3)


@pytest.fixture
def numbered() -> Examples:
    """400 examples, each of which is its own number."""
    numbers = torch.arange(400)
    return Examples((numbers.view(-1, 1),), numbers % 4, ("a", "b", "c", "d"))


def test_shares_are_disjoint_and_together_all_there_is(scenario: Scenario, numbered: Examples) -> None:
    shares = divide(scenario, numbered)
    given = torch.cat([share.inputs[0].flatten() for share in shares.values()])
    assert sorted(given.tolist()) == list(range(400))


def test_a_dirichlet_group_is_skewed_and_an_iid_one_is_not(scenario: Scenario, numbered: Examples) -> None:
    shares = divide(scenario, numbered)
    largest = {name: share.labels.bincount(minlength=4).max() / len(share) for name, share in shares.items()}
    assert max(largest["bo"], largest["cy"]) > 0.4 > max(largest["ada"], largest["eve"])


def test_natural_contributors_get_what_whole_clients_have(numbered: Examples) -> None:
    people = "".join(f'[[contributors]]\nname = "{name}"\npartition = "natural"\n' for name in ("ada", "bo", "cy"))
    divided = dataclasses.replace(numbered, clients=torch.arange(400) % 5)
    found = divide(parse(people, name="three"), divided)
    of = [set((share.inputs[0].flatten() % 5).tolist()) for share in found.values()]
    assert sorted(number for numbers in of for number in numbers) == [0, 1, 2, 3, 4]
    with pytest.raises(DataError, match="do not say whose"):
        divide(parse(people, name="three"), numbered)


def test_the_same_seed_gives_the_same_shares_and_another_seed_others(scenario: Scenario, numbered: Examples) -> None:
    again, other = divide(parse(FOUR, name="four", seed=3), numbered), divide(parse(FOUR, name="x", seed=4), numbered)
    first = divide(scenario, numbered)
    assert torch.equal(first["ada"].labels, again["ada"].labels)
    assert not torch.equal(first["ada"].inputs[0], other["ada"].inputs[0])


def test_shares_on_disk_are_what_the_owner_leaves_of_the_training_set(scenario: Scenario, tmp_path: Path) -> None:
    counts = write_shares(scenario, tmp_path)
    assert {name: len(load_examples(tmp_path / f"{name}.safetensors")) for name in counts} == counts
    assert abs(sum(counts.values()) - 0.4 * len(load("digits", seed=3).train)) <= 10
    assert len(load_examples(tmp_path / "evaluation.safetensors")) > 0


@pytest.mark.parametrize("option", ["alpha=0", "alpha=much", "min_size=-1"])
def test_a_wrong_partition_option_is_found_before_anything_runs(option: str) -> None:
    text = FOUR.replace("alpha=0.3,min_size=1", option)
    with pytest.raises(ConfigurationError, match=option.partition("=")[0]):
        check(parse(text, name="four"))
