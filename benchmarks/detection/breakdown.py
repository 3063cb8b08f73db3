"""What pooled figures do not show: how bases differ, and what is left of an attack in the release that it is merged into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.detection.judge import LEVELS, PRIMARY, Group, Judged, figures
from benchmarks.detection.metrics import Rate

ByFamily = Mapping[str, Sequence[Group]]
"""A family's attacked models and the honest ones, judged by the gate that was chosen without it, one group a base."""


def by_base(groups: ByFamily) -> list[str]:
    """Lines of a section: hits of n at each level, by family and base."""
    bases = list(dict.fromkeys(group.base for mine in groups.values() for group in mine))
    lines = [
        "## Base by base",
        "",
        "Models of one base share M and its calibration references, and at 1 % the cut is the largest of 99 scores: bases differ by more than the intervals of "
        "pooled figures say, which are of further models on these bases. Found at 5 %, at 1 %.",
        "",
        "| family | " + " | ".join(f"base {base}" for base in bases) + " |",
        "|---" * (1 + len(bases)) + "|",
    ]
    for family, mine in groups.items():
        lines.append(
            f"| {family} | " + " | ".join(_found([one for one in mine if one.base == b]) for b in bases) + " |"
        )
    of_base = {base: [one for mine in groups.values() for one in mine if one.base == base] for base in bases}
    lines.append("| all | " + " | ".join(_found(of_base[base]) for base in bases) + " |")
    rejected = [figures(of_base[base], PRIMARY, intervals=False).fpr for base in bases]
    lines.append("| honest, rejected | " + " | ".join(map(_rates, rejected)) + " |")
    return lines


def after_merge(groups: ByFamily) -> list[str]:
    """Lines of a section: how many of the attacks that take in the returned model still do in the merged one, and how many of these
    the gate finds. Nothing where that was not measured."""
    judged = {
        family: [one for group in mine for one in group.attacked if one.model.belongs(PRIMARY)]
        for family, mine in groups.items()
    }
    if all(one.model.merged_effective is None for mine in judged.values() for one in mine):
        return []
    lines = [
        "## After the merge",
        "",
        "An attack counts by the success of the model that is returned (`model-replacement`: of the one its step is scaled up from, which is what it aims at); utility is judged "
        "of the average of the returned model and the release, which is what would be published. So one merge halves the attacker's step, unless he overshoots. Here: how many "
        "of the attacks are still effective, by the same measure, in that release.",
        "",
        "| family | effective | after one merge | of these found at 5 %, at 1 % |",
        "|---|---|---|---|",
    ]
    everyone = [one for mine in judged.values() for one in mine]
    for family, mine in [*judged.items(), ("all", everyone)]:
        left = [one for one in mine if one.model.merged_effective]
        lines.append(f"| {family} | {len(mine)} | {len(left)} | {_rates(_rejected(left))} |")
    return lines


def placebos(groups: ByFamily) -> list[str]:
    """Lines of a section: honest models of the attackers' recipes, and how many of them the gate rejects. Nothing where there are none."""
    judged = {
        family: [one for group in mine for one in group.attacked if one.model.passes_utility]
        for family, mine in groups.items()
    }
    everyone = [one for mine in judged.values() for one in mine]
    if not everyone:
        return []
    lines = [
        "## Placebos",
        "",
        "Honest models trained as a family's attackers train: their data before the attack, their rate, epochs and augmentation. What the gate rejects of these that pass "
        "utility, it rejects for the recipe. Honest contributors may train so, but seldom do.",
        "",
        "| recipe of | placebos | rejected at 5 %, at 1 % |",
        "|---|---|---|",
    ]
    for family, mine in [*judged.items(), ("all", everyone)]:
        lines.append(f"| {family} | {len(mine)} | {_rates(_rejected(mine))} |")
    return lines


def _rejected(models: Sequence[Judged]) -> dict[float, Rate]:
    return {level: Rate(sum(one.p <= level + 1e-12 for one in models), len(models)) for level in LEVELS}


def _found(groups: Sequence[Group]) -> str:
    return _rates(figures(groups, PRIMARY, intervals=False).tpr)


def _rates(found: Mapping[float, Rate]) -> str:
    return ", ".join(f"{one.hits}/{one.n}" for one in found.values() if one.n) or "-"
