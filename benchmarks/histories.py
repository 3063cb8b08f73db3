"""False alarms over 50 honest submissions, and what a slow poisoner achieves before the alarm; root drift after ten releases.

    python -m benchmarks.histories                       # all parts, into docs/results/histories.{json,md}
    python -m benchmarks.histories --parts false-alarms  # one of them; the others' figures stay as they were

Parts `false-alarms` and `power` simulate scores, not models: honest scores of K references and of submissions are independent
draws of one continuous distribution, of which p-values see the order only. Under exchangeability the false-alarm rate is
therefore exact but for the number of repeats. A poisoner's scores are shifted by so many standard deviations of a normal
distribution. Repeats use other random streams than those the thresholds were simulated with.

Part `root-drift` fine-tunes models (scikit-learn's digits): see `benchmarks.root_drift`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import root_drift
from benchmarks.rates import clopper_pearson
from benchmarks.records import hardware
from owner.e_process import (
    HistoryRule,
    Judged,
    judge_history,
    wealth_of_ranks,
)
from owner.honest_ranks import Ranks, honest_ranks

ROOT = Path(__file__).resolve().parents[1]
N = 50
REFERENCES = (19, 99)
GUARDS = (50, 10)
"""Successive submissions that share references: one set for all 50, and a fresh one every 10."""
REPEATS = 100_000
REPEATS_POWER = 10_000
REPEATS_LATER = 300
REPEATS_MIXED = 2_000
MIXED = (
    *((1, 99, 1), (1, 99, 5), (4, 99, 1), (4, 99, 5), (4, 19, 10), (9, 99, 5), (19, 99, 1), (19, 99, 10), (19, 99, 25)),
    *((99, 19, 10), (99, 4, 10), (4, 99, 0), (19, 99, 0)),
)
"""K first, then, and after how many submissions; 0: in turns."""
SHIFTS = (0.25, 0.5, 1.0, 1.5, 2.0)
PERSISTENT = (0.1, 0.25, 0.5)
QUARANTINE = 0.10
Part = Callable[[argparse.Namespace], Any]


def false_alarms(_: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for references in REFERENCES:
        for per_guard in GUARDS:
            generator = np.random.default_rng([1, references, per_guard])
            ks = [references] * N
            value = wealth_of_ranks(honest_ranks(generator, REPEATS, ks, per_guard), ks)
            for assumed in sorted({per_guard, N}):
                rule = HistoryRule(per_guard=assumed)
                alarms = int((value > np.array(rule.thresholds(ks))).any(1).sum())
                rows.append(
                    {
                        "references": references,
                        "per_guard": per_guard,
                        "assumed_per_guard": assumed,
                        "level": rule.level,
                        "alarms": alarms,
                        "repeats": REPEATS,
                        "rate": alarms / REPEATS,
                        "ci": clopper_pearson(alarms, REPEATS),
                        "thresholds": {t: rule.thresholds(ks)[t - 1] for t in (1, 5, 10, 20, 50)},
                    }
                )
            crossed = int((value > 20).any(1).sum())
            rows[-1]["crossed_20"] = {"rate": crossed / REPEATS, "ci": clopper_pearson(crossed, REPEATS)}
    return rows


def mixed(_: argparse.Namespace) -> list[dict[str, Any]]:
    """Histories in which K changes, once or all the time; `alone` by the thresholds of the smallest of their K alone."""
    rule, rows = HistoryRule(), []
    for first, then, after in MIXED:
        ks = [first] * after + [then] * (N - after) if after else [first, then] * (N // 2)
        bound = np.array([rule.thresholds(ks[: t + 1])[t] for t in range(N)])
        generator = np.random.default_rng([4, first, then, after])
        values = {"shared": wealth_of_ranks(honest_ranks(generator, REPEATS, ks, N), ks)}
        alone = int((values["shared"] > np.array(rule.thresholds([min(ks)]))).any(1).sum())
        if after:
            fresh = [honest_ranks(generator, REPEATS, part, N) for part in (ks[:after], ks[after:])]
            values["fresh"] = wealth_of_ranks(np.concatenate(fresh, axis=1), ks)
        alarms = {name: int((value > bound).any(1).sum()) for name, value in values.items()}
        scores = generator.standard_normal((REPEATS_MIXED, N)) + 1.0
        among = generator.standard_normal((REPEATS_MIXED, max(ks)))
        shifted = np.array([(among[:, :k] >= scores[:, t, None]).sum(1) for t, k in enumerate(ks)]).T
        rows.append(
            {
                "first": first,
                "then": then,
                "after": after,
                "repeats": REPEATS,
                **{
                    name: {"alarms": n, "rate": n / REPEATS, "ci": clopper_pearson(n, REPEATS)}
                    for name, n in (alarms | {"alone": alone}).items()
                },
                "caught": float((wealth_of_ranks(shifted, ks) > bound).any(1).mean()),
            }
        )
    return rows


def later(_: argparse.Namespace) -> list[dict[str, Any]]:
    """Alarms among submissions 51 to 100 of contributors without one before, who have always the newest 50 looked at."""
    rows = []
    for references in REFERENCES:
        rule = HistoryRule()
        ranks = honest_ranks(np.random.default_rng([2, references]), REPEATS_LATER * 2, [references] * 2 * N, N)
        bound = np.array(rule.thresholds([references]))
        quiet = ranks[~(wealth_of_ranks(ranks[:, :N], [references] * N) > bound).any(1)]
        alarms = 0
        for row in quiet:
            history = [Judged((1 + int(rank)) / (references + 1), references) for rank in row]
            alarms += any(judge_history(history[: N + 1 + t], rule).alarm for t in range(N))
        rows.append(
            {
                "references": references,
                "alarms": alarms,
                "repeats": len(quiet),
                "rate": alarms / len(quiet),
                "ci": clopper_pearson(alarms, len(quiet)),
            }
        )
    return rows


def shifted_ranks(
    generator: np.random.Generator,
    references: int,
    per_guard: int,
    shift: float,
    *,
    honest_first: int = 0,
    persistent: float = 0.0,
) -> Ranks:
    """As `honest_ranks`, of normal scores of which those after `honest_first` are `shift` higher. persistent: share of the
    variance of an honest contributor's scores that is the same in all of them."""
    out = np.empty((REPEATS_POWER, N), dtype=np.int32)
    moved = np.where(np.arange(N) < honest_first, 0.0, shift)
    own = np.sqrt(persistent) * generator.standard_normal((REPEATS_POWER, 1))
    scores = own + np.sqrt(1 - persistent) * generator.standard_normal((REPEATS_POWER, N)) + moved
    for first in range(0, N, per_guard):
        # Rows one after the other: K x 50 comparisons of all of them at once would not fit.
        for row in range(REPEATS_POWER):
            among = np.sort(generator.standard_normal(references))
            part = slice(first, first + per_guard)
            out[row, part] = references - np.searchsorted(among, scores[row, part])
    return out


