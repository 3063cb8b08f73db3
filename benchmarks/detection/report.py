"""The benchmark's result: `docs/results/detection.json`, one row a detector, family and population, and a page that reads it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.detection.config import Config, Family
from benchmarks.detection.gates import Choice, Chooser, alone, by_equation_4, deciding
from benchmarks.detection.judge import POPULATIONS, Base, Figures, Fit, Group, figures, judge
from benchmarks.detection.metrics import Rate
from benchmarks.detection.scores import BANK, without
from benchmarks.detection.sheets import Sheet
from owner.choices import PRESETS, STANDARD
from owner.detectors import ESCALATION
from owner.detectors.combination import detector_of

Row = dict[str, Any]
COMPARED = {"maximum-margin": "maximum margin", "trigger-inversion": "trigger inversion alone"}
"""What the escalation tier's detectors are called beside the gate."""
GATE = "gate"
PRESET_GATE = f"gate of the preset `{STANDARD}`"
"""As an owner gets it by default, without the probes of the family it is judged on; the preset was chosen with every family at hand."""
KIN_GATE = "gate, related families left out too"
WHOLE_GATE = "gate or utility"
"""Models that fail utility count as rejected, honest ones too."""
PAPERS_RULE = "the paper's rule (Eq. 4)"
BATCHNORM_AND_LIPSCHITZ = ("batchnorm-drift", "channel-lipschitz")
"""Compared as one: statistics that a backdoor shifts, and channels that it makes steep."""


@dataclass(frozen=True)
class Table:
    """Judged bases, and what the paper's rule needs of each: the measures of M_f."""

    bases: tuple[Base, ...]
    owners: Mapping[int, Mapping[str, float]]


def table(sheets: Iterable[Sheet]) -> Table:
    known = list(sheets)
    owners = {sheet.base: found for sheet in known if (found := sheet.owner()) is not None}
    return Table(tuple(sheet.judged() for sheet in known), owners)


def rows(config: Config, development: Table, final: Table) -> tuple[list[Row], dict[str, Choice]]:
    """Every figure, and the combination chosen for each left-out family ("" for none left out)."""
    names = sorted({name for base in final.bases for one in base.calibration for name in one})
    found: list[Row] = []
    for name in sorted({detector_of(name) for name in names if "|" not in name}):
        bases = _where_scored(final.bases, name) if name in ESCALATION else final.bases
        called = COMPARED.get(name, name)
        for family in config.families:
            found += _rows(config, called, family.name, [_group(b, alone(name), family) for b in bases], held_out=True)
        everyone = [judge(base, alone(name), base.attacked) for base in bases]
        found += _rows(config, called, "all", everyone, held_out=True)
    found += _batchnorm_and_lipschitz(config, final.bases, names)
    chooser = Chooser(development.bases, deciding(names))
    chosen = {"": chooser.choose()}
    pooled: dict[str, list[Group]] = {}
    for family in config.families:
        bank = without(family.probes)
        choice = chosen[family.name] = chooser.choose(leave_out={family.name}, bank=bank)
        gates = {
            GATE: choice,
            "gate, its probes kept": dataclasses.replace(choice, bank=BANK),
            PRESET_GATE: Choice("detectors", deciding(PRESETS[STANDARD]), True, bank),
            KIN_GATE: chooser.choose(leave_out=config.kin(family), bank=bank),
        }
        for name, one in gates.items():
            groups = [_group(base, one.fit, family) for base in final.bases]
            pooled.setdefault(name, []).extend(groups)
            found += _rows(config, name, family.name, groups, held_out=name != PRESET_GATE)
    for name, groups in pooled.items():
        found += _rows(config, name, "all", groups, held_out=name != PRESET_GATE)
    found += _rows(config, WHOLE_GATE, "all", pooled[GATE], held_out=True, whole_gate=True)
    final_choice = [judge(base, chosen[""].fit, base.attacked) for base in final.bases]
    found += _rows(config, GATE, "all", final_choice, held_out=False)
    found += _equation_4(config, final)
    return found, chosen


def _batchnorm_and_lipschitz(config: Config, bases: Sequence[Base], names: Sequence[str]) -> list[Row]:
    """Of the two together, where both were measured."""
    if not set(BATCHNORM_AND_LIPSCHITZ) <= {detector_of(name) for name in names}:
        return []
    fit, called, found = Choice("detectors", BATCHNORM_AND_LIPSCHITZ).fit, "BatchNorm and Lipschitz", list[Row]()
    for family in config.families:
        found += _rows(config, called, family.name, [_group(base, fit, family) for base in bases], held_out=True)
    return found + _rows(config, called, "all", [judge(b, fit, b.attacked) for b in bases], held_out=True)


