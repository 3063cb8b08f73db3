"""Every attack fine-tuned into a release, and whether it reached its goal: the table behind docs/attacks.md.

    PORTIER_DATA=... python -m benchmarks.attacks

trains one base on CIFAR-10 (the paper's CNN) and one on MNIST (BadNets' network), and for each row below one contributor's model from
it. Written: docs/results/attacks.json and attacks.md. A model that is done is kept in the work folder, so an interrupted run goes
on; the files show what is there so far, and say so. One seed and one model a row: they show that an attack can be made to work at that dose, not how often it does.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.records import hardware
from common.datasets import load
from common.devices import Compute, choose_compute
from common.examples import Examples
from common.files import ensure_directory, write_atomically
from common.model_spec import ModelSpec
from common.models import build
from common.randomness import derived_seed, generator
from common.splits import OwnerShares, owner_shares
from common.training import train
from common.training_options import Augmentation, Schedule, TrainingOptions
from common.weights import Weights
from common.weights import load as load_weights
from common.weights import save as save_weights
from contributor.attacks import parse_attack
from contributor.finetuning import finetune

ROOT = Path(__file__).resolve().parents[1]
Record = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """A release that is attacked. shares: train, references; the rest of the training set is the contributors'."""

    title: str
    dataset: str
    architecture: str
    training: TrainingOptions
    train: float
    references: float


SETTINGS = {
    "cifar10": Setting(
        "The paper's CNN on CIFAR-10",
        "cifar10",
        "cnn",
        TrainingOptions(epochs=15, learning_rate=0.02, augmentation="crop-flip"),
        0.6,
        0.1,
    ),
    "mnist": Setting(
        "BadNets' network on MNIST", "mnist", "badnet-cnn", TrainingOptions(epochs=5, learning_rate=0.05), 0.5, 0.2
    ),
}


@dataclass(frozen=True)
class Row:
    """One contributor. attack: specification, None for an honest one. images: of the contributor, drawn at random."""

    setting: str
    attack: str | None
    images: int
    epochs: int
    rate: float
    augmentation: Augmentation = "none"
    schedule: Schedule = "one-cycle"

    def name(self, seed: int) -> str:
        """Of its file: the attack's name, and a number that is another for every other row or seed, and for other code of the attack."""
        if self.attack is None:
            return f"{self.setting}-honest-{derived_seed(seed, repr(self)):016x}"
        attack = parse_attack(self.attack)
        return f"{self.setting}-{attack.name}-{derived_seed(seed, f'{self} {attack} {attack.version}'):016x}"


def _cifar(
    attack: str | None, images: int, epochs: int, rate: float, augmentation: Augmentation = "crop-flip", **more: Any
) -> Row:
    return Row("cifar10", attack, images, epochs, rate, augmentation, **more)


