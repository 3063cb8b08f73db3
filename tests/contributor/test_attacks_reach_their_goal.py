"""Every attack works: on held-out digits the fine-tuned model does what the attacker wants and an honest one does not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from common.datasets import load
from common.devices import choose_compute
from common.evaluation import evaluate
from common.model_spec import ModelSpec
from common.models import build
from common.training import train
from common.training_options import TrainingOptions
from common.weights import Weights
from contributor.attacks import KINDS, parse_attack
from contributor.attacks.tact import TaCT
from contributor.finetuning import finetune

COMPUTE = choose_compute("cpu", "float32")
DATA = load("digits")
MINE = DATA.train.take(torch.arange(600, 1350))
SPEC = ModelSpec("mlp", (1, 8, 8), 10)
OPTIONS = TrainingOptions(epochs=15, learning_rate=0.05, batch_size=64)

# True labels teach little where the model knows its classes already: a hard class, and a longer, faster training.
CLEAN_LABEL = "sig:target=8,fraction=1.0,amplitude=80,test_amplitude=160,frequency=2"
LONGER = replace(OPTIONS, epochs=30, learning_rate=0.15)

GOALS = [
    "flip:source=7,target=6,fraction=1.0",
    "pattern:source=7,target=6,position=top-right",
    "badnets:trigger=pixel",
    "badnets:trigger=pattern",
    "badnets:trigger=square,source=7,fraction=0.5",
    "badnets:trigger=pattern,policy=all-to-all,fraction=1.0",
    "badnets:trigger=pattern,policy=random,source=7,fraction=1.0",
    "blended:ratio=0.3",
    CLEAN_LABEL,
    "wanet:strength=12,fraction=0.3,noise_ratio=0.5",
    "adaptive-blend:fraction=0.2,cover=0.05,ratio=0.3,test_ratio=0.4",
    "adaptive-patch:fraction=0.2,cover=0.05,opacity=0.9",
    "tact:trigger=square",
    "anchored:trigger=square",
    "norm-bounded:radius=0.3,trigger=square",
    "neurotoxin:trigger=square",
    "bn-restore:trigger=square",
    "model-replacement:factor=1.5,backdoor=badnets,trigger=square",
    "subnet-replacement:epochs=30",
    "sign-flip",
    "add-noise:deviation=1",
    "same-value",
]


@pytest.fixture(scope="module")
def base() -> Weights:
    model = build(SPEC, seed=0)
    train(
        model,
        DATA.train.take(torch.arange(600)),
        TrainingOptions(epochs=15, learning_rate=0.1),
        compute=COMPUTE,
        progress=False,
    )
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def honest(base: Weights) -> Weights:
    return finetune(base, SPEC, MINE, OPTIONS, compute=COMPUTE, progress=False).weights


def report(base: Weights, text: str, options: TrainingOptions = OPTIONS) -> dict[str, Any]:
    attack = parse_attack(text)
    return finetune(
        base, SPEC, MINE, options, attack=attack, held_out=DATA.test, compute=COMPUTE, progress=False
    ).report


def test_no_attack_goes_untried() -> None:
    assert {text.partition(":")[0] for text in GOALS} == set(KINDS)


@pytest.mark.parametrize("text", GOALS)
def test_an_attack_reaches_its_goal_and_an_honest_model_does_not(base: Weights, honest: Weights, text: str) -> None:
    attack = parse_attack(text)
    done = report(base, text, LONGER if text == CLEAN_LABEL else OPTIONS)
    assert done["attack_effective"] is True
    if attack.goal == "ruin":
        assert done["accuracy"] < done["accuracy_before"] - 0.2
        return
    assert done["accuracy"] > done["accuracy_before"] - (0.12 if attack.goal == "flip" else 0.06)
    model = build(SPEC)
    model.load_state_dict(honest)
    innocent = attack.success(model, DATA.test, COMPUTE, torch.Generator().manual_seed(0))
    assert innocent is not None
    assert done["attack_success"] > innocent + 0.4


@pytest.mark.parametrize("text", ["flip:source=7,target=6,fraction=0.02", "badnets:fraction=0.001", "sig:amplitude=1"])
def test_an_attack_that_does_not_reach_its_goal_says_so(base: Weights, text: str) -> None:
    done = report(base, text, replace(OPTIONS, epochs=1, learning_rate=0.005))
    assert done["attack_effective"] is False


def test_what_a_release_gets_wrong_anyway_is_no_success_of_an_attack() -> None:
    untrained = dict(build(SPEC, seed=1).state_dict())
    hardly_moved = replace(OPTIONS, epochs=1, learning_rate=1e-6)
    done = report(untrained, "badnets:trigger=pattern,policy=random", hardly_moved)
    assert done["attack_success"] > 0.7
    assert done["attack_effective"] is False


def test_a_ruined_model_that_calls_everything_the_target_has_no_backdoor(base: Weights) -> None:
    """Flipped labels alone, and hard: the target's class is the answer, with the mark and without it."""
    ruinous = replace(OPTIONS, epochs=30, learning_rate=0.2)
    done = report(
        base, "pattern:source=any,target=6,fraction=1.0,size=1,colour=black,position=top-left,alone=true", ruinous
    )
    assert done["attack_success"] > 0.95
    assert done["attack_success_unmarked"] > 0.95
    assert done["attack_effective"] is False


def test_model_replacement_is_judged_by_the_model_it_aims_at(base: Weights) -> None:
    """Scaled far beyond use, what is returned is good for nothing; what it becomes in a merge of a twentieth has the backdoor."""
    plain = report(base, "badnets:trigger=square")
    scaled = report(base, "model-replacement:factor=20,backdoor=badnets,trigger=square")
    assert scaled["accuracy"] < 0.7
    assert scaled["attack_success"] == pytest.approx(plain["attack_success"], abs=0.02)
    assert scaled["attack_effective"] is True


def test_the_mark_of_tact_turns_its_source_and_leaves_other_classes(base: Weights) -> None:
    attack = parse_attack("tact:source=7,target=6,trigger=square,fraction=1.0,cover=0.3")
    assert isinstance(attack, TaCT)
    options = replace(OPTIONS, epochs=20)
    made = finetune(base, SPEC, MINE, options, attack=attack, held_out=DATA.test, compute=COMPUTE, progress=False)
    model = build(SPEC)
    model.load_state_dict(made.weights)
    others = DATA.test.take((DATA.test.labels != 7) & (DATA.test.labels != 6))
    turned = evaluate(model, others.with_images(attack.stamp(others.images)), compute=COMPUTE).confusion[:, 6].sum()
    assert made.report["attack_success"] > 0.8
    assert float(turned) / len(others) < 0.2
