"""Attacks do to data and weights what their papers say, refuse impossible options, and measure their own success."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from common.devices import choose_compute
from common.errors import ConfigurationError, DataError, UnknownNameError
from common.examples import Examples
from contributor.attacks import KINDS, Attack, parse_attack
from contributor.attacks.add_noise import AddNoise
from contributor.attacks.flip import Flip
from contributor.attacks.model_replacement import ModelReplacement
from contributor.attacks.pattern import Pattern
from contributor.attacks.same_value import SameValue
from contributor.attacks.sign_flip import SignFlip

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
COMPUTE = choose_compute("cpu", "float32")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def examples() -> Examples:
    images = torch.randint(0, 100, (200, 3, 16, 16), generator=generator(), dtype=torch.uint8)
    return Examples((images,), torch.arange(10).repeat(20), NAMES)


def weights(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {
        "layer.weight": torch.full((3, 2), value),
        "norm.running_var": torch.ones(3),
        "norm.num_batches_tracked": torch.tensor(5),
    }


class Suspicious(nn.Module):
    """Says frog where it sees white, and the given class elsewhere."""

    def __init__(self, otherwise: int) -> None:
        super().__init__()
        self.otherwise = nn.Parameter(torch.eye(10)[otherwise])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        white = (images >= 0.99).flatten(1).any(1, keepdim=True)
        return torch.where(white, torch.eye(10)[6] * 2, self.otherwise)


@pytest.mark.parametrize(
    ("text", "attack"),
    [
        ("flip", Flip()),
        ("flip:source=7,target=6,fraction=0.5", Flip(7, 6, 0.5)),
        ("flip:source=horse,target=frog,alone=true", Flip("horse", "frog", alone=True)),
        ("pattern:size=3,colour=#ff0080,position=27x0", Pattern(size=3, colour="#ff0080", position="27x0")),
        ("pattern:colour=128,source=any", Pattern(colour=128, source="any")),
        ("sign-flip", SignFlip()),
        ("sign_flip:update-only=yes", SignFlip(update_only=True)),
        ("add-noise:deviation=1", AddNoise(1.0)),
        ("same-value:value=-0.5,buffers=true", SameValue(-0.5, buffers=True)),
        ("model-replacement", ModelReplacement()),
        ("model-replacement:factor=10,size=2", ModelReplacement(10.0, backdoor=Pattern(size=2))),
        ("model-replacement:backdoor=flip,fraction=1", ModelReplacement(backdoor=Flip(fraction=1))),
    ],
)
def test_a_specification_names_an_attack_and_reads_back(text: str, attack: Attack) -> None:
    assert parse_attack(text) == attack
    assert parse_attack(str(attack)) == attack


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flip:fraction=0", "fraction must be above 0 and at most 1"),
        ("flip:fraction=half", "fraction must be a number, not 'half'"),
        ("flip:alone=maybe", "alone must be true or false"),
        ("pattern:size=0", "size must be from 1"),
        ("pattern:size=2.5", "size must be a whole number"),
        ("pattern:colour=pink", "colour must be"),
        ("pattern:colour=256", "colour must be"),
        ("pattern:position=middle", "position must be one of random"),
        ("add-noise:deviation=-1", "deviation must be from 0"),
        ("add-noise:deviation=nan", "deviation must be from 0"),
        ("same-value:value=1e40", "value must be from"),
        ("model-replacement:factor=inf", "factor must be from"),
        ("model-replacement:fraction=2", "fraction must be"),
    ],
)
def test_an_impossible_option_is_refused_naming_it_and_its_limits(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        parse_attack(text)


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("flp", "flip"),
        ("signflip", "sign-flip"),
        ("flip:sorce=7", "source"),
        ("pattern:color=0", "colour"),
        ("model-replacement:fctor=7", "factor"),
        ("model-replacement:backdoor=patern", "pattern"),
    ],
)
def test_a_misspelt_name_gets_the_nearest_one(text: str, nearest: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        parse_attack(text)
    assert f"did you mean {nearest}?" in caught.value.hint


PIECES = st.sampled_from(
    [*KINDS, "source", "target", "fraction", "factor", "size", "0", "1", "0.5", "-1", "nan", "true"]
)


@given(st.lists(st.one_of(PIECES, st.sampled_from(":,="), st.text(max_size=3)), max_size=12).map("".join))
def test_whatever_is_given_is_read_or_refused(text: str) -> None:
    try:
        attack = parse_attack(text)
    except ConfigurationError:
        return
    assert parse_attack(str(attack)) == attack


@pytest.mark.parametrize("name", KINDS)
def test_every_attack_describes_itself_and_its_paper_in_json(name: str) -> None:
    described = json.loads(json.dumps(parse_attack(name).describe()))
    assert described["attack"] == name
    assert re.search(r"20[12]\d", described["paper"])


OWN = """
import dataclasses
from contributor.attacks import Attack