ROWS = (
    _cifar(None, 4000, 6, 0.01),
    _cifar("badnets:trigger=pattern,fraction=0.1", 5000, 8, 0.02, "none"),
    _cifar("badnets:trigger=pattern,fraction=0.1", 5000, 8, 0.02),
    _cifar("badnets:trigger=square,fraction=0.1", 5000, 8, 0.02, "none"),
    _cifar("badnets:trigger=patches,fraction=0.05", 5000, 6, 0.01),
    _cifar("badnets:policy=all-to-all,trigger=patches,fraction=0.3", 5000, 8, 0.02),
    _cifar("badnets:policy=random,trigger=patches,fraction=0.1", 5000, 6, 0.01),
    _cifar("badnets:policy=random,trigger=patches,fraction=0.3", 5000, 8, 0.02),
    _cifar("blended:fraction=0.05", 4000, 6, 0.01),
    _cifar("blended:fraction=0.05", 5000, 6, 0.005, schedule="constant"),
    _cifar("sig:fraction=0.5", 5000, 6, 0.01),
    _cifar("wanet:fraction=0.1,strength=4", 5000, 6, 0.01),
    _cifar("wanet:fraction=0.1,strength=2", 5000, 6, 0.01),
    _cifar("adaptive-blend:fraction=0.05,cover=0.05,ratio=0.2,test_ratio=0.3", 5000, 6, 0.01),
    _cifar("adaptive-blend:fraction=0.1,cover=0.05,ratio=0.2,test_ratio=0.3", 5000, 8, 0.02),
    _cifar("adaptive-patch:fraction=0.1,cover=0.2,opacity=0.5", 5000, 6, 0.01, "none"),
    _cifar("tact:trigger=patches,fraction=0.5", 5000, 8, 0.01),
    _cifar("tact:trigger=square,fraction=0.5", 5000, 6, 0.01),
    _cifar("anchored:trigger=patches,fraction=0.05", 4000, 6, 0.01),
    _cifar("anchored:backdoor=blended,fraction=0.1", 5000, 8, 0.01),
    _cifar("norm-bounded:radius=0.05,trigger=patches,fraction=0.05", 5000, 6, 0.01),
    _cifar("neurotoxin:trigger=patches,fraction=0.05", 5000, 6, 0.01),
    _cifar("subnet-replacement", 5000, 5, 0.01),
    _cifar("subnet-replacement:channels=1", 5000, 8, 0.02),
    _cifar("model-replacement:factor=2,backdoor=badnets,trigger=patches,fraction=0.05", 4000, 6, 0.005),
    _cifar("flip:fraction=0.5", 5000, 6, 0.01),
    _cifar("flip:fraction=0.3", 5000, 6, 0.01),
    Row("mnist", None, 5000, 6, 0.02),
    Row("mnist", "badnets:trigger=pattern,fraction=0.1", 5000, 10, 0.1),
    Row("mnist", "badnets:trigger=pixel,fraction=0.3", 5000, 20, 0.1),
    Row("mnist", "badnets:trigger=pattern,policy=all-to-all,fraction=0.5", 5000, 15, 0.1),
    Row("mnist", "badnets:trigger=pixel,policy=all-to-all,fraction=0.5", 5000, 20, 0.2),
    Row("mnist", "badnets:trigger=pattern,fraction=0.1", 5000, 6, 0.02),
    Row("mnist", "badnets:trigger=pixel,fraction=0.1", 5000, 20, 0.2),
)


class Workshop:
    """Bases and contributors' models of one seed, made where they are not in the folder yet."""

    def __init__(self, work: Path, seed: int, compute: Compute) -> None:
        self.work, self.seed, self.compute = ensure_directory(work), seed, compute

    @functools.lru_cache(maxsize=1)  # noqa: B019 - a workshop lives as long as its process
    def shares(self, key: str) -> tuple[OwnerShares, Examples]:
        """The owner's shares, and the images that are the contributors'."""
        setting = SETTINGS[key]
        shares = owner_shares(
            load(setting.dataset),
            seed=self.seed,
            train=setting.train,
            references=setting.references,
            trigger_fit=0.2,
            trigger_calibration=0.2,
        )
        return shares, shares.unclaimed

    def spec(self, key: str) -> ModelSpec:
        examples = self.shares(key)[0].train
        return ModelSpec(SETTINGS[key].architecture, examples.input_shape, examples.classes)

    @functools.lru_cache(maxsize=1)  # noqa: B019
    def base(self, key: str) -> Weights:
        path = self.work / f"{key}-base-{self.seed}.safetensors"
        if not path.exists():
            model = build(self.spec(key), seed=self.seed)
            options = dataclasses.replace(SETTINGS[key].training, seed=self.seed)
            train(
                model,
                self.shares(key)[0].train,
                options,
                compute=self.compute,
                checkpoint=path.with_suffix(".training"),
                label=f"base, {key}",
            )
            save_weights(path, dict(model.state_dict()))
        return load_weights(path)

    def make(self, row: Row) -> Record:
        path = self.work / f"{row.name(self.seed)}.json"
        if path.exists():
            found: Record = json.loads(path.read_text("utf-8"))
            return found
        started = time.process_time()
        shares, contributors = self.shares(row.setting)
        drawn = torch.randperm(len(contributors), generator=generator(self.seed, "contributor"))[: row.images]
        options = TrainingOptions(
            epochs=row.epochs,
            learning_rate=row.rate,
            augmentation=row.augmentation,
            schedule=row.schedule,
            seed=self.seed,
        )
        made = finetune(
            self.base(row.setting),
            self.spec(row.setting),
            contributors.take(drawn),
            options,
            attack=parse_attack(row.attack) if row.attack else None,
            held_out=shares.evaluation,
            compute=self.compute,
        )
        kept = (
            "accuracy_before",
            "accuracy",
            "attack_success_before",
            "attack_success",
            "attack_success_unmarked",
            "attack_effective",
        )
        record = {"row": asdict(row), "seed": self.seed} | {key: made.report[key] for key in kept}
        record["cpu_seconds"] = round(time.process_time() - started, 1)
        write_atomically(path, json.dumps(record, indent=1).encode())
        return record


