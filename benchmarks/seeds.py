"""The verdicts of many seeds of one scenario, whatever they show: no seed is picked.

    python -m benchmarks.seeds demo --first 200 --seeds 20

runs `portier-owner simulate demo --seed S` for S = 200 .. 219, each as real processes, and writes docs/results/demo.json (one
row per contributor and seed) and docs/results/demo.md (counts over all seeds). A seed that is done is kept in the work
folder, so an interrupted run goes on. The statistical unit is the model: every rate is over returned models, with its
Clopper-Pearson interval; the models of one seed share a release and a guard, so the intervals are, if anything, narrow.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.rates import clopper_pearson

ROOT = Path(__file__).resolve().parents[1]
Row = dict[str, Any]
GATE_CODES = frozenset({"GATE", "ACTIVATION_AUTOENCODER"})
"""Of several detectors combined, and of the paper's alone."""


def run(scenario: str, seed: int, work: Path) -> dict[str, Any]:
    directory = work / f"{scenario}-{seed}"
    result = directory / "result.json"
    if not result.exists():
        command = [
            sys.executable,
            "-m",
            "owner",
            "simulate",
            scenario,
            "--seed",
            str(seed),
            "--directory",
            str(directory),
        ]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"seed {seed} failed ({done.returncode}):\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    loaded: dict[str, Any] = json.loads(result.read_text("utf-8"))
    return loaded


def rows_of(result: dict[str, Any]) -> list[Row]:
    keys = (
        "name",
        "attack",
        "fate",
        "attack_success",
        "effective",
        "accuracy",
        "ae_error",
        "p_value",
        "codes",
        "samples",
    )
    before, after = result["release"]["before"]["accuracy"], result["release"]["after"]["accuracy"]
    shared = {"seed": result["seed"], "release_accuracy_before": before, "release_accuracy_after": after}
    return [shared | {key: one[key] for key in keys} for one in result["contributors"]]


def rate(rows: Sequence[Row], fates: Iterable[str]) -> str:
    n = len(rows)
    if n == 0:
        return "-"
    hits = sum(row["fate"] in set(fates) for row in rows)
    low, high = clopper_pearson(hits, n)
    return f"{hits} of {n} ({100 * hits / n:.0f} %, {100 * low:.0f} to {100 * high:.0f} %)"


def table(scenario: str, results: Sequence[dict[str, Any]], command: str) -> str:
    rows = [row for result in results for row in rows_of(result)]
    honest = [row for row in rows if row["attack"] is None]
    attackers = [row for row in rows if row["attack"] is not None]
    first = results[0]
    gate = [row for row in attackers if not GATE_CODES.isdisjoint(row["codes"])]
    codes = Counter(code for row in honest if row["fate"] != "accepted" for code in row["codes"])
    lines = [
        f"# The scenario `{scenario}`, {len(results)} seed{'s' * (len(results) > 1)}",
        "",
        f"`{command}`, on {first['hardware']}; {', '.join(f'{k} {v}' for k, v in first['versions'].items())}. "
        f"Seeds {first['seed']} to {results[-1]['seed']}, none left out. Rates over returned models, with 95 % "
        "Clopper-Pearson intervals; models of one seed share a release and a guard. An attack is *effective* when its held-out "
        "success is at least 50 % of what the release's own errors leave (backdoors), it takes at least 20 points of the source class's recall (flips) or of the accuracy "
        "(attacks without a target).",
        "",
        "| | rejected | rejected or held for a person |",
        "|---|---|---|",
        f"| attackers | {rate(attackers, ['rejected'])} | {rate(attackers, ['rejected', 'held'])} |",
        *(
            f"| - {name} | {rate(some, ['rejected'])} | {rate(some, ['rejected', 'held'])} |"
            for name, some in _groups(attackers)
        ),
        f"| honest | {rate(honest, ['rejected'])} | {rate(honest, ['rejected', 'held'])} |",
        "",
        f"Attackers that the gate itself rejected or held: {len(gate)} of {len(attackers)}; the others that "
        "were turned away failed the utility check on the would-be release or admission.",
        f"Why honest contributors were turned away or held: {', '.join(f'{c} {n}' for c, n in codes.most_common()) or '-'} "
        "(one model may have several codes).",
        "",
        "| seed | release accuracy before / after | "
        + " | ".join(one["name"] + ("" if one["attack"] is None else " (attacks)") for one in first["contributors"])
        + " |",
        "|---|---|" + "---|" * len(first["contributors"]),
        *(_line(result) for result in results),
        "",
        "Cells: verdict; p-value of the gate; held-out success of the attack, where it has one.",
        "",
    ]
    return "\n".join(lines)


def _groups(attackers: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    groups: dict[str, list[Row]] = {}
    for row in attackers:
        groups.setdefault(f"`{row['attack']}`", []).append(row)
        if row["effective"] is not None:
            kind = "effective" if row["effective"] else "failed"
            groups.setdefault(f"`{row['attack'].partition(':')[0]}`, {kind} ones", []).append(row)
    return sorted(groups.items())


def _line(result: dict[str, Any]) -> str:
    cells = []
    for one in result["contributors"]:
        p = "-" if one["p_value"] is None else f"{one['p_value']:.2f}"
        success = "" if one["attack_success"] is None else f"; {100 * one['attack_success']:.0f} %"
        cells.append(f"{one['fate']}; {p}{success}")
    release = result["release"]
    accuracies = f"{100 * release['before']['accuracy']:.1f} / {100 * release['after']['accuracy']:.1f}"
    return f"| {result['seed']} | {accuracies} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", nargs="?", default="demo")
    parser.add_argument("--first", type=int, default=200, help="seeds below 200 were looked at during development")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--work", type=Path, default=ROOT / "portier-simulations" / "seeds")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    arguments = parser.parse_args()
    results = []
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        results.append(run(arguments.scenario, seed, arguments.work))
        fates = Counter((one["attack"] is None, one["fate"]) for one in results[-1]["contributors"])
        print(
            seed, {f"{'honest' if honest else 'attack'} {fate}": n for (honest, fate), n in fates.items()}, flush=True
        )
    command = f"python -m benchmarks.seeds {arguments.scenario} --first {arguments.first} --seeds {arguments.seeds}"
    document = {
        "command": command,
        "hardware": results[0]["hardware"],
        "versions": results[0]["versions"],
        "scenario": {key: value for key, value in results[0]["scenario"].items() if key != "contributors"},
        "n_seeds": len(results),
        "rows": [row for result in results for row in rows_of(result)],
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / f"{arguments.scenario}.json").write_text(json.dumps(document, indent=1) + "\n")
    (arguments.out / f"{arguments.scenario}.md").write_text(table(arguments.scenario, results, command))


if __name__ == "__main__":
    main()
