"""The classification auto-encoder (Razmi & Xiong 2021) on poisoned training sets of a linear support vector machine.

    PORTIER_DATA=... python -m benchmarks.cae

For each data set (two classes of MNIST, Fashion-MNIST, CIFAR-10), attack, poisoned fraction and seed: a training set is attacked, the detector
judges each of its examples, and the victim is trained without those it flags. The detector learns from a clean set of the same size, or from the
attacked set itself (the setting of the paper's CAE+), for each weight alpha of reconstruction. Written: docs/results/cae.json and cae.md, mean and
spread (standard deviation, n - 1) over seeds. A cell that is done is kept in the work folder, so an interrupted run goes on; the files show what is
there so far, and say so.

Pairs of classes, sizes, the victim's cost and the bound of the semi-optimal attack are ours; the cost was chosen on clean validation images of
seed 0, out of 1e-5 to 0.1: within 0.1 points of the best on each data set.
"""

from __future__ import annotations

import argparse
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

from benchmarks.records import hardware
from common.datasets import DataSet, load
from common.examples import Examples
from common.files import ensure_directory, write_atomically
from common.randomness import derived_seed, generator
from owner.data_poisoning import ATTACKS, AttackOptions, CaeDetector, CaeOptions, fit_svm, poison

ROOT = Path(__file__).resolve().parents[1]
FORMAT = 1
Record = dict[str, Any]

PAIRS: Mapping[str, tuple[int, int]] = {"mnist": (4, 9), "fashion-mnist": (7, 9), "cifar10": (0, 8), "digits": (4, 9)}
"""The two classes of each data set: 4 and 9, sneaker and ankle boot, airplane and ship. digits is for trying the command out."""

DATASETS = ("mnist", "fashion-mnist", "cifar10")
ALPHAS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
SHOWN_ALPHA = 0.5
"""Chosen before anything was measured; the table shows the best one too."""

LEARNT_FROM = ("clean", "attacked")
MEASURES = ("precision", "recall", "f1", "auroc", "accuracy")


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


