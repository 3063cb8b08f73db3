"""Whether a guard re-calibrated from transplanted fine-tunes is as good as one fitted from nothing.

    python -m benchmarks.recalibration                                   # digits, mlp, the paper's detector
    python -m benchmarks.recalibration --detectors standard --seeds 3 --name standard
    PORTIER_DATA=... python -m benchmarks.recalibration --dataset cifar10 --architecture cnn --name cifar10

A root is released and guarded; honest contributors are merged, one after the other. After 1, 2, ... merges both guards of that release are
made: `fresh`, of K fine-tunes of it, and `transplanted`, of the root's K fine-tunes moved to it. Both are asked about the same honest test
fine-tunes of the release, on images no reference has seen, and the same attacked ones. The detectors are fitted on the
new release in both, so that a model has one score and two p-values.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import ks_2samp, spearmanr

from benchmarks.laboratory import Laboratory, laboratory
from benchmarks.rates import clopper_pearson
from benchmarks.records import hardware
from common.models import build
from common.weights import Weights
from owner.gatekeeper import Gatekeeper, GuardOptions, merge
from owner.gatekeeper.guard import Guard
from owner.gatekeeper.guard_files import release_digest
from owner.gatekeeper.protection import Protection
from owner.gatekeeper.transplants import KeptReferences, Transplants, measure_news

ROOT = Path(__file__).resolve().parents[1]
ATTACKS = (
    "flip:source=7,target=1,fraction=1.0",
    "flip:source=4,target=9,fraction=0.6",
    "pattern:source=3,target=8,fraction=1.0",
    "pattern:source=5,target=0,fraction=0.7",
)
GUARDS = ("fresh", "transplanted")
LEVELS = (0.05, 0.10)


def one_seed(lab: Laboratory, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each number of merges in `arguments.merges`."""
    options = GuardOptions(detectors=(arguments.detectors,), references=arguments.references)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        protection = dataclasses.replace(lab.protection(lab.root, options), keep=True)
        old = protection.fit(directory=directory, progress=False)
        kept = KeptReferences(Protection.kept_in(directory, old))
        release = lab.root
        for merges in range(1, max(arguments.merges) + 1):
            release = merge("average", release, release, lab.honest(release, 5000 + merges), 0.5)
            if merges in arguments.merges:
                rows.append(_one_release(lab, options, release, kept, merges, arguments))
    return rows


