"""The report a person reads: `docs/results/detection-CONFIG.md`, from the rows and the judged models, with its plots."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from benchmarks.detection.config import Config
from benchmarks.detection.gates import Choice
from benchmarks.detection.judge import PRIMARY, Group
from benchmarks.detection.metrics import Rate
from benchmarks.detection.report import GATE, KIN_GATE, PRESET_GATE, WHOLE_GATE, Stratum

mpl.use("Agg")
from matplotlib import pyplot as plt

Row = Mapping[str, Any]
COLOURS = {"honest": "#3e63dd", "effective": "#d6409f", "failed": "#8b8d98"}


def page(
    config: Config,
    rows: Sequence[Row],
    chosen: Mapping[str, Choice],
    strata: Sequence[Stratum],
    *,
    judged: Sequence[int],
    chosen_on: Sequence[int],
    command: str,
    hardware: str,
    plots: Sequence[tuple[str, str]],
    breakdown: Sequence[str] = (),
) -> str:
    """Markdown. breakdown: further lines, after the tables of the gate. judged: final bases. chosen_on: development bases. plots: title and file name of each."""
    lines = [
        f"# Detection: {config.architecture} on {config.dataset}",
        "",
        f"`{command}`, on {hardware}. Final base {_listed(judged)}; choices were made on base {_listed(chosen_on)} alone, "
        "for each family without its models, and without the probes that come near its trigger. Rates over models. A gate's TPR and realised "
        "false-positive rate are at its own nominal level, from conformal p-values over the calibration references of the same base, all of which pass utility, "
        "as the honest models do that they are compared with; *oracle* is "
        "the TPR of the cut that leaves 5 or 1 % of these honest models out, which no gate can know. Intervals are Clopper-Pearson's, the AUROC's "
        "a bootstrap over models. Figures of fewer than 20 attacked models are not given. Effective: of backdoors, the mark wins at least half of the held-out images that the release does not take the "
        "attacker's way by itself, those that the attacked model takes so without the mark not counted; of flips, 20 points of the class's recall (`common/effectiveness.py`); both of the model as it is returned, before any merge, but of `model-replacement`, which returns an overshot one, of the "
        "model it aims at. "
        "*Left out* is of the automatic choice of detectors: they were written with all families in sight.",
        "",
        *((config.remark, "") if config.remark else ()),
        "## Effective attacks that pass utility",
        "",
        *table_of(
            _gates_first(row for row in rows if row["population"] == PRIMARY and row["family"] == "all"),
            _detector,
        ),
        "",
        "## The gate by family, the family left out of every choice, without its probes",
        "",
        *table_of(
            [r for r in rows if r["detector"] == GATE and r["held_out"] and r["population"] == PRIMARY],
            _family,
        ),
        "",
        "## The same, its probes kept",
        "",
        *table_of(
            [r for r in rows if r["detector"] == "gate, its probes kept" and r["population"] == PRIMARY],
            _family,
        ),
        "",
        "## The same, related families left out of the choice too",
        "",
        "Attacks carry each other's triggers. Here a family's gate was chosen without all families that share a kind of probe with it.",
        "",
        *table_of(
            [r for r in rows if r["detector"] == KIN_GATE and r["population"] == PRIMARY],
            _family,
        ),
        "",
        "## The preset as it ships, without the family's probes",
        "",
        *table_of(
            [r for r in rows if r["detector"] == PRESET_GATE and r["population"] == PRIMARY],
            _family,
        ),
        "",
        *breakdown,
        *([""] if breakdown else []),
        "## All effective attacks, and those that failed",
        "",
        *table_of(
            [
                r
                for r in rows
                if r["detector"] in {GATE, WHOLE_GATE} and r["family"] == "all" and r["population"] != PRIMARY
            ],
            lambda row: f"{_detector(row)}: {row['population']} attacks",
        ),
        "",
        "## Honest contributors by kind, under the gate",
        "",
        "| kind | utility turns away | of the others, the gate rejects at 5 % | at 1 % |",
        "|---|---|---|---|",
        *(f"| {s.kind} | {_rate(s.useless)} | {_rate(s.five)} | {_rate(s.one)} |" for s in strata),
        "",
        "## What was chosen",
        "",
        "| left out | given the size of the update | detectors |",
        "|---|---|---|",
        *(
            f"| {family or 'nothing'} | {'yes' if c.given_size else 'no'} | {', '.join(c.detectors)} |"
            for family, c in chosen.items()
        ),
    ]
    for title, name in plots:
        lines += ["", f"## {title}", "", f"![{title}]({name})"]
    return "\n".join(lines) + "\n"


def score_distributions(groups: Sequence[Group], path: Path) -> None:
    """Scores of honest, effective and failed models, base by base."""
    figure, axes = plt.subplots(len(groups), 1, figsize=(7, 2.2 * len(groups)), squeeze=False)
    for axis, group in zip(axes[:, 0], groups, strict=True):
        sides = {
            "honest": [one.score for one in group.honest],
            "effective": [one.score for one in group.attacked if one.model.effective],
            "failed": [one.score for one in group.attacked if not one.model.effective],
        }
        finite = [x for side in sides.values() for x in side if math.isfinite(x)]
        edges = np.linspace(min(finite), max(finite), 60) if finite else np.linspace(0, 1, 2)
        for name, values in sides.items():
            axis.hist(
                np.clip(values, edges[0], edges[-1]),
                bins=edges,
                alpha=0.55,
                color=COLOURS[name],
                label=f"{name} ({len(values)})",
            )
        axis.set_yscale("symlog")
        axis.legend(fontsize=8, frameon=False)
        base = group.honest[0].model.base if group.honest else "?"
        axis.set_title(f"base {base}", fontsize=9, loc="left")
    axes[-1, 0].set_xlabel("score of the gate")
    _save(figure, path)


def roc(groups: Sequence[Group], path: Path) -> None:
    """TPR over effective attacks against the nominal level, and the realised false-positive rate, on a logarithmic axis."""
    figure, axis = plt.subplots(figsize=(5.5, 4))
    levels = np.geomspace(1 / (max(g.references for g in groups) + 1), 1, 80)
    honest = np.array([one.p for group in groups for one in group.honest if one.model.passes_utility])
    for name, passing in (("effective", False), ("effective, passing utility", True)):
        ps = np.array(
            [
                one.p
                for g in groups
                for one in g.attacked
                if one.model.effective and (one.model.passes_utility or not passing)
            ]
        )
        if len(ps):
            axis.plot(levels, [(ps <= level + 1e-12).mean() for level in levels], label=f"TPR, {name} ({len(ps)})")
    axis.plot(
        levels,
        [(honest <= level + 1e-12).mean() for level in levels],
        color=COLOURS["honest"],
        label=f"realised FPR, passing utility ({len(honest)})",
    )
    axis.plot(levels, levels, color="#b9bbc6", linestyle=":", label="nominal")
    axis.set(xscale="log", xlabel="nominal level", ylim=(0, 1.02))
    axis.legend(fontsize=8, frameon=False)
    _save(figure, path)


def tpr_by_dose(groups: Sequence[Group], doses: Mapping[str, float], path: Path) -> None:
    """TPR at 5 % over effective attacks against the option `fraction`, by family; what it is a share of, each attack says itself."""
    figure, axis = plt.subplots(figsize=(6, 4))
    found: dict[str, dict[float, list[bool]]] = {}
    for one in (one for group in groups for one in group.attacked if one.model.effective):
        if one.model.name in doses and one.model.family:
            of_dose = found.setdefault(one.model.family, {}).setdefault(doses[one.model.name], [])
            of_dose.append(one.p <= 0.05 + 1e-12)
    for family, by_dose in sorted(found.items()):
        xs = sorted(by_dose)
        axis.plot(xs, [np.mean(by_dose[x]) for x in xs], marker="o", markersize=4, label=family)
    axis.set(xscale="log", xlabel="option `fraction` of the attack", ylabel="TPR at nominal 5 %", ylim=(-0.02, 1.02))
    axis.legend(fontsize=7, frameon=False, ncol=2)
    _save(figure, path)


def _detector(row: Row) -> str:
    whole = row["detector"] == GATE and not row["held_out"]
    return f"{row['detector']}, no family left out" if whole else str(row["detector"])


def _family(row: Row) -> str:
    return str(row["family"])


def _gates_first(rows: Iterable[Row]) -> list[Row]:
    """Then the paper's rule, then the detectors by AUROC."""

    def order(row: Row) -> tuple[bool, bool, float]:
        return not str(row["detector"]).startswith("gate"), row["auroc"] is not None, -(row["auroc"] or 0.0)

    return sorted(rows, key=order)


