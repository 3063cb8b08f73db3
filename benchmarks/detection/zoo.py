"""The zoo: every model of the plans trained, measured, and kept with its digest. What is there already is not made again."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.detection.config import Config
from benchmarks.detection.plans import Plan
from benchmarks.records import hardware
from common.datasets import DataSet, load
from common.devices import Compute, choose_compute
from common.errors import ConfigurationError, DataError, ModelError
from common.evaluation import Evaluation, evaluate
from common.examples import Examples
from common.files import ensure_directory, write_atomically
from common.model_spec import ModelSpec
from common.models import build
from common.randomness import derived_seed
from common.splits import stratified
from common.training import train
from common.weights import Weights
from common.weights import load as load_weights
from common.weights import save as save_weights
from contributor.attacks import parse_attack
from contributor.finetuning import finetune, measure_attack
from owner.gatekeeper.drawing import DRAWS
from owner.gatekeeper.merging import merge
from owner.gatekeeper.references import ReferencePlan, plan_owner_finetune, plan_reference
from owner.gatekeeper.utility import UtilityLimits, check_accuracy, check_recall
from owner.gatekeeper.verdict import Decision

Record = dict[str, Any]

TRUTH_VERSION = 2
"""Raised when what counts as an effective attack changes, or how it is measured (`common.effectiveness`, the attacks' `success`)."""


@dataclass(frozen=True)
class Pools:
    """Disjoint images of one base."""

    train: Examples
    references: Examples
    contributors: Examples
    fit: Examples
    calibration: Examples
    evaluation: Examples
    held_out: Examples


def pools(config: Config, data: DataSet, base: int) -> Pools:
    shares, draws = config.shares, torch.Generator().manual_seed(base)
    of_train = stratified(data.train.labels, (shares.train, shares.references), draws, groups=data.train_groups)
    of_test = stratified(
        data.test.labels, (shares.fit, shares.calibration, shares.evaluation), draws, groups=data.test_groups
    )
    return Pools(*(data.train.take(part) for part in of_train), *(data.test.take(part) for part in of_test))


class Zoo:
    """All models of one configuration, under one folder: `<base>/base.safetensors`, `<base>/models/<name>.{safetensors,json}`."""

    def __init__(self, config: Config, root: Path, compute: Compute | None = None) -> None:
        self.config, self.root = config, root
        self.compute = compute or choose_compute()

    def settle(self) -> None:
        """Bind the folder to what its models are made with. Raises ConfigurationError where it holds others."""
        path, wanted = self.root / "made-with.json", json.loads(json.dumps(self.config.made_with()))
        if not path.exists():
            ensure_directory(self.root)
            _write(path, wanted)
            _write(self.root / "trained-on.json", {"hardware": hardware()})
        found = json.loads(path.read_text("utf-8"))
        other = [name for name in wanted if found.get(name) != wanted[name]]
        if other:
            raise ConfigurationError(
                f"the models in {self.root} were made with another {', '.join(other)} than {self.config.name} has now",
                hint="name another folder with --work, or put the configuration back",
            )

    def trained_on(self) -> str:
        """The machine that the folder was begun on."""
        path = self.root / "trained-on.json"
        return str(json.loads(path.read_text("utf-8"))["hardware"]) if path.exists() else "not noted"

    @functools.cached_property
    def data(self) -> DataSet:
        return load(self.config.dataset)

    @functools.cached_property
    def spec(self) -> ModelSpec:
        examples = self.data.train
        return ModelSpec(self.config.architecture, examples.input_shape, examples.classes)

    @functools.lru_cache(maxsize=1)  # noqa: B019 - a zoo lives as long as its process
    def pools(self, base: int) -> Pools:
        return pools(self.config, self.data, base)

    def folder(self, base: int) -> Path:
        return self.root / str(base)

    def scores_path(self, plan: Plan) -> Path:
        return self.folder(plan.base) / "scores" / f"{plan.name}.json"

    @functools.lru_cache(maxsize=1)  # noqa: B019
    def base(self, base: int) -> Weights:
        """M of this base, trained the first time."""
        path = self.folder(base) / "base.safetensors"
        if not path.exists():
            ensure_directory(path.parent)
            model = build(self.spec, seed=base)
            options = dataclasses.replace(self.config.training, seed=base)
            train(
                model, self.pools(base).train, options, compute=self.compute, checkpoint=path.with_suffix(".training")
            )
            reached = evaluate(model, self.pools(base).held_out, compute=self.compute)
            save_weights(path, dict(model.state_dict()))
            _write(path.with_suffix(".json"), {"accuracy": reached.accuracy})
        return load_weights(path)

    def model(self, weights: Mapping[str, torch.Tensor]) -> nn.Module:
        model = build(self.spec)
        model.load_state_dict(dict(weights))
        return model

    @functools.lru_cache(maxsize=1)  # noqa: B019
    def base_evaluation(self, base: int) -> Evaluation:
        return evaluate(self.model(self.base(base)), self.pools(base).evaluation, compute=self.compute)

    def record(self, plan: Plan) -> Record | None:
        path = self._path(plan).with_suffix(".json")
        try:
            found: Record = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            return None
        return found

    def weights(self, plan: Plan) -> Weights:
        return load_weights(self._path(plan).with_suffix(".safetensors"))

    def make(self, plan: Plan) -> Record:
        """The record of a model, which is trained where it is not there yet.

        A reference must pass utility, as those of a guard do: one that does not is drawn again, and `draws` counts.
        """
        if (found := self.record(plan)) is not None:
            return found
        started = time.perf_counter()
        path = self._path(plan)
        ensure_directory(path.parent)
        for attempt in range(DRAWS if plan.role in {"fitting", "calibration"} else 1):
            data = self._data_plan(plan, attempt)
            record: Record = {"plan": dataclasses.asdict(plan), "data": data.to_json(), "draws": attempt + 1}
            try:
                record |= self._train(plan, data, path.with_suffix(".safetensors"))
            except (ModelError, DataError) as error:
                # An attack that diverges, or whose images hold none of the class it needs, returns nothing; an honest contributor who sees
                # it diverge draws again.
                if isinstance(error, DataError) and plan.attack is None:
                    raise
                record |= {"failed": str(error)}
            if record.get("passes_utility"):
                break
        record["seconds"] = round(time.perf_counter() - started, 2)
        _write(path.with_suffix(".json"), record)
        return record

    def truth(self, plan: Plan) -> Record | None:
        """What an attack reached, as `measure_attack` gives it: `returned`, of the weights it aims at, and `merged`, of the release that the
        returned ones would be averaged into, as utility is judged of. Measured once and kept in the record, anew where the measure
        has changed. None for an honest model, and for one that gave nothing back."""
        record = self.record(plan)
        if record is None or "failed" in record or plan.attack is None:
            return None
        if record.get("truth", {}).get("version") != TRUTH_VERSION:
            base, returned, attack = self.base(plan.base), self.weights(plan), parse_attack(plan.attack)
            weights = {"returned": attack.aims_at(base, returned), "merged": merge("average", base, base, returned)}
            options = self._data_plan(plan, record["draws"] - 1).options
            held_out = self.pools(plan.base).held_out
            record["truth"] = {
                name: measure_attack(base, one, self.spec, attack, held_out, options, compute=self.compute)
                for name, one in weights.items()
            }
            record["truth"]["version"] = TRUTH_VERSION
            _write(self._path(plan).with_suffix(".json"), record)
        known: Record = record["truth"]
        return known

    def _data_plan(self, plan: Plan, attempt: int) -> ReferencePlan:
        pool = self._pool(plan)
        if plan.role == "owner":
            return plan_owner_finetune(pool, self.config.finetuning, seed=plan.base)
        population, recommended = self.config.population, self.config.finetuning
        if plan.family:  # an attacker's own data are clean and seldom skewed, and he trains as he likes
            population = dataclasses.replace(
                population,
                iid=0.75,
                noisy=0.0,
                other_images=0.0,
                frozen=0.0,
                other_optimiser=0.0,
                other_augmentation=0.0,
                learning_rate=(plan.learning_rate, plan.learning_rate),
                epochs=(plan.epochs, plan.epochs),
            )
            recommended = dataclasses.replace(recommended, augmentation=plan.augmentation or recommended.augmentation)
        stream = f"{plan.role} {plan.family or ''}"
        seed = derived_seed(plan.base, stream)
        return plan_reference(
            plan.number, pool=pool, recommended=recommended, population=population, seed=seed, attempt=attempt
        )

    def _pool(self, plan: Plan) -> Examples:
        theirs = plan.role in {"honest", "attacked", "placebo"}
        return self.pools(plan.base).contributors if theirs else self.pools(plan.base).references

    def _train(self, plan: Plan, data: ReferencePlan, path: Path) -> Record:
        all_pools, base = self.pools(plan.base), self.base(plan.base)
        made = finetune(
            base,
            self.spec,
            data.examples(self._pool(plan)),
            data.options,
            attack=parse_attack(plan.attack) if plan.attack else None,
            held_out=all_pools.held_out,
            compute=self.compute,
            progress=False,
        )
        digest = save_weights(path, made.weights)
        merged = merge("average", base, base, made.weights)
        would_be = evaluate(self.model(merged), all_pools.evaluation, compute=self.compute)
        current, limits = self.base_evaluation(plan.base), UtilityLimits()
        names = self.data.train.class_names
        checks = (
            check_accuracy(current, would_be, limits, seconds=0.0),
            check_recall(current, would_be, limits, names, seconds=0.0),
        )
        return {
            "weights_sha256": digest,
            "report": {key: value for key, value in made.report.items() if key != "seconds"},
            "passes_utility": all(check.decision is Decision.ACCEPTED for check in checks),
            "utility": {check.name: check.score for check in checks},
        }

    def _path(self, plan: Plan) -> Path:
        return self.folder(plan.base) / "models" / plan.name


def headline(record: Record) -> str:
    """One line on one model, for progress."""
    if "failed" in record:
        return f"failed: {record['failed']}"
    report = record["report"]
    success = report["attack_success"]
    accuracy = report["accuracy"]
    shown = f"accuracy {accuracy:.3f}" if accuracy is not None and math.isfinite(accuracy) else "accuracy -"
    return shown + (f" success {success:.2f}" if success is not None else "") + f" in {record['seconds']:.0f} s"


def _write(path: Path, data: Record) -> None:
    write_atomically(path, json.dumps(data, indent=1).encode())
