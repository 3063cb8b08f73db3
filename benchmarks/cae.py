"""The classification auto-encoder (Razmi & Xiong 2021) on poisoned training sets of a linear support vector machine.

    PORTIER_DATA=... python -m benchmarks.cae

For each data set (two classes of MNIST, Fashion-MNIST, CIFAR-10), attack, share that the attacker holds and seed: a training set is attacked,
the detector judges each of its examples, and the victim is trained without those it flags. CAE learns from a clean set of the same size or from
the attacked set itself; CAE+ (CAE and a plain auto-encoder) from the attacked set itself, or, as in the authors' code, from other data attacked
in the same way (there fifty sets of a hundred clean examples, here one set of the size of the judged one). Each scores with every weight alpha
of reconstruction. Written: docs/results/cae.json and cae.md, mean and spread (standard deviation, n - 1) over seeds. A cell that is done is kept
in the work folder with a digest of the code that made it, so an interrupted run goes on, and code that has changed measures anew; the files show
what is there so far, and say so.

Pairs of classes, sizes and the victim's cost are ours; the cost was chosen on clean validation images of seed 0, out of 1e-5 to 0.1: within
0.1 points of the best on each data set.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

import common.examples
import common.randomness
from benchmarks.records import hardware
from common.code import code_digest
from common.datasets import DataSet, load
from common.examples import Examples
from common.files import ensure_directory, write_atomically
from common.randomness import derived_seed, generator
from owner.data_poisoning import (
    ATTACKS,
    AttackOptions,
    CaeDetector,
    CaeOptions,
    CaePlusDetector,
    combine,
    fit_svm,
    fit_two_gaussians,
    poison,
)

ROOT = Path(__file__).resolve().parents[1]
FORMAT = 2
Record = dict[str, Any]

PAIRS: Mapping[str, tuple[int, int]] = {"mnist": (4, 9), "fashion-mnist": (7, 9), "cifar10": (0, 8), "digits": (4, 9)}
"""The two classes of each data set: 4 and 9, sneaker and ankle boot, airplane and ship. digits is for trying the command out."""

DATASETS = ("mnist", "fashion-mnist", "cifar10")
ALPHAS = (0.0, 0.1, 0.25, 0.5, 0.66, 0.75, 0.9, 1.0)
SHOWN_ALPHA = 0.66
"""What the authors' code defaults to; the table shows the best one too."""

DETECTORS = (("CAE", "clean"), ("CAE", "attacked"), ("CAE+", "attacked"), ("CAE+", "another attacked"))
"""Each with the set it learns from. CAE+ is the authors' detector for poisoned training data: no clean set for it."""

MEASURES = ("precision", "recall", "f1", "auroc", "accuracy")
KEYS = ("data", "attack", "fraction", "detector", "learnt_from", "alpha")


@dataclass(frozen=True)
class Cell:
    """One attacked training set. images: in it, and in the clean set, the validation set and the test set at most."""

    data: str
    attack: str
    fraction: float
    seed: int
    images: int = 1000
    epochs: int = 40
    cost: float = 0.01

    @property
    def name(self) -> str:
        return "-".join(str(value) for value in asdict(self).values())


@functools.cache
def code() -> str:
    """SHA-256 (hex) of the code that decides a cell, as it is at the first call."""
    hasher = hashlib.sha256(code_digest("common.datasets", "owner.data_poisoning").encode())
    for path in (common.examples.__file__, common.randomness.__file__, __file__):
        hasher.update(hashlib.sha256(Path(path).read_bytes()).digest())
    return hasher.hexdigest()


def cells(
    datasets: Sequence[str], fractions: Sequence[float], seeds: int, *, images: int = 1000, epochs: int = 40
) -> list[Cell]:
    """All cells, seed by seed, so that a part of them is worth having.

    >>> [cell.name for cell in cells(["mnist"], [0.1], 1)][:2]
    ['mnist-flipping-0.1-0-1000-40-0.01', 'mnist-optimal-0.1-0-1000-40-0.01']
    """
    grid = itertools.product(range(seeds), datasets, fractions, ATTACKS)
    return [Cell(data, attack, fraction, seed, images, epochs) for seed, data, fraction, attack in grid]


