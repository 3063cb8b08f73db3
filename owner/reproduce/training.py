"""Steps that train: the genuine models, honest fine-tunes, FA and PAA; and what each of them reached."""

from __future__ import annotations

import base64
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from common.effectiveness import effective
from common.evaluation import Evaluation
from common.examples import Examples
from common.randomness import derived_seed
from common.training import TrainingReport
from common.weights import load as load_weights
from common.weights import save as save_weights
from owner.reproduce.engine import Engine, Snapshot
from owner.reproduce.images import AttackSet, Images
from owner.reproduce.records import Record, Work
from owner.reproduce.settings import LAST_RATE, Settings
from owner.reproduce.speed import speed
from owner.reproduce.steps import OTHER_ATTACK_DATA, Step

EXAMPLES_SHOWN = 4


def run_training(
    step: Step, engine: Engine, images: Images, settings: Settings, work: Work, *, progress: bool | None
) -> Record:
    """Trains, keeps the weights, and says what they reached. Goes on from the step's checkpoint where there is one, and leaves it
    to whoever keeps the record: without that the training is not done."""
    return (_from_scratch if step.is_scratch else _fine_tune)(step, engine, images, settings, work, progress)


def _from_scratch(
    step: Step, engine: Engine, images: Images, settings: Settings, work: Work, progress: bool | None
) -> Record:
    examples = images.training(step.data, step.architecture, step.seed)
    test = images.encoded_again(images.test) if step.data == "jpeg" else images.test
    options = settings.training(step.architecture, step.seed)
    engine.start(step.seed)
    checkpoint = work.checkpoint_path(step)
    report = engine.train(examples, options, checkpoint=checkpoint, label=str(step), progress=progress)
    save_weights(work.weights_path(step, step.name), engine.weights())
    evaluation = _evaluated(engine, test)
    return {
        "weights": work.digests(step),
        "accuracy": evaluation.accuracy,
        "recall": [None if math.isnan(share) else share for share in evaluation.recall.tolist()],
        "images": len(examples),
        "image_steps": len(examples) * options.epochs,
        "training": options.to_json(),
        "loss": _losses(report),
        "speed": speed(engine.spec, report.images_per_second, engine.compute),
    }


def _fine_tune(
    step: Step, engine: Engine, images: Images, settings: Settings, work: Work, progress: bool | None
) -> Record:
    short, long = settings.durations(step.architecture)
    options = settings.finetuning(step.architecture, step.seed)
    lasting = {"short": short, "long": long}
    if step.group == "part":  # Fig. 6 shows one duration
        lasting = {"short": short}
        options = dataclasses.replace(options, epochs=short)
    if step.group == "slow":
        peak = settings.training(step.architecture, step.seed).learning_rate
        options = dataclasses.replace(options, learning_rate=LAST_RATE * peak)
    if step.group == "again":
        options = dataclasses.replace(options, seed=derived_seed(step.seed, "another run") % 2**31)
    attack = None
    if step.kind in {"flip", "pattern"}:
        attack_data = next((data for data in OTHER_ATTACK_DATA if data == step.group), None)
        attack = images.attack(step.kind, step.data, step.architecture, step.seed, attack_data=attack_data)
    examples = attack.examples if attack else images.training(step.data, step.architecture, step.seed)
    of = {step.base: work.digests(step.sibling(step.base))}
    base = load_weights(work.weights_path(step, step.base))
    engine.load(base)
    before = _reached(engine, images, attack, settings, None)

    def keep(weights: Mapping[str, Tensor]) -> None:
        save_weights(work.weights_path(step, f"{step.name}-short"), {n: t.detach().cpu() for n, t in weights.items()})

    engine.load(base)
    checkpoint = work.checkpoint_path(step)
    report = engine.train(
        examples,
        options,
        checkpoint=checkpoint,
        label=str(step),
        progress=progress,
        hooks=Snapshot(engine.model, short, keep) if "long" in lasting else None,
    )
    last = "long" if "long" in lasting else "short"
    save_weights(work.weights_path(step, f"{step.name}-{last}"), engine.weights())
    models = {}
    for duration, epochs in lasting.items():
        engine.load(load_weights(work.weights_path(step, f"{step.name}-{duration}")))
        models[duration] = {"epochs": epochs, **_reached(engine, images, attack, settings, before)}
    record: Record = {
        "weights": work.digests(step),
        "of": of,
        "base": before,
        "models": models,
        "images": len(examples),
        "image_steps": len(examples) * options.epochs,
        "training": options.to_json(),
        "loss": _losses(report),
        "speed": speed(engine.spec, report.images_per_second, engine.compute),
    }
    if attack is not None:
        record["attack"] = {
            "images": len(attack.attacked),
            "source": images.class_names[images.class_index(settings.source)],
            "target": images.class_names[attack.target],
            "examples": _shown(attack),
        }
    return record


def _reached(
    engine: Engine, images: Images, attack: AttackSet | None, settings: Settings, before: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Accuracy and recall on the test set, and of an attack its success on its own images and on held-out ones.

    before: the same of the model it started from; an attack counts as effective against that.
    """
    evaluation = _evaluated(engine, images.test)
    source = images.class_index(settings.source)
    found: dict[str, Any] = {"accuracy": evaluation.accuracy, "source_recall": float(evaluation.recall[source])}
    if attack is None:
        return found
    found["success"] = _share(engine, attack.attacked, attack.target)
    found["held_out_success"] = _share(engine, attack.held_out, attack.target)
    if before is not None:
        flips = bool(torch.equal(attack.attacked.images, attack.clean.images))
        found["effective"] = effective(
            "flip" if flips else "backdoor",
            attack_success=found["held_out_success"],
            attack_success_before=before["held_out_success"],
            recall_drop=before["source_recall"] - found["source_recall"],
        )
    return found


def _share(engine: Engine, examples: Examples, target: int) -> float:
    return float((engine.classify(examples) == target).double().mean())


def _evaluated(engine: Engine, examples: Examples) -> Evaluation:
    return Evaluation.from_logits(engine.observe(examples.inputs).logits, examples.labels, examples.classes)


def _losses(report: TrainingReport) -> list[float]:
    return [round(loss, 5) for loss in report.loss_per_epoch]


def _shown(attack: AttackSet) -> dict[str, Any]:
    """The first attacked images as they were and as they are trained on, for Fig. 2; base64 of uint8 (n, C, H, W)."""
    clean, attacked = (part.images[:EXAMPLES_SHOWN].contiguous() for part in (attack.clean, attack.attacked))
    return {
        "shape": list(clean.shape),
        "clean": base64.b64encode(clean.cpu().numpy().tobytes()).decode(),
        "attacked": base64.b64encode(attacked.cpu().numpy().tobytes()).decode(),
    }
