"""The command line of the detection benchmark."""

from __future__ import annotations

import argparse
import functools
import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.detection.breakdown import after_merge, by_base, placebos
from benchmarks.detection.config import Config
from benchmarks.detection.judge import judge
from benchmarks.detection.overview import overview, shipped
from benchmarks.detection.page import Row, page, roc, score_distributions, tpr_by_dose
from benchmarks.detection.plans import Plan, plans
from benchmarks.detection.report import by_family, honest_strata, placebo_groups, table
from benchmarks.detection.report import rows as figures_of
from benchmarks.detection.scores import Column, Slow, columns, score
from benchmarks.detection.sheets import Entry, Sheet, path_of
from benchmarks.detection.workers import over
from benchmarks.detection.zoo import Zoo, headline
from common.errors import ConfigurationError, PortierError
from common.files import ensure_directory
from owner.detectors import ESCALATION


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.detection",
        description="Train, score and judge; what is there already is not done again.",
    )
    parser.add_argument("config", help="a configuration that ships (cnn-cifar10 ...) or a TOML file")
    parser.add_argument("--stage", choices=("train", "score", "report", "all"), default="all")
    parser.add_argument(
        "--work", type=Path, default=Path("detection-work"), help="folder of the models (default: %(default)s)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("docs/results"),
        help="folder of the scores and of the report (default: %(default)s)",
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
    parser.add_argument(
        "--afresh",
        action="store_true",
        help="train the models of bases whose scores are published in --out too, for instance to score a new detector",
    )
    arguments = parser.parse_args()
    try:
        run(Config.load(arguments.config), arguments)
    except PortierError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def run(config: Config, arguments: argparse.Namespace) -> None:
    bases = [
        *(config.development if arguments.bases != "final" else ()),
        *(config.final if arguments.bases != "development" else ()),
    ]
    root = arguments.work / config.name
    zoo = Zoo(config, root)
    sheets: dict[int, Sheet] = {}
    for base in (*config.development, *config.final):
        if (sheet := Sheet.read(path_of(arguments.out, config, base), config, base)) is not None:
            sheets[base] = sheet
    if arguments.stage in {"train", "all"}:
        for base in bases:
            if base in sheets and sheets[base].complete(config) and not arguments.afresh:
                print(f"base {base}: nothing to train, {path_of(arguments.out, config, base)} has its scores")
            else:
                zoo.settle()
                train(config, root, plans(config, base), arguments.workers)
    if arguments.stage == "train":
        return
    slow = Slow(tuple(filter(None, arguments.slow.split(","))), arguments.slow_share)
    for base in bases:
        made = [plan for plan in plans(config, base) if zoo.record(plan) is not None]
        # Models that are only begun to be made do not take the place of scores that are published.
        if made and (arguments.afresh or base not in sheets or len(made) >= len(sheets[base].entries)):
            zoo.settle()
            scored = score_base(zoo, base, made, slow, arguments.workers)
            sheets[base] = scored.with_slow(sheets[base]) if base in sheets else scored
            sheets[base].write(path_of(arguments.out, config, base))
    if arguments.stage != "score":
        write_report(config, list(sheets.values()), arguments)


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


def score_base(zoo: Zoo, base: int, models: Sequence[Plan], slow: Slow, workers: int) -> Sheet:
    """The sheet of what was made of this base so far; a base that is only begun has one too."""
    records = {plan: zoo.record(plan) or {} for plan in models}
    made = [plan for plan, record in records.items() if "failed" not in record]
    print(
        f"base {base}: {len(models)} of {len(plans(zoo.config, base))} models made, {len(models) - len(made)} without a result"
    )
    scores: dict[Plan, dict[str, Any]] = {}
    for plan, found in over(functools.partial(score, slow=slow), made, zoo.config, zoo.root, workers=workers):
        scores[plan] = found
        if len(scores) % 20 == 0 or len(scores) == len(made):
            print(f"base {base}: scored {len(scores)} of {len(made)}", flush=True)
    versions = {key: column["version"] for columns in scores.values() for key, column in columns.items()}
    entries = [Entry.of(plan, zoo.record(plan) or {}, scores.get(plan, {})) for plan in models]
    return Sheet(base, zoo.config.made_with(), zoo.trained_on(), versions, entries)


def write_report(config: Config, sheets: Sequence[Sheet], arguments: argparse.Namespace) -> None:
    """The figures, from the sheets alone. Says what is missing of the plan, and which bases were scored by code that is not today's."""
    judged, chosen_on = (_whole_first(config, sheets, bases) for bases in (config.final, config.development))
    if not judged:
        raise ConfigurationError("no final base has been scored", hint="run --stage train and --stage score first")
    development, final = table(chosen_on), table(judged)
    rows, chosen = figures_of(config, development, final)
    out = ensure_directory(arguments.out)
    groups = [judge(base, chosen[""].fit, base.attacked) for base in final.bases]
    judged_by_family = by_family(config, final, chosen)
    doses = {
        one.plan.name: dose
        for sheet in judged
        for one in sheet.entries
        if (dose := poisoned_share(one.plan.attack)) is not None
    }
    name = f"detection-{config.name}"
    score_distributions(groups, out / f"{name}-scores.png")
    roc(groups, out / f"{name}-roc.png")
    tpr_by_dose(groups, doses, out / f"{name}-dose.png")
    plots = [
        ("Scores of the gate, no family left out", f"{name}-scores.png"),
        ("TPR and realised false-positive rate against the nominal level", f"{name}-roc.png"),
        ("TPR against the attack's option `fraction`", f"{name}-dose.png"),
    ]
    text = page(
        config,
        rows,
        chosen,
        honest_strata(final, chosen[""].fit),
        judged=[sheet.base for sheet in judged],
        chosen_on=[base.number for base in development.bases],
        command=f"python -m benchmarks.detection {arguments.config}",
        hardware="; ".join(dict.fromkeys(sheet.hardware for sheet in sheets)),
        plots=plots,
        breakdown=[
            *by_base(judged_by_family),
            "",
            *after_merge(judged_by_family),
            "",
            *placebos(placebo_groups(config, final, chosen)),
        ],
    )
    text += "".join(f"\n{line}\n" for line in shortcomings(config, sheets))
    (out / f"{name}.md").write_text(text, "utf-8")
    everything = merge_rows(out / "detection.json", rows)
    (out / "detection.md").write_text(overview(everything, [*shipped(), config]), "utf-8")
    print(f"written: {out / f'{name}.md'}, and {out / 'detection.md'}")


def _whole_first(config: Config, sheets: Sequence[Sheet], bases: Sequence[int]) -> list[Sheet]:
    """Of these bases those all models of which are there; where there is none, those that are begun."""
    mine = [sheet for sheet in sheets if sheet.base in bases]
    return [sheet for sheet in mine if sheet.complete(config)] or mine


def shortcomings(config: Config, sheets: Sequence[Sheet]) -> list[str]:
    """One line a base that is not, or not wholly, what the configuration and today's detectors would give."""
    by_base, today = {sheet.base: sheet for sheet in sheets}, {column.key: column.version for column in columns(config)}
    slow = {name: Column(name, kind()).version for name, kind in ESCALATION.items()}
    lines = []
    for base in (*config.development, *config.final):
        sheet, planned = by_base.get(base), len(plans(config, base))
        if sheet is None:
            lines.append(f"Incomplete: base {base} has not been run.")
            continue
        if len(sheet.entries) < planned:
            lines.append(f"Incomplete: {len(sheet.entries)} of {planned} models of base {base} were there.")
        if failed := [one.failed for one in sheet.entries if one.failed]:
            why = "; ".join(dict.fromkeys(failed))
            lines.append(f"{len(failed)} of {len(sheet.entries)} models of base {base} gave nothing back: {why}.")
        useless = sum(one.plan.role in {"fitting", "calibration"} and not one.passes_utility for one in sheet.entries)
        if useless:
            lines.append(f"{useless} references of base {base} fail utility, however often they were drawn again.")
        other = sorted(key for key, version in today.items() if sheet.versions.get(key) != version)
        other += sorted(key for key, version in slow.items() if sheet.versions.get(key, version) != version)
        if other:
            lines.append(f"Base {base} was scored by other code than today's, or not at all, in: {', '.join(other)}.")
    return lines


def merge_rows(path: Path, rows: Sequence[Row]) -> list[Row]:
    """Replaces the rows of the same architecture and data set; all that the file then holds."""
    old = json.loads(path.read_text("utf-8")) if path.exists() else []
    about = {(row["architecture"], row["dataset"]) for row in rows}
    kept = [row for row in old if (row["architecture"], row["dataset"]) not in about]
    everything = [*kept, *rows]
    path.write_text(json.dumps(everything, indent=1) + "\n", "utf-8")
    return everything


def poisoned_share(attack: str | None) -> float | None:
    """
    >>> poisoned_share("sig:target=3,fraction=0.5"), poisoned_share("same-value")
    (0.5, None)
    """
    found = re.search(r"fraction=([\d.]+)", attack or "")
    return float(found[1]) if found else None


if __name__ == "__main__":
    sys.exit(main())