def _one_release(
    lab: Laboratory,
    options: GuardOptions,
    release: Weights,
    kept: KeptReferences,
    merges: int,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    news = measure_news(lab.root, release, kept, options.references)
    digest = release_digest(lab.root)
    source = Transplants(kept, lab.root, digest, digest, merges, news, total_news=news)
    keepers, seconds = {}, {}
    for name, transplants in (("fresh", None), ("transplanted", source)):
        started = time.perf_counter()
        guard = dataclasses.replace(lab.protection(release, options), transplants=transplants).fit(progress=False)
        seconds[name] = time.perf_counter() - started
        model = build(lab.spec)
        model.load_state_dict(release)
        keepers[name] = Gatekeeper(guard, model)
    honest = [lab.honest(release, 9000 + 100 * merges + number) for number in range(arguments.honest)]
    attacked = [
        (spec, *lab.attacked(release, 9500 + 100 * merges + number, spec))
        for number, spec in enumerate(ATTACKS * arguments.rounds)
    ]
    return {
        "seed": lab.seed,
        "merges": merges,
        "news": news,
        "seconds": seconds,
        "reference_scores": {name: _reference_scores(keeper.guard) for name, keeper in keepers.items()},
        "honest": [{name: _p(keeper, weights) for name, keeper in keepers.items()} for weights in honest],
        "attacked": [
            {"attack": spec, "effective": effective} | {name: _p(keeper, weights) for name, keeper in keepers.items()}
            for spec, weights, effective in attacked
        ],
    }


def _p(keeper: Gatekeeper, weights: Weights) -> float:
    found = keeper.vet(weights).p_value
    if found is None:
        raise ValueError("a fine-tune of the release did not get as far as a p-value")
    return found


def _reference_scores(guard: Guard) -> list[float]:
    if guard.combined:
        return [guard.combination.score(reference.scores) for reference in guard.references]
    name = next(iter(guard.detectors))
    return [reference.scores[name] for reference in guard.references]


def summary(rows: Sequence[dict[str, Any]], references: int) -> dict[str, Any]:
    """Over the rows of a group."""
    honest = {name: [one[name] for row in rows for one in row["honest"]] for name in GUARDS}
    effective = {name: [a[name] for row in rows for a in row["attacked"] if a["effective"]] for name in GUARDS}
    out: dict[str, Any] = {
        "releases": len(rows),
        "news": [
            min(r["news"] for r in rows),
            float(np.median([r["news"] for r in rows])),
            max(r["news"] for r in rows),
        ],
        "n_honest": len(honest["fresh"]),
        "n_attacked": sum(len(row["attacked"]) for row in rows),
        "n_effective": len(effective["fresh"]),
        "spearman_p": float(spearmanr(honest["fresh"], honest["transplanted"]).statistic),
        "references_ks": float(
            np.median([ks_2samp(*(row["reference_scores"][name] for name in GUARDS)).statistic for row in rows])
        ),
    }
    for name in GUARDS:
        out[name] = {
            "seconds": float(np.median([row["seconds"][name] for row in rows])),
            "ks_uniform": _ks_uniform(honest[name], references),
            "mean_p": float(np.mean(honest[name])),
            "fpr": {f"{level:g}": _rate(honest[name], level) for level in LEVELS},
            "tpr": {f"{level:g}": _rate(effective[name], level) for level in LEVELS},
        }
    out["differ"] = {
        f"{level:g}": {
            "only_fresh": sum(f <= level + 1e-12 < t for f, t in zip(*honest.values(), strict=True)),
            "only_transplanted": sum(t <= level + 1e-12 < f for f, t in zip(*honest.values(), strict=True)),
        }
        for level in LEVELS
    }
    return out


def _ks_uniform(values: Sequence[float], references: int) -> float:
    """Largest distance between the distribution of p and the uniform one on its grid."""
    grid = np.arange(1, references + 2) / (references + 1)
    return float(np.abs((np.array(values)[:, None] <= grid + 1e-12).mean(0) - grid).max())


def _rate(values: Sequence[float], level: float) -> dict[str, Any]:
    hits = sum(value <= level + 1e-12 for value in values)
    return {"hits": hits, "n": len(values), "ci": clopper_pearson(hits, len(values)) if values else None}


def page(documents: dict[str, dict[str, Any]]) -> str:
    lines = [
        "# Re-calibration from transplanted fine-tunes",
        "",
        "`python -m benchmarks.recalibration`: a guard whose references were moved from the root (M_new + delta_k), beside one fitted from "
        "nothing on the same release. Intervals are 95 % Clopper-Pearson over models; those of one base share a release and a guard, "
        "so they are too narrow. News: how far the release moved from the root, in median fine-tunes of it; up to "
        f"{GuardOptions().incremental_news:g} a guard would be transplanted by default. That limit was set before the first run; the one at 3 was drawn after five "
        "of the twelve bases of `digits` had shown where it goes wrong. Seconds are medians on a busy machine: they say little. Attacks: "
        + ", ".join(f"`{spec}`" for spec in ATTACKS)
        + ", three times the recommended rate; rates over effective ones.",
        "",
    ]
    for name, found in documents.items():
        lines += [
            f"## {name}: {found['architecture']} on {found['dataset']}, detectors `{found['detectors']}`, K = {found['references']}",
            "",
            f"`{found['command']}` on {found['hardware']}.",
            "",
            "| releases | news min / median / max | guard | honest p <= 0.05 | honest p <= 0.10 | KS to uniform | mean p | "
            "effective attacks p <= 0.05 | p <= 0.10 | seconds |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for merges, one in found["summary"].items():
            for kind in GUARDS:
                guard = one[kind]
                lines.append(
                    f"| {merges} | {' / '.join(f'{n:.2f}' for n in one['news'])} | {kind} | {_cell(guard['fpr']['0.05'])} | "
                    f"{_cell(guard['fpr']['0.1'])} | {guard['ks_uniform']:.3f} | {guard['mean_p']:.3f} | "
                    f"{_cell(guard['tpr']['0.05'])} | {_cell(guard['tpr']['0.1'])} | {guard['seconds']:.1f} |"
                )
        lines += [
            "",
            *(
                f"- {merges}: {one['n_honest']} honest models over {one['releases']} releases; rank correlation of the two p-values "
                f"{one['spearman_p']:.3f}; median two-sample KS between the references' scores {one['references_ks']:.2f}; at 10 %, "
                f"{one['differ']['0.1']['only_fresh']} turned away by the fresh guard alone, "
                f"{one['differ']['0.1']['only_transplanted']} by the transplanted one alone; "
                f"{one['n_effective']} of {one['n_attacked']} attacks effective."
                for merges, one in found["summary"].items()
            ),
            "",
        ]
    return "\n".join(lines)


def _cell(rate: dict[str, Any]) -> str:
    if not rate["n"]:
        return "-"
    return f"{rate['hits']} of {rate['n']} [{100 * rate['ci'][0]:.0f}, {100 * rate['ci'][1]:.0f} %]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="digits", help="of this run among those in the result file")
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--architecture", default="mlp")
    parser.add_argument("--detectors", default="paper")
    parser.add_argument("--references", type=int, default=19)
    parser.add_argument("--first", type=int, default=2000, help="seed of the first base")
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--merges", type=lambda text: [int(n) for n in text.split(",")], default=[1, 3])
    parser.add_argument("--honest", type=int, default=20, help="honest test models for each base and release")
    parser.add_argument("--rounds", type=int, default=2, help="how often each attack is made")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        rows += one_seed(laboratory(arguments.dataset, arguments.architecture, seed), arguments)
        print(seed, {row["merges"]: round(row["news"], 2) for row in rows if row["seed"] == seed}, flush=True)
        store(arguments, rows)


def store(arguments: argparse.Namespace, rows: Sequence[dict[str, Any]]) -> None:
    """After every base, so that what was interrupted shows as far as it came. Rows of other seeds under the same name stay."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    stored = arguments.out / "recalibration.json"
    documents = json.loads(stored.read_text()) if stored.exists() else {}
    before = documents.get(arguments.name, {})
    asked = {name: getattr(arguments, name) for name in ("dataset", "architecture", "detectors", "references")}
    if all(before.get(name) == value for name, value in asked.items()):
        mine = {row["seed"] for row in rows}
        rows = sorted(
            [*(row for row in before["rows"] if row["seed"] not in mine), *rows],
            key=lambda row: (row["seed"], row["merges"]),
        )
    groups = {f"{n} merge{'s' * (n > 1)}": [r for r in rows if r["merges"] == n] for n in arguments.merges}
    limit = GuardOptions().incremental_news
    groups |= {
        f"any, news <= {limit:g}": [r for r in rows if r["news"] <= limit],
        f"any, {limit:g} < news <= 3": [r for r in rows if limit < r["news"] <= 3],
        "any, news > 3": [r for r in rows if r["news"] > 3],
    }
    documents[arguments.name] = {
        "command": "python -m benchmarks.recalibration "
        f"--name {arguments.name} --dataset {arguments.dataset} --architecture {arguments.architecture} "
        f"--detectors {arguments.detectors} --references {arguments.references} --first {min(row['seed'] for row in rows)} "
        f"--seeds {len({row['seed'] for row in rows})} --merges {','.join(map(str, arguments.merges))} --honest {arguments.honest} "
        f"--rounds {arguments.rounds}",
        "hardware": hardware(),
        "dataset": arguments.dataset,
        "architecture": arguments.architecture,
        "detectors": arguments.detectors,
        "references": arguments.references,
        "summary": {name: summary(group, arguments.references) for name, group in groups.items() if group},
        "rows": list(rows),
    }
    stored.write_text(json.dumps(documents, indent=1) + "\n")
    (arguments.out / "recalibration.md").write_text(page(documents))


if __name__ == "__main__":
    main()