def _where_scored(bases: Iterable[Base], name: str) -> tuple[Base, ...]:
    """The models, and the references, that a slow detector was run on; n and the levels that resolve follow from them."""
    scored = (
        Base(
            base.number,
            [one for one in base.fitting if name in one],
            [one for one in base.calibration if name in one],
            [one for one in base.honest if name in one.measures],
            [one for one in base.attacked if name in one.measures],
        )
        for base in bases
    )
    return tuple(base for base in scored if base.calibration)


@dataclass(frozen=True)
class Stratum:
    """useless: how many utility turns away. five, one: how many of the others the gate rejects, at 5 and 1 %."""

    kind: str
    useless: Rate
    five: Rate
    one: Rate


def honest_strata(final: Table, fit: Fit) -> list[Stratum]:
    """What becomes of honest contributors, by kind."""
    groups = [judge(base, fit, ()) for base in final.bases]
    kinds = sorted({one.model.stratum for group in groups for one in group.honest})
    found = []
    for kind in kinds:
        mine = [one for group in groups for one in group.honest if one.model.stratum == kind]
        ps = [one.p for one in mine if one.model.passes_utility]
        five, one_percent = (Rate(sum(p <= level + 1e-12 for p in ps), len(ps)) for level in (0.05, 0.01))
        found.append(Stratum(kind, Rate(len(mine) - len(ps), len(mine)), five, one_percent))
    return found


def placebo_groups(config: Config, final: Table, chosen: Mapping[str, Choice]) -> dict[str, list[Group]]:
    """Placebos of each family's recipe, judged as the family is."""
    return {
        family.name: [
            judge(base, chosen[family.name].fit, [one for one in base.placebos if one.family == family.name])
            for base in final.bases
        ]
        for family in config.families
    }


def by_family(config: Config, final: Table, chosen: Mapping[str, Choice]) -> dict[str, list[Group]]:
    """Each family's models on every base, judged by the gate that was chosen without it."""
    return {
        family.name: [_group(base, chosen[family.name].fit, family) for base in final.bases]
        for family in config.families
    }


def _group(base: Base, fit: Fit, family: Family) -> Group:
    return judge(base, fit, [model for model in base.attacked if model.family == family.name])


def _rows(
    config: Config, detector: str, family: str, groups: Sequence[Group], *, held_out: bool, whole_gate: bool = False
) -> list[Row]:
    return [
        _row(config, detector, family, population, held_out, figures(groups, population, whole_gate=whole_gate))
        for population in POPULATIONS
    ]


def _row(config: Config, detector: str, family: str, population: str, held_out: bool, found: Figures) -> Row:
    return {
        "architecture": config.architecture,
        "dataset": config.dataset,
        "detector": detector,
        "family": family,
        "population": population,
        "held_out": held_out,
        **found.to_json(),
    }


def _equation_4(config: Config, final: Table) -> list[Row]:
    """The paper's rule as it stands: a decision without a level, so its rates stand where those at 5 % do."""
    found = []
    known = [base for base in final.bases if base.number in final.owners]
    for population in POPULATIONS:
        peers = [[m for m in base.honest if m.passes_utility or population != POPULATIONS[0]] for base in known]
        honest = [by_equation_4(base, final.owners[base.number], mine) for base, mine in zip(known, peers, strict=True)]
        attacked = [
            by_equation_4(base, final.owners[base.number], [m for m in base.attacked if m.belongs(population)])
            for base in known
        ]
        false, true = (Rate(sum(r.hits for r in side), sum(r.n for r in side)) for side in (honest, attacked))
        found.append(
            {
                "architecture": config.architecture,
                "dataset": config.dataset,
                "detector": PAPERS_RULE,
                "family": "all",
                "population": population,
                "held_out": True,
                "n_honest": false.n,
                "n_attacked": true.n,
                "auroc": None,
                "tpr_at_5": None,
                "tpr_at_1": None,
                "realised_fpr_at_5": None,
                "realised_fpr_at_1": None,
                "tpr": true.value,
                "realised_fpr": false.value,
                "ci": {"tpr": list(true.interval), "realised_fpr": list(false.interval)},
            }
        )
    return found