def table_of(rows: Sequence[Row], title: Callable[[Row], str]) -> list[str]:
    """Lines of a Markdown table, a line a row, called by `title`."""
    lines = [
        "| | n honest / attacked | AUROC | TPR at 5 % | at 1 % | realised FPR at 5 % | at 1 % | oracle TPR at 5 % | at 1 % |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "tpr" in row:
            true, false = (
                percent_of(row["tpr"], row["ci"]["tpr"]),
                percent_of(row["realised_fpr"], row["ci"]["realised_fpr"]),
            )
            lines.append(
                f"| {title(row)} | {row['n_honest']} / {row['n_attacked']} | - | {true} (no level) | - | {false} (no level) | - | - | - |"
            )
            continue
        ci = row["ci"]
        cells = [
            f"{row['n_honest']} / {row['n_attacked']}",
            "-"
            if row["auroc"] is None
            else f"{row['auroc']:.3f}" + (f" ({ci['auroc'][0]:.3f}, {ci['auroc'][1]:.3f})" if ci["auroc"] else ""),
            *(
                percent_of(row[key], ci[key])
                for key in ("tpr_at_5", "tpr_at_1", "realised_fpr_at_5", "realised_fpr_at_1")
            ),
            *(percent_of(row[key], None) for key in ("oracle_tpr_at_5", "oracle_tpr_at_1")),
        ]
        lines.append(f"| {title(row)} | " + " | ".join(cells) + " |")
    return lines


def percent_of(value: float | None, interval: Sequence[float] | None) -> str:
    """ "not resolvable" where there is no value: too few models, or references."""
    if value is None:
        return "not resolvable"
    return f"{100 * value:.0f} %" + (f" ({100 * interval[0]:.0f}, {100 * interval[1]:.0f})" if interval else "")


def _rate(found: Rate) -> str:
    return f"{found.hits} of {found.n}, " + percent_of(found.value, found.interval)


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
