"""All configurations beside each other: `docs/results/detection.md`, from the rows of `detection.json`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from benchmarks.detection.config import CONFIGS, Config
from benchmarks.detection.judge import PRIMARY
from benchmarks.detection.page import Row, percent_of, table_of
from benchmarks.detection.report import GATE, PAPERS_RULE, PRESET_GATE, WHOLE_GATE

SHOWN = ((GATE, PRIMARY), (PRESET_GATE, PRIMARY), (PAPERS_RULE, PRIMARY), (WHOLE_GATE, "effective"))
"""Detector, and of which attacks."""


def overview(rows: Sequence[Row], configs: Iterable[Config]) -> str:
    """Markdown. configs: those that the rows may be of, and that are named where no row is."""
    pages = {(one.architecture, one.dataset): one.name for one in configs}
    held_out = [r for r in rows if r["held_out"] or r["detector"] == PRESET_GATE]
    judged = list(dict.fromkeys((r["architecture"], r["dataset"]) for r in held_out))
    shown = [r for r in held_out if r["family"] == "all" and (r["detector"], r["population"]) in SHOWN]
    shown.sort(
        key=lambda r: (judged.index((r["architecture"], r["dataset"])), SHOWN.index((r["detector"], r["population"])))
    )
    lines = [
        "# Detection",
        "",
        "On final bases, effective attacks that pass utility: the gate with each family left out of every choice, and the probes near its trigger out of the "
        "bank (`gate`); as an owner gets it by default, without those probes; and the paper's rule. Then all effective attacks, with models that fail utility "
        "counted as rejected, honest ones too. Levels are the gates' own. What each figure is of, every detector by itself, and how models were made stand on "
        "the page of each configuration.",
        "",
        *table_of(shown, _of(pages)),
        "",
        "## The gate by family: TPR at 5 and 1 %",
        "",
        "| family | " + " | ".join(f"{architecture} on {dataset}" for architecture, dataset in judged) + " |",
        "|---" * (1 + len(judged)) + "|",
    ]
    gate = {
        (r["architecture"], r["dataset"], r["family"]): r
        for r in held_out
        if (r["detector"], r["population"]) == (GATE, PRIMARY)
    }
    for family in dict.fromkeys(family for _, _, family in gate):
        lines.append(f"| {family} | " + " | ".join(_rates(gate.get((*one, family))) for one in judged) + " |")
    for one, name in pages.items():
        if one not in judged:
            lines += ["", f"Not judged yet: {one[0]} on {one[1]} (`python -m benchmarks.detection {name}`)."]
    return "\n".join(lines) + "\n"


def shipped() -> list[Config]:
    return [Config.load(path.stem) for path in sorted(CONFIGS.glob("*.toml"))]


def _of(pages: Mapping[tuple[str, str], str]) -> Callable[[Row], str]:
    def title(row: Row) -> str:
        about = row["architecture"], row["dataset"]
        called = "{} on {}".format(*about)
        return (f"[{called}](detection-{pages[about]}.md)" if about in pages else called) + f": {row['detector']}"

    return title


def _rates(row: Row | None) -> str:
    if row is None:
        return "-"
    if row["tpr_at_5"] is None:
        return f"{row['n_attacked']} attacks, too few"
    return f"{percent_of(row['tpr_at_5'], row['ci']['tpr_at_5'])}; {percent_of(row['tpr_at_1'], row['ci']['tpr_at_1'])}"