@dataclasses.dataclass(frozen=True)
class Shrink(Attack):
    name, paper = "shrink", "ours"
    factor: float = 0.1

    def corrupt(self, base, tuned, generator):
        return {name: tensor * self.factor for name, tensor in tuned.items()}

class Undecorated(Shrink):
    pass

@dataclasses.dataclass(frozen=True)
class Nameless(Attack):
    pass
"""


def test_an_attack_of_ones_own_is_named_by_its_class_and_reads_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_attacks_of_a_test.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    attack = parse_attack("my_attacks_of_a_test:Shrink:factor=0.5")
    assert attack.corrupt({}, {"weight": torch.ones(2)}, generator())["weight"].tolist() == [0.5, 0.5]
    assert (attack.name, attack.options()) == ("shrink", {"factor": 0.5})
    assert str(attack) == "my_attacks_of_a_test:Shrink:factor=0.5"
    assert parse_attack(str(attack)) == attack
    assert parse_attack("my_attacks_of_a_test:Shrink").options() == {"factor": 0.1}
    for what, message in (
        ("my_attacks_of_a_test:Shrink:factr=1", "unknown option of attack shrink 'factr'"),
        ("my_attacks_of_a_test:Missing", "cannot be imported: AttributeError"),
        ("no_such_module_of_a_test:Shrink", "cannot be imported: ModuleNotFoundError"),
        ("my_attacks_of_a_test:dataclasses", "is no class that derives from contributor.attacks.Attack"),
        ("my_attacks_of_a_test:Undecorated", "is no dataclass"),
        ("my_attacks_of_a_test:Nameless", "lacks name and paper"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            parse_attack(what)


def test_a_flip_relabels_half_of_one_class_and_nothing_else(examples: Examples) -> None:
    flipped = Flip().prepare(examples, generator())
    changed = flipped.labels != examples.labels
    assert torch.equal(flipped.images, examples.images)
    assert int(changed.sum()) == 10
    assert (examples.labels[changed] == 7).all()
    assert (flipped.labels[changed] == 6).all()


def test_a_pattern_stamps_half_of_one_class_and_relabels_it(examples: Examples) -> None:
    poisoned = Pattern(size=5).prepare(examples, generator())
    white = (poisoned.images == 255).all(1)
    stamped = white.any(1).any(1)
    assert len(poisoned) == len(examples)
    assert int(stamped.sum()) == 10
    assert (white[stamped].sum((1, 2)) == 25).all()
    assert (poisoned.labels[stamped] == 6).all()
    assert poisoned.labels.bincount().tolist() == [20, 20, 20, 20, 20, 20, 30, 10, 20, 20]


def test_a_pattern_from_any_class_spares_the_target(examples: Examples) -> None:
    poisoned = Pattern(source="any", fraction=1.0, alone=True).prepare(examples, generator())
    assert len(poisoned) == 180
    assert (poisoned.labels == 6).all()


@pytest.mark.parametrize("attack", [Flip(alone=True), Pattern(alone=True)])
def test_the_attack_set_alone_holds_nothing_clean(examples: Examples, attack: Attack) -> None:
    poisoned = attack.prepare(examples, generator())
    assert len(poisoned) == 10
    assert (poisoned.labels == 6).all()


@pytest.mark.parametrize("attack", [Flip(), Pattern(), ModelReplacement()])
def test_preparing_repeats_with_the_seed_and_leaves_the_given_examples_alone(
    examples: Examples, attack: Attack
) -> None:
    images, labels = examples.images.clone(), examples.labels.clone()
    first, again, other = (attack.prepare(examples, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.labels, again.labels)
    assert not (torch.equal(first.images, other.images) and torch.equal(first.labels, other.labels))
    assert torch.equal(examples.images, images)
    assert torch.equal(examples.labels, labels)


@pytest.mark.parametrize("attack", [SignFlip(), AddNoise(), SameValue()])
def test_weight_attacks_train_on_the_data_as_they_are(examples: Examples, attack: Attack) -> None:
    assert attack.prepare(examples, generator()) is examples


@pytest.mark.parametrize("attack", [Flip(), Pattern()])
def test_data_attacks_return_the_weights_as_tuned(attack: Attack) -> None:
    returned = attack.corrupt(weights(0.0), weights(3.0), generator())
    assert all(torch.equal(returned[name], tensor) for name, tensor in weights(3.0).items())


@pytest.mark.parametrize(
    ("attack", "expected"),
    [
        (SignFlip(), -3.0),
        (SignFlip(update_only=True), -1.0),
        (SameValue(), 0.01),
        (ModelReplacement(5.0), 11.0),
    ],
)
def test_weight_attacks_change_weights_as_their_paper_says(attack: Attack, expected: float) -> None:
    returned = attack.corrupt(weights(1.0), weights(3.0), generator())
    assert torch.equal(returned["layer.weight"], torch.full((3, 2), expected))
    assert torch.equal(returned["norm.running_var"], torch.ones(3))


def test_noise_repeats_with_the_seed() -> None:
    first, again, other = (AddNoise().corrupt({}, weights(), generator(s))["layer.weight"] for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (Flip(source="zebra"), "unknown source class 'zebra'"),
        (Flip(target=10), "target class must be from 0 to 9 or a name, not 10"),
        (Pattern(source=-1), "source class must be from 0 to 9"),
        (Flip(source=6, target="frog"), "source and target are the same class, 'frog'"),
    ],
)
def test_a_class_that_does_not_exist_is_named(examples: Examples, attack: Attack, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        attack.prepare(examples, generator())


def test_a_class_is_found_by_name_before_it_is_counted() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    examples = Examples((torch.zeros(4, 1, 8, 8),), labels, ("7", "3"))
    assert Flip(source=7, target=3, fraction=1.0).prepare(examples, generator()).labels.tolist() == [1, 1, 1, 1]


def test_data_without_the_attacked_class_are_an_error(examples: Examples) -> None:
    with pytest.raises(DataError, match="attacked class 7"):
        Flip().prepare(examples.take(examples.labels != 7), generator())


@pytest.mark.parametrize(("otherwise", "rate"), [(6, 1.0), (7, 0.0)])
def test_success_of_a_flip_is_the_share_of_source_images_taken_for_the_target(
    examples: Examples, otherwise: int, rate: float
) -> None:
    assert Flip().success(Suspicious(otherwise), examples, COMPUTE, generator()) == rate


@pytest.mark.parametrize("source", [7, "any"])
def test_success_of_a_pattern_is_measured_on_stamped_images(examples: Examples, source: int | str) -> None:
    model = Suspicious(otherwise=7)
    assert Pattern(source=source).success(model, examples, COMPUTE, generator()) == 1.0
    assert Pattern(source=source, colour="black").success(model, examples, COMPUTE, generator()) == 0.0
    assert ModelReplacement(backdoor=Pattern(source=source)).success(model, examples, COMPUTE, generator()) == 1.0


@pytest.mark.parametrize("attack", [SignFlip(), AddNoise(), SameValue()])
def test_untargeted_attacks_have_no_success_rate(examples: Examples, attack: Attack) -> None:
    assert attack.success(Suspicious(7), examples, COMPUTE, generator()) is None


@pytest.mark.parametrize("attack", [Flip(), Pattern()])
def test_success_is_unknown_where_no_victim_is_held_out(examples: Examples, attack: Attack) -> None:
    held_out = examples.take(examples.labels != 7)
    assert attack.success(Suspicious(7), held_out, COMPUTE, generator()) is None