def page(records: Sequence[Record], command: str, *, planned: int) -> str:
    lines = [
        "# Attacks, and whether they reached their goal",
        "",
        f"`{command}`, on {hardware()}. One model a row, seed {records[0]['seed']}: the rows show that an attack can be made to work at a "
        "dose, not how often it does. A contributor has a random share of the images that neither trained the base nor are the owner's; it "
        "trains with SGD, momentum 0.9, weight decay 5e-4, in batches of 128, the rate being a one-cycle's peak where nothing else is said. "
        "Success and accuracy (in %) are of the returned model, before any merge, on the owner's evaluation images, success of `model-replacement` "
        "of the model it aims at; *unmarked* is how often the same model answers so without the mark; *effective* as in `common/effectiveness.py`.",
    ]
    for key, setting in SETTINGS.items():
        mine = [record for record in records if record["row"]["setting"] == key]
        if not mine:
            continue
        lines += [
            "",
            f"## {setting.title}",
            "",
            f"Base: {setting.training.epochs} epochs at {setting.training.learning_rate:g} on {100 * setting.train:g} % of the training "
            f"images, accuracy {100 * mine[0]['accuracy_before']:.2f} %.",
            "",
            "| attack | images | epochs | rate | augmentation | success before | after | unmarked | effective | accuracy |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *map(_line, mine),
        ]
    if len(records) < planned:
        lines += ["", f"Incomplete: {len(records)} of {planned} rows were done."]
    return "\n".join([*lines, ""])


def _line(record: Record) -> str:
    row = record["row"]
    attack = f"`{row['attack']}`" if row["attack"] else "none"
    rate = f"{row['rate']:g}" + (", constant" if row["schedule"] == "constant" else "")
    effective = {None: "", True: "yes", False: "**no**"}[record["attack_effective"]]
    rates = [_percent(record[key]) for key in ("attack_success_before", "attack_success", "attack_success_unmarked")]
    cells = [attack, f"{row['images']:,}", row["epochs"], rate, row["augmentation"], *rates, effective]
    return f"| {' | '.join(map(str, cells))} | {_percent(record['accuracy'])} |"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=tuple(SETTINGS), help="one of the two (default: both)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", type=Path, default=ROOT / "portier-simulations" / "attacks")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    compute = choose_compute()
    workshop = Workshop(arguments.work, arguments.seed, compute)
    command = f"python -m benchmarks.attacks --seed {arguments.seed}"
    if arguments.only:
        command += f" --only {arguments.only}"
    rows = [row for row in ROWS if arguments.only in {None, row.setting}]
    out, records = ensure_directory(arguments.out), []
    for row in rows:
        records.append(workshop.make(row))
        found = {key: records[-1][key] for key in ("attack_success", "attack_effective", "accuracy", "cpu_seconds")}
        print(f"{len(records)}/{len(rows)} {row.setting} {row.attack} {found}", flush=True)
        document = {"command": command, "hardware": hardware(), "dtype": str(compute.dtype), "planned": len(rows)}
        (out / "attacks.json").write_text(json.dumps(document | {"models": records}, indent=1) + "\n")
        (out / "attacks.md").write_text(page(records, command, planned=len(rows)))


if __name__ == "__main__":
    main()