def measure(
    cell: Cell, data: DataSet, work: Path, fitted: dict[Cell, dict[float, CaeDetector]] | None = None
) -> Record:
    """The cell's record, from the work folder where it is done already.

    fitted: detectors that learnt from clean sets, by alpha, of earlier cells: cells of one data set and seed share theirs.
    """
    path = work / f"{cell.name}.json"
    wanted = {"format": FORMAT, "cell": asdict(cell), "alphas": list(ALPHAS)}
    if path.exists():
        found: Record = json.loads(path.read_text("utf-8"))
        if {key: found.get(key) for key in wanted} == wanted:
            return found
    started = time.process_time()
    parts = sets(cell, data)
    options = AttackOptions(cell.attack, cell.fraction, cost=cell.cost)
    draws = generator(cell.seed, f"{cell.data} poison {cell.fraction}")
    attacked = poison(*parts["train"], parts["validation"], options, draws)
    same = replace(cell, attack="", fraction=0.0)
    ready = (fitted if fitted is not None else {}).setdefault(same, {})
    rows: list[Record] = []
    for source, alpha in itertools.product(LEARNT_FROM, ALPHAS):
        seed = derived_seed(cell.seed, f"{cell.data} CAE") % (1 << 62)
        options_of = CaeOptions(alpha, epochs=cell.epochs, seed=seed)
        if source == "attacked":
            detector = CaeDetector(options_of).fit(attacked.inputs, attacked.labels)
        else:
            ready[alpha] = detector = ready.get(alpha) or CaeDetector(options_of).fit(*parts["clean"])
        flagged, mixture = detector.flag(attacked.inputs, attacked.labels)
        rows.append(
            {
                "learnt_from": source,
                "alpha": alpha,
                "threshold": mixture.threshold if flagged.any() else None,
                **detection(flagged, detector.score(attacked.inputs, attacked.labels), attacked.poisoned),
                "accuracy": accuracy(attacked.inputs[~flagged], attacked.labels[~flagged], parts["test"], cell.cost),
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


def detection(flagged: Tensor, scores: Tensor, poisoned: Tensor) -> dict[str, float]:
    """Of flagging: precision (0 where nothing is flagged), recall, F1; and the AUROC of the scores, which no threshold changes.

    >>> detection(torch.tensor([True, True, False]), torch.tensor([3.0, 2.0, 1.0]), torch.tensor([True, False, False]))
    {'precision': 0.5, 'recall': 1.0, 'f1': 0.6666666666666666, 'auroc': 1.0}
    """
    hits, named, there = int((flagged & poisoned).sum()), int(flagged.sum()), int(poisoned.sum())
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
    """One row for each data set, attack, fraction, source and alpha: mean and spread of each measure over seeds, and n."""
    groups: dict[tuple[Any, ...], list[tuple[Record, Record]]] = {}
    for record in records:
        for row in record["rows"]:
            cell = record["cell"]
            key = (cell["data"], cell["attack"], cell["fraction"], row["learnt_from"], row["alpha"])
            groups.setdefault(key, []).append((record, row))
    return [
        dict(zip(("data", "attack", "fraction", "learnt_from", "alpha"), key, strict=True))
        | {"n": len(members)}
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
        "(arXiv 2108.04206): score alpha |x - x'| + (1 - alpha) CE, a two-component Gaussian mixture as threshold. Two classes of each data "
        f"set ({', '.join(f'{name} {a} and {b}' for name, (a, b) in PAIRS.items() if name != 'digits')}), at most {cell['images']:,} training "
        f"images; victim: a linear support vector machine, squared hinge loss, C = {cell['cost']:g}; {cell['epochs']} epochs of the "
        "auto-encoder. Measured against what was really poisoned; accuracy in % on all test images of the two classes. Mean ± standard "
        "deviation over seeds.",
        "",
        "It judges *data*, and contributors of Portier hand over models: the rows stand beside the gate's, not in competition with it. "
        "The activation gate has nothing to look at in this victim (a linear classifier has no layer before its head): n/a.",
        "",
        "*Learnt from*: a clean set of the same size that the attacker never saw, or the attacked set itself. Accuracy of the victim: trained "
        "before the attack, after it, and after it without what the detector flags. Pairs, sizes, layer widths and the bound of the semi-optimal "
        "attack are ours; the authors' CAE+ may have more to it than learning from the attacked set.",
        "",
    ]
    lines += _table(f"alpha = {SHOWN_ALPHA:g}, chosen beforehand", [row for row in rows if row["alpha"] == SHOWN_ALPHA])
    lines += _table("The alpha with the best mean F1, chosen afterwards: the best chance", _best(rows))
    if len(records) < planned:
        lines += [f"Incomplete: {len(records)} of {planned} cells were done.", ""]
    return "\n".join(lines)


def _best(rows: Sequence[Record]) -> list[Record]:
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in ("data", "attack", "fraction", "learnt_from")), []).append(row)
    return [max(members, key=lambda row: float(row["f1"]["mean"])) for members in groups.values()]


def _table(title: str, rows: Sequence[Record]) -> list[str]:
    return [
        f"## {title}",
        "",
        "| data | attack | poisoned | learnt from | alpha | n | precision | recall | F1 | AUROC | victim: clean | attacked | filtered |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
        *(
            f"| {row['data']} | {row['attack']} | {100 * row['fraction']:g} % | {row['learnt_from']} | {row['alpha']:g} | {row['n']} | "
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
    fitted: dict[Cell, dict[float, CaeDetector]] = {}
    for cell in planned:
        records.append(measure(cell, data[cell.data], work, fitted))
        shown = next(row for row in records[-1]["rows"] if row["alpha"] == SHOWN_ALPHA)
        print(
            f"{len(records)}/{len(planned)} {cell.name} F1 {shown['f1']:.2f} {records[-1]['cpu_seconds']} s", flush=True
        )
        document = {"command": command, "hardware": hardware(), "planned": len(planned)}
        whole = document | {"summary": summary(records), "cells": records}
        write_atomically(out / "cae.json", (json.dumps(whole, indent=1) + "\n").encode())
        write_atomically(out / "cae.md", page(records, command, planned=len(planned)).encode())


if __name__ == "__main__":
    main()