def two_classes(examples: Examples, pair: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The examples of two classes as rows in [0, 1], (N, d) float32, and labels of 0 and 1."""
    mine = examples.take((examples.labels == pair[0]) | (examples.labels == pair[1]))
    return mine.images.flatten(1).float() / 255, (mine.labels == pair[1]).long()


def sets(cell: Cell, data: DataSet) -> dict[str, tuple[Tensor, Tensor]]:
    """Disjoint sets by the cell's seed: train, clean and validation of the training images, test of the test images."""
    x, y = two_classes(data.train, PAIRS[cell.data])
    tests = two_classes(data.test, PAIRS[cell.data])
    size = min(cell.images, len(x) // 3)
    order = torch.randperm(len(x), generator=generator(cell.seed, f"{cell.data} sets"))
    parts = {"test": tests}
    for number, name in enumerate(("train", "clean", "validation")):
        rows = order[number * size : (number + 1) * size]
        parts[name] = x[rows], y[rows]
    return parts


def measure(cell: Cell, data: DataSet, work: Path, fitted: dict[Cell, CaeDetector] | None = None) -> Record:
    """The cell's record, from the work folder where this code has made it already.

    fitted: detectors that learnt from clean sets, of earlier cells: cells of one data set and seed share theirs.
    """
    path = work / f"{cell.name}.json"
    wanted = {"format": FORMAT, "code": code(), "cell": asdict(cell), "alphas": list(ALPHAS)}
    if path.exists():
        found: Record = json.loads(path.read_text("utf-8"))
        if {key: found.get(key) for key in wanted} == wanted:
            return found
    started = time.process_time()
    parts = sets(cell, data)
    options = AttackOptions(cell.attack, cell.fraction, cost=cell.cost)
    draws, others = (generator(cell.seed, f"{cell.data} {name} {cell.fraction}") for name in ("poison", "other poison"))
    attacked = poison(*parts["train"], parts["validation"], options, draws)
    another = poison(*parts["clean"], parts["validation"], options, others)
    cae = CaeOptions(epochs=cell.epochs, seed=derived_seed(cell.seed, f"{cell.data} CAE") % (1 << 62))
    ready, same = fitted if fitted is not None else {}, replace(cell, attack="", fraction=0.0)
    if same not in ready:
        ready[same] = CaeDetector(cae).fit(*parts["clean"])
    pair = CaePlusDetector(cae).fit(attacked.inputs, attacked.labels)
    other_pair = CaePlusDetector(cae).fit(another.inputs, another.labels)
    rows: list[Record] = []
    for (name, source), detector in zip(DETECTORS, (ready[same], pair.cae_, pair, other_pair), strict=True):
        errors = detector.errors(attacked.inputs, attacked.labels)
        for alpha in ALPHAS:
            scores = combine(*errors, alpha)
            threshold = fit_two_gaussians(scores).threshold
            flagged = scores >= threshold
            rows.append(
                {
                    "detector": name,
                    "learnt_from": source,
                    "alpha": alpha,
                    "threshold": threshold if flagged.any() else None,
                    **detection(flagged, scores, attacked.poisoned),
                    "accuracy": accuracy(
                        attacked.inputs[~flagged], attacked.labels[~flagged], parts["test"], cell.cost
                    ),
                }
            )
    record = wanted | {
        "images": len(attacked.labels),
        "poisoned": int(attacked.poisoned.sum()),
        "victim": {
            "clean": accuracy(*parts["train"], parts["test"], cell.cost),
            "attacked": accuracy(attacked.inputs, attacked.labels, parts["test"], cell.cost),
            "without_poison": accuracy(
                attacked.inputs[~attacked.poisoned], attacked.labels[~attacked.poisoned], parts["test"], cell.cost
            ),
            "validation_losses": list(attacked.losses),
        },
        "rows": rows,
        "cpu_seconds": round(time.process_time() - started, 1),
    }
    write_atomically(path, json.dumps(record, indent=1).encode())
    return record


def detection(flagged: Tensor, scores: Tensor, poisoned: Tensor) -> dict[str, float | None]:
    """Of flagging: precision (0 where nothing is flagged), recall, F1; and the AUROC of the scores, which no threshold changes. None
    where the attack changed nothing: there is nothing to find.

    >>> detection(torch.tensor([True, True, False]), torch.tensor([3.0, 2.0, 1.0]), torch.tensor([True, False, False]))
    {'precision': 0.5, 'recall': 1.0, 'f1': 0.6666666666666666, 'auroc': 1.0}
    """
    hits, named, there = int((flagged & poisoned).sum()), int(flagged.sum()), int(poisoned.sum())
    if not there:
        return dict.fromkeys(("precision", "recall", "f1", "auroc"))
    return {
        "precision": hits / named if named else 0.0,
        "recall": hits / there,
        "f1": 2 * hits / (named + there),
        "auroc": float(roc_auc_score(poisoned.numpy(), scores.numpy())),
    }


def accuracy(inputs: Tensor, labels: Tensor, test: tuple[Tensor, Tensor], cost: float) -> float | None:
    """Of the victim on the test images; None where one class or both are gone from its training set."""
    return fit_svm(inputs, labels, cost=cost).accuracy(*test) if len(torch.unique(labels)) == 2 else None


def summary(records: Sequence[Record]) -> list[Record]:
    """One row for each data set, attack, fraction, detector, source and alpha: mean and spread of each measure over seeds, and n.
    changed: share of the training set that the attack really changed."""
    groups: dict[tuple[Any, ...], list[tuple[Record, Record]]] = {}
    for record in records:
        for row in record["rows"]:
            cell = record["cell"]
            key = (*(cell[name] for name in KEYS[:3]), *(row[name] for name in KEYS[3:]))
            groups.setdefault(key, []).append((record, row))
    return [
        dict(zip(KEYS, key, strict=True))
        | {"n": len(members), "changed": spread([r["poisoned"] / r["images"] for r, _ in members])}
        | {name: spread([row[name] for _, row in members]) for name in MEASURES}
        | {f"victim_{name}": spread([r["victim"][name] for r, _ in members]) for name in ("clean", "attacked")}
        for key, members in groups.items()
    ]


def spread(values: Sequence[float | None]) -> Record:
    """Mean and standard deviation (n - 1) of what is known; None where there is too little.

    >>> spread([0.25, None, 0.75])
    {'mean': 0.5, 'spread': 0.3535533905932738, 'n': 2}
    """
    known = [value for value in values if value is not None]
    return {
        "mean": fmean(known) if known else None,
        "spread": stdev(known) if len(known) > 1 else None,
        "n": len(known),
    }


def page(records: Sequence[Record], command: str, *, planned: int) -> str:
    rows = summary(records)
    cell = records[0]["cell"]
    minutes = sum(record["cpu_seconds"] for record in records) / 60
    lines = [
        "# The classification auto-encoder on poisoned data",
        "",
        f"`{command}`, on {hardware()}; {len(records)} attacked training sets, {minutes:.0f} minutes of one core. Razmi & Xiong 2021 "
        "(arXiv 2108.04206): score alpha e / |e| + (1 - alpha) c / |c|, e what is rebuilt amiss, c the cross-entropy of the label, a two-component "
        f"Gaussian mixture as threshold. Two classes of each data set ({', '.join(f'{n} {a} and {b}' for n, (a, b) in PAIRS.items() if n != 'digits')}), "
        f"at most {cell['images']:,} training images; victim: a linear support vector machine, squared hinge loss, C = {cell['cost']:g}; "
        f"{cell['epochs']} epochs of each auto-encoder. Measured against what was really changed; accuracy in % on all test images of the two "
        "classes. Mean ± standard deviation over seeds.",
        "",
        "It judges *data*, and contributors of Portier hand over models: the rows stand beside the gate's, not in competition with it. "
        "The activation gate has nothing to look at in this victim (a linear classifier has no layer before its head): n/a.",
        "",
        "*Attack*: flipping changes labels, semi-optimal inputs, optimal both. *Held*: the attacker's share of the training set; *changed*: what "
        "of the set the attack changed. A semi-optimal attack leaves as it was what the victim's margin does not see.",
        "",
        "*Detector*: CAE+ is CAE, for the label, and a plain auto-encoder, for what is rebuilt. *Learnt from*: a clean set of the same size that the "
        "attacker never saw; the attacked set itself; or another set that was attacked in the same way, the setting of the authors' code. Accuracy "
        "of the victim: trained before the attack, after it, and after it without what the detector flags. Pairs, sizes, layers and epochs are ours.",
        "",
    ]
    lines += _table(
        f"alpha = {SHOWN_ALPHA:g}, of the authors' code", [row for row in rows if row["alpha"] == SHOWN_ALPHA]
    )
    lines += _table("The alpha with the best mean F1, chosen afterwards: the best chance", _best(rows))
    if len(records) < planned:
        lines += [f"Incomplete: {len(records)} of {planned} cells were done.", ""]
    return "\n".join(lines)


def _best(rows: Sequence[Record]) -> list[Record]:
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in KEYS[:-1]), []).append(row)
    return [max(members, key=lambda row: float(row["f1"]["mean"] or 0)) for members in groups.values()]