def power(_: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for references in REFERENCES:
        for per_guard in GUARDS:
            cases: list[dict[str, Any]] = [{"shift": shift} for shift in SHIFTS]
            cases += [{"shift": shift, "honest_first": 10} for shift in SHIFTS[1:]]
            cases += [{"shift": 0.0, "persistent": share} for share in PERSISTENT]
            for number, case in enumerate(cases):
                generator = np.random.default_rng([3, references, per_guard, number])
                ranks = shifted_ranks(generator, references, per_guard, **case)
                rows.append(
                    {"references": references, "per_guard": per_guard, **case} | _caught(ranks, references, case)
                )
    return rows


def _caught(ranks: Ranks, references: int, case: dict[str, Any]) -> dict[str, Any]:
    begins = case.get("honest_first", 0)
    bound = np.array(HistoryRule().thresholds([references]))
    alarm = wealth_of_ranks(ranks, [references] * N) > bound
    alarm[:, :begins] = False
    ever = alarm.any(1)
    when = np.where(ever, alarm.argmax(1), N)
    passes = (1 + ranks) / (references + 1) > QUARANTINE + 1e-12
    before = passes & (np.arange(N) < when[:, None]) & (np.arange(N) >= begins)
    hits = int(ever.sum())
    return {
        "repeats": len(ranks),
        "within": {k: float((when < begins + k).mean()) for k in (5, 10, 20, 40)},
        "within_all": hits / len(ranks),
        "ci": clopper_pearson(hits, len(ranks)),
        "passed_gate_each": float(passes[:, begins:].mean()),
        "accepted_without_history": float(passes[:, begins:].sum(1).mean()),
        "accepted_before_alarm": float(before.sum(1).mean()),
    }


def drift(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    return [
        root_drift.measure(
            arguments.bases, arguments.releases, arguments.chains, detectors=name, architecture=arguments.architecture
        )
        for name in arguments.detectors.split(",")
    ]


PARTS: dict[str, Part] = {
    "false-alarms": false_alarms,
    "mixed": mixed,
    "later": later,
    "power": power,
    "root-drift": drift,
}


def page(document: dict[str, Any]) -> str:
    lines = [
        "# Histories of contributors",
        "",
        f"`python -m benchmarks.histories`, on {document['hardware']}. Simulated scores, not models, but for the last part: what is "
        "shown is what order statistics do, exactly but for the number of repeats; what real attackers' scores look like, it does "
        f"not show. Default rule: level 5 % over {N} submissions, all assumed to share their references. 95 % Clopper-Pearson intervals.",
        "",
    ]
    if rows := document.get("false-alarms"):
        lines += [
            f"## False alarms over {N} honest submissions ({REPEATS:,} repeats each)",
            "",
            "| K | submissions that share references | assumed | alarm in 50 | threshold after 1 / 5 / 10 / 20 / 50 | ever above 20 = 1/level |",
            "|---|---|---|---|---|---|",
            *(
                f"| {row['references']} | {row['per_guard']} | {row['assumed_per_guard']} | {_rate(row)} | "
                f"{' / '.join(f'{t:.3g}' for t in row['thresholds'].values())} | "
                f"{_rate(row['crossed_20']) if 'crossed_20' in row else ''} |"
                for row in rows
            ),
            "",
            "The last column is what Ville's bound would allow 5 % of, were the p-values independent.",
            "",
        ]
    if rows := document.get("mixed"):
        lines += _mixed_table(rows)
    if rows := document.get("later"):
        told = "; ".join(f"K = {row['references']}: {_rate(row)} of {row['repeats']}" for row in rows)
        lines += [
            "Submissions 51 to 100 of honest contributors without an alarm until then, the newest 50 looked at each time, one set "
            f"of references for each 50: {told}.",
            "",
        ]
    if rows := document.get("power"):
        lines += _power_table(rows)
    for found in document.get("root-drift", ()):
        lines += _drift_table(found)
    return "\n".join(lines)


def _mixed_table(rows: list[dict[str, Any]]) -> list[str]:
    return [
        f"## False alarms where K changes ({REPEATS:,} repeats each)",
        "",
        "*Shared*: the fewer references are among the more. *Fresh*: all are drawn anew when K changes. *Smallest K alone*: what the "
        f"thresholds of a history of the smallest K only would give, with shared references. *Caught*: of {REPEATS_MIXED:,} poisoners "
        "whose scores are +1 from the first submission on, by the 50th, with shared references.",
        "",
        "| K | shared | fresh | smallest K alone | caught |",
        "|---|---|---|---|---|",
        *(
            f"| {_change(row)} | {_rate(row['shared'])} | {_rate(row['fresh']) if 'fresh' in row else ''} | {_rate(row['alone'])} | "
            f"{100 * row['caught']:.0f} % |"
            for row in rows
        ),
        "",
    ]


def _change(row: dict[str, Any]) -> str:
    if not row["after"]:
        return f"{row['first']} and {row['then']} in turns"
    return f"{row['first']}, after {row['after']} {row['then']}"


def _power_table(rows: list[dict[str, Any]]) -> list[str]:
    def kind(row: dict[str, Any]) -> str:
        if "persistent" in row:
            return f"honest, {100 * row['persistent']:.0f} % of the variance the contributor's own"
        return f"+{row['shift']:g}" + (f" after {row['honest_first']} honest" if "honest_first" in row else "")

    return [
        f"## Slow poisoners ({REPEATS_POWER:,} repeats each, thresholds of the default rule)",
        "",
        "Shift in standard deviations of honest scores. *Accepted*: how many of the shifted submissions pass the gate itself "
        f"(p > {QUARANTINE:g}) without the history check, and before its first alarm.",
        "",
        "| K | share references | scores | alarm within 5 / 10 / 20 / 40 shifted ones | within 50 submissions | accepted without / before alarm |",
        "|---|---|---|---|---|---|",
        *(
            f"| {row['references']} | {row['per_guard']} | {kind(row)} | "
            f"{' / '.join(f'{100 * share:.0f}' for share in row['within'].values())} % | "
            f"{100 * row['within_all']:.1f} % [{100 * row['ci'][0]:.1f}, {100 * row['ci'][1]:.1f}] | "
            f"{row['accepted_without_history']:.1f} / {row['accepted_before_alarm']:.1f} |"
            for row in rows
        ),
        "",
        "The rows of honest contributors with scores of their own are no false alarms of the method's assumption but of the world: who always "
        "has the same data is not a new draw of the honest population each time. This is why the check never rejects.",
        "",
    ]


def _drift_table(found: dict[str, Any]) -> list[str]:
    held = found["held"]
    return [
        f"## Root drift: {found['architecture']} on digits, detectors `{found['detectors']}`",
        "",
        f"`python -m benchmarks.histories --parts root-drift --architecture {found['architecture']} --detectors {found['detectors']} "
        f"--bases {found['bases']} --chains {found['chains'] // found['bases']}`: {found['chains']} honest chains over {found['bases']} bases, K = 19. Would-be releases held at p <= {found['level']:g}, by merges since "
        "the root. Chains of one base share references, and the distances of one chain are not independent.",
        "",
        "| references | " + " | ".join(str(n + 1) for n in range(len(held["single"]))) + " |",
        "|---|" + "---|" * len(held["single"]),
        *(
            f"| {kind} | " + " | ".join(f"{cell['held']} of {cell['n']}" for cell in cells) + " |"
            for kind, cells in held.items()
        ),
        "",
    ]


def _rate(row: dict[str, Any]) -> str:
    low, high = row["ci"]
    return f"{100 * row['rate']:.2f} % [{100 * low:.2f}, {100 * high:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="with commas: " + ", ".join(PARTS))
    parser.add_argument("--bases", type=int, default=4, help="of the root drift: first releases")
    parser.add_argument("--chains", type=int, default=5, help="honest chains each")
    parser.add_argument("--releases", type=int, default=10)
    parser.add_argument("--architecture", default="mlp")
    parser.add_argument("--detectors", default="paper", help="presets with commas: paper, standard")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    arguments = parser.parse_args()
    stored = arguments.out / "histories.json"
    document = json.loads(stored.read_text()) if stored.exists() else {}
    document |= {"command": "python -m benchmarks.histories", "hardware": hardware()}
    for name in arguments.parts.split(","):
        found = PARTS[name](arguments)
        if name == "root-drift":  # one table for each architecture and choice of detectors
            done = {(one["architecture"], one["detectors"]) for one in found}
            others = [o for o in document.get(name, []) if (o["architecture"], o["detectors"]) not in done]
            found = [*others, *found]
        document[name] = found
        print(f"{name} done", flush=True)
        arguments.out.mkdir(parents=True, exist_ok=True)
        stored.write_text(json.dumps(document, indent=1) + "\n")
        # Keys of a dictionary become text in the file, and the page is made of what the file holds.
        (arguments.out / "histories.md").write_text(page(json.loads(stored.read_text())))


if __name__ == "__main__":
    main()
