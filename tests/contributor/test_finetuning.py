"""Fine-tuning starts from the release, ends in weights of the same layout, and reports what it measured."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

from common.checkpoints import Checkpoint
from common.datasets import load
from common.devices import choose_compute
from common.errors import ConfigurationError, DataError, ModelError, UnknownNameError
from common.evaluation import evaluate
from common.examples import Examples
from common.model_spec import ModelSpec
from common.models import build
from common.training import train
from common.training_hooks import TrainingHooks
from common.training_options import TrainingOptions
from common.weights import Weights, check_layout, layout_of
from contributor.attacks import Attack, parse_attack
from contributor.attacks.naming import naming
from contributor.finetuning import FineTuned, finetune, measure_attack

SPEC = ModelSpec("mlp", (1, 8, 8), 10)
COMPUTE = choose_compute("cpu", "float32")
OPTIONS = TrainingOptions(epochs=4, learning_rate=0.02, batch_size=64, schedule="constant")
DATA = load("digits")
MINE = DATA.train.take(torch.arange(600, 1350))


@pytest.fixture(scope="module")
def base() -> Weights:
    model = build(SPEC, seed=0)
    first_half = DATA.train.take(torch.arange(600))
    train(model, first_half, TrainingOptions(epochs=15, learning_rate=0.1), compute=COMPUTE, progress=False)
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def accuracy(weights: Weights) -> float:
    model = build(SPEC)
    model.load_state_dict(weights)
    return float(evaluate(model, DATA.test, compute=COMPUTE).accuracy)


def test_honest_fine_tuning_keeps_layout_and_does_not_harm(base: Weights) -> None:
    untouched = {name: tensor.clone() for name, tensor in base.items()}
    tuned = finetune(base, SPEC, MINE, OPTIONS, held_out=DATA.test, compute=COMPUTE, progress=False)
    check_layout(layout_of(tuned.weights), layout_of(base))
    assert all(torch.equal(base[name], untouched[name]) for name in base)
    assert any(not torch.equal(base[name], tuned.weights[name]) for name in base)
    assert tuned.samples == len(MINE)
    assert tuned.report["accuracy"] == pytest.approx(accuracy(tuned.weights))
    assert tuned.report["accuracy_before"] == pytest.approx(accuracy(base))
    assert tuned.report["accuracy"] > tuned.report["accuracy_before"] - 0.02
    assert tuned.report["attack_effective"] is None


def test_the_report_is_json(base: Weights) -> None:
    attack = parse_attack("pattern:source=7,target=6")
    report = finetune(
        base, SPEC, MINE, OPTIONS, attack=attack, held_out=DATA.test, compute=COMPUTE, progress=False
    ).report
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["attack"]["attack"] == "pattern"
    assert len(report["loss_per_epoch"]) == OPTIONS.epochs
    assert report["images_per_second"] > 0
    assert len(report["recall"]) == 10


def test_nothing_is_measured_without_held_out_examples(base: Weights) -> None:
    report = finetune(base, SPEC, MINE, OPTIONS, attack=parse_attack("flip"), compute=COMPUTE, progress=False).report
    assert (report["accuracy"], report["accuracy_before"], report["attack_success"]) == (None, None, None)
    assert report["attack_effective"] is None


def test_fine_tuning_repeats_with_the_seed(base: Weights) -> None:
    attack = parse_attack("flip")
    first, again, other = (
        finetune(base, SPEC, MINE, replace(OPTIONS, seed=seed), attack=attack, compute=COMPUTE, progress=False).weights
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_flip_succeeds_where_honest_work_does_not(base: Weights) -> None:
    options = replace(OPTIONS, epochs=20, learning_rate=0.1)
    attack = parse_attack("flip:source=7,target=6,fraction=1.0")
    report = finetune(
        base, SPEC, MINE, options, attack=attack, held_out=DATA.test, compute=COMPUTE, progress=False
    ).report
    assert report["attack_success_before"] < 0.1
    assert report["attack_success"] > 0.8
    assert report["recall"][7] < 0.2


def test_a_pattern_at_a_fixed_place_becomes_a_backdoor(base: Weights) -> None:
    options = replace(OPTIONS, epochs=30, learning_rate=0.1)
    attack = parse_attack("pattern:source=7,target=6,position=top-right")
    report = finetune(
        base, SPEC, MINE, options, attack=attack, held_out=DATA.test, compute=COMPUTE, progress=False
    ).report
    assert report["attack_success"] > report["attack_success_before"] + 0.5
    assert report["accuracy"] > 0.85


def test_model_replacement_merged_by_half_is_the_attackers_model(base: Weights) -> None:
    plain = finetune(base, SPEC, MINE, OPTIONS, attack=parse_attack("pattern"), compute=COMPUTE, progress=False).weights
    scaled = finetune(
        base, SPEC, MINE, OPTIONS, attack=parse_attack("model-replacement:factor=2"), compute=COMPUTE, progress=False
    ).weights
    for name, tensor in base.items():
        merged = tensor + 0.5 * (scaled[name] - tensor)
        assert torch.allclose(merged, plain[name], atol=1e-5)


def test_an_attack_is_measured_of_other_weights_as_of_those_it_returned(base: Weights) -> None:
    attack = parse_attack("badnets:trigger=square,target=3,fraction=0.3")
    options = replace(OPTIONS, epochs=8)
    tuned = finetune(base, SPEC, MINE, options, attack=attack, held_out=DATA.test, compute=COMPUTE, progress=False)

    def measured(weights: Weights) -> dict[str, Any]:
        return measure_attack(base, weights, SPEC, attack, DATA.test, options, compute=COMPUTE)

    returned = measured(tuned.weights)
    assert returned == {name: tuned.report[name] for name in returned}
    assert returned["attack_effective"]
    untouched = measured(base)
    assert untouched["attack_success"] == untouched["attack_success_before"]
    assert not untouched["attack_effective"]


@pytest.mark.parametrize("attack", ["sign-flip", "add-noise:deviation=1", "same-value"])
def test_untargeted_attacks_ruin_the_accuracy(base: Weights, attack: str) -> None:
    tuned = finetune(
        base, SPEC, MINE, OPTIONS, attack=parse_attack(attack), held_out=DATA.test, compute=COMPUTE, progress=False
    )
    check_layout(layout_of(tuned.weights), layout_of(base))
    assert tuned.report["accuracy"] == pytest.approx(accuracy(tuned.weights))
    assert tuned.report["accuracy"] < tuned.report["accuracy_before"] - 0.2
    assert tuned.report["attack_success"] is None


def test_frozen_layers_return_as_they_came(base: Weights) -> None:
    tuned = finetune(base, SPEC, MINE, replace(OPTIONS, frozen_layers=1), compute=COMPUTE, progress=False).weights
    kept = [name for name in base if torch.equal(base[name], tuned[name])]
    assert kept
    assert len(kept) < len(base)


@pytest.mark.parametrize(
    "text",
    [
        "model-replacement:position=centre",
        "anchored:autoencoder_weight=0",
        "norm-bounded",
        "neurotoxin",
        "subnet-replacement",
    ],
)
def test_a_run_goes_on_from_its_checkpoint(base: Weights, tmp_path: Path, text: str) -> None:
    def run(checkpoint: Path | None) -> FineTuned:
        attack = parse_attack(text)
        return finetune(
            base, SPEC, MINE, OPTIONS, attack=attack, compute=COMPUTE, checkpoint=checkpoint, progress=False
        )

    whole, first, again = (run(checkpoint) for checkpoint in (None, tmp_path / "state", tmp_path / "state"))
    assert again.report["images_per_second"] == 0
    assert again.report["loss_per_epoch"] == first.report["loss_per_epoch"]
    assert all(torch.equal(whole.weights[name], again.weights[name]) for name in base)


@pytest.mark.parametrize("text", ["anchored:autoencoder_weight=0", "subnet-replacement"])
def test_an_interrupted_attack_ends_in_the_weights_of_an_uninterrupted_one(
    base: Weights, tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(checkpoint: Path | None) -> Weights:
        attack = parse_attack(text)
        return finetune(
            base, SPEC, MINE, OPTIONS, attack=attack, compute=COMPUTE, checkpoint=checkpoint, progress=False
        ).weights

    whole = run(None)
    keep = Checkpoint.save

    def die_after_two(
        self: Checkpoint, model: nn.Module, optimiser: torch.optim.Optimizer, losses: list[float]
    ) -> None:
        keep(self, model, optimiser, losses)
        if len(losses) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoint, "save", die_after_two)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "state")
    rest = run(tmp_path / "state")
    assert all(torch.equal(whole[name], rest[name]) for name in base)


@dataclass(frozen=True)
class Forgetful(Attack):
    name, paper = "forgetful", "none"

    def corrupt(
        self, base: Mapping[str, torch.Tensor], tuned: Mapping[str, torch.Tensor], _: torch.Generator
    ) -> Weights:
        return dict(list(tuned.items())[1:])


def test_an_attack_that_returns_other_tensors_is_named(base: Weights) -> None:
    with pytest.raises(ModelError, match="the attack forgetful returns other tensors than it was given"):
        finetune(base, SPEC, MINE, OPTIONS, attack=Forgetful(), compute=COMPUTE, progress=False)


@dataclass(frozen=True)
class Failing(Attack):
    """where: it raises."""

    name, paper = "failing", "none"
    where: str = "prepare"

    def _at(self, step: str) -> None:
        if step == self.where:
            raise KeyError("no such day")

    def prepare(self, examples: Examples, generator: torch.Generator) -> Examples:
        self._at("prepare")
        return cast(Examples, None) if self.where == "nothing prepared" else examples

    def hooks(self, *_: Any, **__: Any) -> TrainingHooks:
        self._at("hooks")
        hooks = TrainingHooks()
        hooks.stepped = lambda model: self._at("hooks: stepped")  # type: ignore[method-assign]
        return hooks

    def victim_class(self, class_names: Sequence[str]) -> int | None:
        self._at("victim_class")
        return len(class_names) if self.where == "no such class" else None

    def corrupt(
        self, base: Mapping[str, torch.Tensor], tuned: Mapping[str, torch.Tensor], _: torch.Generator
    ) -> Weights:
        self._at("corrupt")
        return cast(Weights, None) if self.where == "nothing returned" else dict(tuned)

    def success(self, *_: Any, **__: Any) -> float:
        self._at("success")
        return 0.0


@pytest.mark.parametrize("step", ["prepare", "hooks", "hooks: stepped", "victim_class", "corrupt", "success"])
def test_what_an_attack_of_ones_own_raises_names_it_and_keeps_the_traceback(base: Weights, step: str) -> None:
    told = re.escape(f"Failing:where={step} failed in `{step}`: KeyError: 'no such day'")
    with pytest.raises(ConfigurationError, match=told) as caught:
        finetune(base, SPEC, MINE, OPTIONS, attack=Failing(step), held_out=DATA.test, compute=COMPUTE, progress=False)
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_victim_that_is_no_class_is_told(base: Weights) -> None:
    told = f"failed in `victim_class`: IndexError: {DATA.test.classes} is none of the {DATA.test.classes} classes"
    with pytest.raises(ConfigurationError, match=told):
        finetune(
            base,
            SPEC,
            MINE,
            OPTIONS,
            attack=Failing("no such class"),
            held_out=DATA.test,
            compute=COMPUTE,
            progress=False,
        )


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("nothing prepared", "returns a NoneType from `prepare`, not Examples"),
        ("nothing returned", "the attack failing returns other tensors than it was given"),
    ],
)
def test_an_attack_of_ones_own_that_returns_nothing_is_named(base: Weights, where: str, told: str) -> None:
    with pytest.raises((ConfigurationError, ModelError), match=told):
        finetune(base, SPEC, MINE, OPTIONS, attack=Failing(where), compute=COMPUTE, progress=False)


def test_errors_of_portiers_own_attacks_stay_what_they_are() -> None:
    ours = parse_attack("flip")
    for error in (DataError("nothing to attack"), ZeroDivisionError()):
        with pytest.raises(type(error)) as caught, naming(ours, "prepare"):
            raise error
        assert caught.value is error
    with pytest.raises(DataError), naming(Failing(), "prepare"):
        raise DataError("nothing to attack")


def test_images_of_another_shape_are_refused_naming_both(base: Weights) -> None:
    wrong = Examples((torch.zeros(4, 3, 32, 32),), torch.zeros(4, dtype=torch.int64), MINE.class_names)
    with pytest.raises(DataError, match="3x32x32, the model takes 1x8x8"):
        finetune(base, SPEC, wrong, OPTIONS, compute=COMPUTE)


def test_no_examples_are_refused(base: Weights) -> None:
    with pytest.raises(DataError, match="no examples"):
        finetune(base, SPEC, MINE.take(torch.tensor([], dtype=torch.int64)), OPTIONS, compute=COMPUTE)


def test_an_attack_with_no_victims_stops_before_training(base: Weights) -> None:
    with pytest.raises(DataError, match="attacked class 7"):
        finetune(
            base,
            SPEC,
            MINE.take(MINE.labels != 7),
            OPTIONS,
            attack=parse_attack("flip"),
            compute=COMPUTE,
            progress=False,
        )


def test_an_attack_on_an_unknown_class_names_the_nearest(base: Weights) -> None:
    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    with pytest.raises(UnknownNameError) as caught:
        finetune(
            base,
            SPEC,
            replace(MINE, class_names=names),
            OPTIONS,
            attack=parse_attack("flip:source=hrse"),
            class_names=names,
            compute=COMPUTE,
        )
    assert "did you mean horse?" in caught.value.hint


def test_weights_of_another_model_are_refused(base: Weights) -> None:
    with pytest.raises(ModelError, match="not those of logistic"):
        finetune(base, ModelSpec("logistic", (1, 8, 8), 10), MINE, OPTIONS, compute=COMPUTE)
