"""The calibrated gate beside the paper's rule: every verdict, totals over contributors' models, which detectors it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from owner.figures import number, percent
from owner.reproduce.paper import TITLES
from owner.reproduce.records import Record
from owner.reproduce.results import NOT_RUN, Results, shares, told
from owner.reproduce.settings import CALIBRATED, Settings
from owner.reproduce.steps import KINDS
from owner.reproduce.tables import Lines, table, title_of


def table_gate(results: Results, settings: Settings) -> Lines:
    """The calibrated gate, the paper's score ranked among its references, and Eq. 4 with its own M_f, on the same models."""
    rows = []
    for name in CALIBRATED:
        durations = dict(zip(("short", "long"), settings.durations(name), strict=True))
        for group, title in (("contribution", "contributor's images"), ("whole", "whole training set")):
            for kind in KINDS:
                for duration, epochs in durations.items():
                    verdicts = results.verdicts_by_seed(name, f"{group}-{kind}-{duration}", step="gate")
                    if not verdicts and group == "whole":
                        continue
                    prefix = "contribution" if group == "contribution" else "part"
                    success = results.measured(name, f"{prefix}-{kind}-{duration}", "held_out_success")
                    rows.append(
                        [
                            TITLES[name],
                            title,
                            f"{title_of(kind)} {epochs}",
                            shares(success) if success or kind != "honest" else "-",
                            _each({seed: v["decision"] for seed, v in verdicts.items()}),
                            _each({seed: number(v["p_value"]) for seed, v in verdicts.items()}),
                            _each({seed: " ".join(v["codes"]) or "-" for seed, v in verdicts.items()}),
                            _each({seed: number(v["score_p_value"]) for seed, v in verdicts.items()}),
                            told([v["detected"] for v in verdicts.values() if v["detected"] is not None]),
                        ]
                    )
    return table(
        [
            "architecture",
            "fine-tuned on",
            "model",
            "held-out success %",
            "gate",
            "p",
            "reasons",
            "p of the paper's score alone",
            "detected by Eq. 4",
        ],
        rows,
    )


def vetted_whole(results: Results) -> bool:
    """Whether a gate has vetted models that were fine-tuned on the whole training set: those of Fig. 6, where they were there."""
    gates = (record for name in CALIBRATED for record in results.of(name, "gate").values())
    return any(case.startswith("whole-") for record in gates for case in record["verdicts"])


def gate_notes(results: Results) -> Lines:
    """Which detectors it was, K, its resolution and what it bounds, and totals over contributors' models; gates of several versions
    are told apart. Nothing where none was fitted."""
    versions: dict[str, dict[str, Record]] = {}
    resolutions: dict[str, None] = {}
    for name in CALIBRATED:
        for seed, record in results.of(name, "gate").items():
            versions.setdefault(_detectors(record), {})[f"{TITLES[name]} seed {seed}"] = record
            resolutions[f"- {_resolution(record)}"] = None
    lines = list(resolutions)
    for detectors, records in versions.items():
        lines += [
            f"- Detectors of {', '.join(records)}: {detectors}.",
            f"  - {_total(list(records.values()), ('flip', 'pattern'), 'attacked')}",
            f"  - {_total(list(records.values()), ('honest',), 'honest')}",
        ]
    return lines


def _detectors(record: Record) -> str:
    return (
        ", ".join(record["detectors"])
        if "detectors" in record
        else "those of an earlier version, which did not record them"
    )


def _resolution(record: Record) -> str:
    """K, the levels, and what K references can tell."""
    first, levels = next(iter(record["verdicts"].values())), record["options"]
    return (
        f"K = {record['references']} references a gate; p of at most {number(levels['reject_level'])} is rejected, of at most "
        f"{number(levels['quarantine_level'])} left to a person. The smallest p-value is {number(first['resolution'])}, and the "
        f"false-positive rate realised by one calibration is at most {percent(first['fpr_bound_95'])} (with 95 % confidence)."
    )


def _total(records: Sequence[Record], kinds: Sequence[str], title: str) -> str:
    found = [
        (v, record["options"]["reject_level"])
        for record in records
        for case, v in record["verdicts"].items()
        if case.startswith(tuple(f"contribution-{kind}" for kind in kinds))
    ]
    decided = [v["decision"] for v, _ in found]
    ranked = sum(v["score_p_value"] <= level for v, level in found if v["score_p_value"] is not None)
    return (
        f"Of {len(found)} {title} models of contributors the gate rejects {decided.count('rejected')} and leaves "
        f"{decided.count('quarantined')} to a person, the paper's score among the same references rejects {ranked}, Eq. 4 "
        f"{sum(bool(v['detected']) for v, _ in found)}."
    )


def _each(texts: Mapping[int, str]) -> str:
    """One seed's as it is, several with the seeds they are of."""
    if len(texts) < 2:
        return next(iter(texts.values()), NOT_RUN)
    return "; ".join(f"seed {seed}: {text}" for seed, text in texts.items())
