"""The command line of the detection benchmark."""

from __future__ import annotations

import argparse
import functools
import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.detection.config import Config
from benchmarks.detection.judge import judge
from benchmarks.detection.page import page, roc, score_distributions, tpr_by_dose
from benchmarks.detection.plans import Plan, plans
from benchmarks.detection.report import honest_strata, table
from benchmarks.detection.report import rows as figures_of
from benchmarks.detection.scores import Slow, score
from benchmarks.detection.workers import over
from benchmarks.detection.zoo import Zoo, headline
from benchmarks.records import hardware
from common.errors import PortierError
from common.files import ensure_directory


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.detection",
        description="Train, score and judge; what is there already is not done again.",
    )
    parser.add_argument("config", help="a configuration that ships (cnn-cifar10 ...) or a TOML file")
    parser.add_argument("--stage", choices=("train", "score", "report", "all"), default="all")
    parser.add_argument(
        "--work", type=Path, default=Path("detection-work"), help="folder of models and scores (default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("docs/results"), help="folder of the report (default: %(default)s)"
    )
    parser.add_argument("--bases", choices=("development", "final", "all"), default="all")
    parser.add_argument(
        "--slow",
        default="",
        help="detectors of the escalation tier to compare with, with commas: maximum-margin, trigger-inversion; some ten seconds "
        "a model each (default: none)",
    )
    parser.add_argument(
        "--slow-share", type=float, default=1.0, help="share of the models they are scored on (default: %(default)s)"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        config = Config.load(arguments.config)
        bases = [
            *(config.development if arguments.bases != "final" else ()),
            *(config.final if arguments.bases != "development" else ()),
        ]
        root = arguments.work / config.name
        Zoo(config, root).settle()
        wanted = {base: plans(config, base) for base in bases}
        if arguments.stage in {"train", "all"}:
            for mine in wanted.values():
                train(config, root, mine, arguments.workers)
        if arguments.stage in {"score", "report", "all"}:
            judge_and_write(config, root, wanted, arguments)
    except PortierError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def train(config: Config, root: Path, models: Sequence[Plan], workers: int) -> None:
    """Makes those models of one base that are not there yet; the base itself first, with all cores."""
    zoo = Zoo(config, root)
    missing = [plan for plan in models if zoo.record(plan) is None]
    for base in dict.fromkeys(plan.base for plan in missing):
        zoo.base(base)
    started = time.perf_counter()
    for done, (plan, record) in enumerate(over(Zoo.make, missing, config, root, workers=workers), 1):
        left = (time.perf_counter() - started) / done * (len(missing) - done) / 60
        print(f"{done}/{len(missing)} base {plan.base} {plan.name} {headline(record)}; {left:.0f} min left", flush=True)


def judge_and_write(
    config: Config, root: Path, wanted: Mapping[int, Sequence[Plan]], arguments: argparse.Namespace
) -> None:
    """Scores what was made so far and, unless `--stage score`, writes the figures. Says how much of the plan is there."""
    zoo = Zoo(config, root)
    slow = Slow(tuple(filter(None, arguments.slow.split(","))), arguments.slow_share)
    records = {plan: record for mine in wanted.values() for plan in mine if (record := zoo.record(plan)) is not None}
    made = [plan for plan, record in records.items() if "failed" not in record]
    planned = sum(map(len, wanted.values()))
    print(f"{len(records)} of {planned} models made, {len(records) - len(made)} of them without a result")
    scores = {}
    for plan, found in over(functools.partial(score, slow=slow), made, config, root, workers=arguments.workers):
        scores[plan] = found
        if len(scores) % 20 == 0 or len(scores) == len(made):
            print(f"scored {len(scores)} of {len(made)}", flush=True)
    if arguments.stage == "score":
        return
    development = table([base for base in wanted if base in config.development], records, scores)
    final_bases = [base for base in wanted if base in config.final]
    complete = [base for base in final_bases if all(plan in records for plan in wanted[base])]
    final = table(complete or final_bases, records, scores)
    rows, chosen = figures_of(config, development, final)
    out = ensure_directory(arguments.out)
    groups = [judge(base, chosen[""].fit, base.attacked) for base in final.bases]
    doses = {plan.name: dose for plan in made if (dose := poisoned_share(plan.attack)) is not None}
    name = f"detection-{config.name}"
    score_distributions(groups, out / f"{name}-scores.png")
    roc(groups, out / f"{name}-roc.png")
    tpr_by_dose(groups, doses, out / f"{name}-dose.png")
    plots = [
        ("Scores of the gate, no family left out", f"{name}-scores.png"),
        ("TPR and realised false-positive rate against the nominal level", f"{name}-roc.png"),
        ("TPR against dose", f"{name}-dose.png"),
    ]
    strata = honest_strata(final, chosen[""].fit)
    command = f"python -m benchmarks.detection {arguments.config}"
    judged = [base.number for base in final.bases]
    text = page(config, rows, chosen, strata, judged=judged, command=command, hardware=hardware(), plots=plots)
    if len(records) < planned:
        missing = ", ".join(str(base) for base in final_bases if base not in judged)
        text += f"\nIncomplete: {len(records)} of {planned} models were there. Not judged yet: final base {missing}.\n"
    (out / f"{name}.md").write_text(text, "utf-8")
    merge_rows(out / "detection.json", rows)
    print(f"written: {out / f'{name}.md'}")


def merge_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Replaces the rows of the same architecture and data set."""
    old = json.loads(path.read_text("utf-8")) if path.exists() else []
    about = {(row["architecture"], row["dataset"]) for row in rows}
    kept = [row for row in old if (row["architecture"], row["dataset"]) not in about]
    path.write_text(json.dumps([*kept, *rows], indent=1) + "\n", "utf-8")


def poisoned_share(attack: str | None) -> float | None:
    """
    >>> poisoned_share("sig:target=3,fraction=0.5"), poisoned_share("same-value")
    (0.5, None)
    """
    found = re.search(r"fraction=([\d.]+)", attack or "")
    return float(found[1]) if found else None


if __name__ == "__main__":
    sys.exit(main())
