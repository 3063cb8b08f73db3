"""What a gate is worth on a base, and against a family, that it was not chosen on: a forecast from the development bases alone.

    python -m benchmarks.detection.across badnet-cnn-mnist

For each development base and each family in turn, a gate is chosen on the other bases without that family (and without the probes that come near its
trigger), and judged on this base against this family; of a single base there is nothing to choose on, and the other gates alone are judged. Writes docs/results/detection-across-CONFIG.md. It forecasts what the final bases
will show and does not take their place: detectors were designed, and their number was cut, with these bases in sight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.detection.config import Config, Family
from benchmarks.detection.development import arguments, development, told
from benchmarks.detection.gates import Choice, Chooser, deciding
from benchmarks.detection.judge import PRIMARY, Base, Figures, Group, figures, judge
from benchmarks.detection.page import percent_of
from benchmarks.detection.scores import without
from benchmarks.records import hardware
from owner.choices import PRESETS, STANDARD

Gate = Callable[[int, Family], Choice]
"""The gate for the base of this place in the list, and this family."""


def main() -> None:
    given = arguments(__doc__)
    config = Config.load(given.config)
    bases = development(config, given.out)
    detectors = deciding(bases[0].calibration[0])
    gates: dict[str, Gate] = {}
    if len(bases) > 1:
        choosers = [Chooser([b for b in bases if b is not base], detectors) for base in bases]
        gates["chosen on the other bases, without the family and its probes"] = lambda place, family: choosers[
            place
        ].choose(leave_out={family.name}, bank=without(family.probes))
    gates |= {
        "of the preset `standard`, without the family's probes": lambda _, family: Choice(
            "detectors", deciding(PRESETS[STANDARD]), True, without(family.probes)
        ),
        "of all detectors, without the family's probes": lambda _, family: Choice(
            "detectors", detectors, True, without(family.probes)
        ),
    }
    models = sum(len(base.honest) + len(base.attacked) for base in bases)
    lines = [
        f"# Forecast of the gate: {config.architecture} on {config.dataset}",
        "",
        f"`python -m benchmarks.detection.across {given.config}`, on {hardware()}. Development base {', '.join(str(base.number) for base in bases)}, {models} models, "
        "all of which were in sight when detectors were designed and their number was cut; the final bases were not looked at. Effective attacks that pass utility; levels are the gates' own. "
        "The preset was chosen with all bases of MNIST and all families at hand: there its rows say how well it fits them.",
    ]
    for title, gate in gates.items():
        groups = {
            family: [_group(base, gate(i, family), family) for i, base in enumerate(bases)]
            for family in config.families
        }
        lines += ["", f"## Gate {title}", "", *_table(groups)]
    path = given.out / f"detection-across-{config.name}.md"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    print(f"written: {path}")


def _group(base: Base, choice: Choice, family: Family) -> Group:
    return judge(base, choice.fit, [model for model in base.attacked if model.family == family.name])


def _table(groups: dict[Family, list[Group]]) -> list[str]:
    found = [
        "| family | n honest / attacked | AUROC | TPR at 5 % | at 1 % | realised FPR at 5 % | at 1 % |",
        "|---|---|---|---|---|---|---|",
    ]
    for family, mine in groups.items():
        found.append(_row(family.name, mine))
    return [*found, _row("all", [group for mine in groups.values() for group in mine])]


def _row(name: str, groups: Sequence[Group]) -> str:
    shown: Figures = figures(groups, PRIMARY, intervals=False)
    rates = (percent_of(one.value, one.interval) for one in (*shown.tpr.values(), *shown.fpr.values()))
    return f"| {name} | {shown.n_honest} / {shown.n_attacked} | {shown.auroc:.3f} | {' | '.join(rates)} |"


if __name__ == "__main__":
    told(main)