def _table(title: str, rows: Sequence[Record]) -> list[str]:
    return [
        f"## {title}",
        "",
        "| data | attack | held | changed | detector | learnt from | alpha | n | precision | recall | F1 | AUROC | victim: clean | attacked | filtered |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
        *(
            f"| {row['data']} | {row['attack']} | {100 * row['fraction']:g} % | {_shown(row['changed'], 100, 1)} % | {row['detector']} | "
            f"{row['learnt_from']} | {row['alpha']:g} | {row['n']} | "
            + " | ".join(_shown(row[name], 1, 2) for name in ("precision", "recall", "f1", "auroc"))
            + " | "
            + " | ".join(_shown(row[name], 100, 1) for name in ("victim_clean", "victim_attacked", "accuracy"))
            + " |"
            for row in rows
        ),
        "",
    ]


def _shown(value: Mapping[str, float | None], scale: float, digits: int) -> str:
    mean, deviation = value["mean"], value["spread"]
    if mean is None:
        return "-"
    return f"{scale * mean:.{digits}f}" + (f" ± {scale * deviation:.{digits}f}" if deviation is not None else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=",".join(DATASETS), help=f"with commas, out of {', '.join(PAIRS)}")
    parser.add_argument("--fractions", default="0.05,0.1,0.2,0.3", help="poisoned, with commas (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=1000, help="of each set at most (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=40, help="of the auto-encoder (default: %(default)s)")
    parser.add_argument("--work", type=Path, default=ROOT / "portier-simulations" / "cae")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    arguments = parser.parse_args()
    names = arguments.data.split(",")
    for name in names:
        if name not in PAIRS:
            parser.error(f"--data {name}: no pair of classes is chosen for it; out of {', '.join(PAIRS)}")
    fractions = [float(text) for text in arguments.fractions.split(",")]
    torch.set_num_threads(1)
    work, out = ensure_directory(arguments.work), ensure_directory(arguments.out)
    command = (
        f"python -m benchmarks.cae --data {arguments.data} --fractions {arguments.fractions} --seeds {arguments.seeds}"
    )
    command += f" --images {arguments.images} --epochs {arguments.epochs}"
    planned = cells(names, fractions, arguments.seeds, images=arguments.images, epochs=arguments.epochs)
    data = {name: load(name) for name in names}
    records: list[Record] = []
    fitted: dict[Cell, CaeDetector] = {}
    for cell in planned:
        records.append(measure(cell, data[cell.data], work, fitted))
        shown = next(row for row in records[-1]["rows"] if row["alpha"] == SHOWN_ALPHA)
        print(
            f"{len(records)}/{len(planned)} {cell.name} F1 {_shown(spread([shown['f1']]), 1, 2)} {records[-1]['cpu_seconds']} s",
            flush=True,
        )
        document = {"command": command, "hardware": hardware(), "planned": len(planned)}
        whole = document | {"summary": summary(records), "cells": records}
        write_atomically(out / "cae.json", (json.dumps(whole, indent=1) + "\n").encode())
        write_atomically(out / "cae.md", page(records, command, planned=len(planned)).encode())


if __name__ == "__main__":
    main()
