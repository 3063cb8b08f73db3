"""The paper's Tables 1 to 3 with ours beside them, and our own: held-out success, other readings, Fig. 6 in numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from owner.figures import number
from owner.reproduce.paper import CASES, FIGURE_6, PAPER, ROWS, TITLES
from owner.reproduce.readings import HONEST, OTHERWISE, readings
from owner.reproduce.results import NOT_RUN, Results, shares, signed, told
from owner.reproduce.settings import Settings
from owner.reproduce.steps import KINDS

Lines = list[str]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Lines:
    """Markdown.

    >>> table(["a", "b"], [["1", "2"]])
    ['| a | b |', '|---|---|', '| 1 | 2 |']
    """
    return [_line(head), "|" + "---|" * len(head), *(_line(row) for row in rows)]


def case_titles(settings: Settings, architecture: str = "resnet18") -> list[str]:
    """
    >>> case_titles(Settings())
    ['FA 25', 'FA 50', 'PAA 25', 'PAA 50']
    """
    durations = settings.durations(architecture)
    return [f"{attack} {epochs}" for attack in ("FA", "PAA") for epochs in durations]


def table_1(results: Results, settings: Settings) -> Lines:
    """Accuracy, %, ours and the paper's in brackets. The paper has one column for the honest fine-tune."""
    short, long = settings.durations("resnet18")
    head = ["architecture", "normal", f"fine-tuned {short}", f"fine-tuned {long}", *case_titles(settings)]
    rows = []
    for name in ROWS:
        printed = PAPER[name].accuracy
        cells = [_beside(results.accuracy(name, "genuine"), printed["genuine"])]
        cells += [
            _beside(results.accuracy(name, f"honest-{duration}"), printed["honest"]) for duration in ("short", "long")
        ]
        cells += [_beside(results.accuracy(name, case), printed[case]) for case in CASES]
        rows.append([TITLES[name], *cells])
    return table(head, rows)


def table_2(results: Results, settings: Settings) -> Lines:
    """Attack success, %, on the attacked training images, as the paper measures it."""
    rows = [
        [
            TITLES[name],
            *(_beside(results.measured(name, case, "success"), PAPER[name].success[case]) for case in CASES),
        ]
        for name in ROWS
    ]
    return table(["architecture", *case_titles(settings)], rows)


def table_held_out(results: Results, settings: Settings) -> Lines:
    """Attack success, %, on held-out images; how often the genuine model errs that way by itself; whether it took."""
    rows = []
    for name in ROWS:
        cells = []
        for case in CASES:
            reached = results.measured(name, case, "held_out_success")
            if not reached:
                cells.append(NOT_RUN)
                continue
            before = results.before(name, case, "held_out_success")
            took = [bool(one) for one in results.measured(name, case, "effective")]
            cells.append(f"{shares(reached)}, genuine {shares(before)}, {took_in(took)}")
        rows.append([TITLES[name], *cells])
    return table(["architecture", *case_titles(settings)], rows)


def table_3(results: Results, settings: Settings) -> Lines:
    """Detected by Eq. 4; in brackets the paper's, then by how many per-image deviations of M_f the mean error is away from
    M_f's (the rule rejects above 1)."""
    rows = []
    for name in ROWS:
        cells = []
        for case in CASES:
            verdicts = results.verdicts(name, case)
            text = f"{told([v['detected'] for v in verdicts])} ({'yes' if PAPER[name].detected[case] else 'NO'})"
            cells.append(_with_deviations(text, [v["deviations"] for v in verdicts]))
        rows.append([TITLES[name], *cells])
    return table(["architecture", *case_titles(settings)], rows)


def table_honest(results: Results, settings: Settings) -> Lines:
    """Would an honest fine-tune be rejected? Of M_f itself, by the M_f of the other duration; of another run of the same duration
    (experiment `again`), by M_f."""
    short, long = settings.durations("resnet18")
    judged = [
        ("detect", "honest-short"),
        ("detect", "honest-long"),
        ("again-detect", "again-short"),
        ("again-detect", "again-long"),
    ]
    rows = []
    for name in ROWS:
        cells = []
        for step, case in judged:
            verdicts = results.verdicts(name, case, step=step)
            cells.append(
                _with_deviations(told([v["detected"] for v in verdicts], "no"), [v["deviations"] for v in verdicts])
            )
        rows.append([TITLES[name], *cells])
    head = [
        f"{short}, by M_f of {long}",
        f"{long}, by M_f of {short}",
        f"another run of {short}",
        f"another run of {long}",
    ]
    return table(["architecture", *head], rows)


def table_readings(results: Results, settings: Settings) -> Lines:
    """Table 3 under every other reading of what the paper leaves open; no line for architectures without any."""
    short, long = settings.durations("resnet18")
    rows = []
    for name in ROWS:
        for reading in readings(results, settings, name):
            cells = []
            for case in (*CASES, *HONEST):
                rejected = told(reading.detected(case), "no" if case in HONEST else "NO")
                away = reading.deviations.get(case, [])
                cells.append(_with_deviations(rejected, away) if away else "-")
            rows.append([TITLES[name], reading.title, *cells])
    if not rows:
        return [f"{NOT_RUN.capitalize()}."]
    return table(["architecture", "otherwise", *case_titles(settings), f"honest {short}", f"honest {long}"], rows)


def table_otherwise(results: Results, settings: Settings) -> Lines:
    """Accuracy, and of an attack success on its own and on held-out images, %, of models that were fine-tuned otherwise."""
    short, long = settings.durations("resnet18")
    rows = []
    for name in ROWS:
        for experiment, title in OTHERWISE.items():
            cells = []
            for case in (*HONEST, *CASES):
                accuracy = results.accuracy(name, f"{experiment}-{case}")
                success, held_out = (
                    results.measured(name, f"{experiment}-{case}", what) for what in ("success", "held_out_success")
                )
                reached = f"; {shares(success)}; {shares(held_out)}" if success else ""
                cells.append(shares(accuracy) + reached if accuracy else "-")
            if any(cell != "-" for cell in cells):
                rows.append([TITLES[name], title, *cells])
    if not rows:
        return [f"{NOT_RUN.capitalize()}."]
    return table(["architecture", "otherwise", f"honest {short}", f"honest {long}", *case_titles(settings)], rows)


def table_improvement(results: Results, settings: Settings) -> Lines:
    """Fig. 6 in numbers: accuracy and mean error before and after; the paper prints two of the accuracies."""
    rows = []
    for name in ROWS:
        found = results.of(name, "part-detect").values()
        if not found and name not in settings.improve:
            rows.append([TITLES[name], "all four", NOT_RUN, NOT_RUN, NOT_RUN])
            continue
        for model, title in (("part", "M of the part"), *((f"{kind}-short", title_of(kind)) for kind in KINDS)):
            accuracy = results.accuracy(name, model if model == "part" else f"part-{model}")
            errors = [record["models"][model]["mean"] for record in found]
            verdicts = results.verdicts(name, model, step="part-detect")
            verdict = told([v["detected"] for v in verdicts]) if verdicts else "-" if found else NOT_RUN
            paper = (
                dict(zip(("part", "honest-short"), FIGURE_6, strict=True)).get(model) if name == "resnet18" else None
            )
            reached = shares(accuracy) if paper is None else _beside(accuracy, paper)
            rows.append([TITLES[name], title, reached, _numbers(errors) if errors else NOT_RUN, verdict])
    return table(["architecture", "model", "accuracy %", "mean error", "detected by Eq. 4"], rows)


def _with_deviations(text: str, deviations: Sequence[float | None]) -> str:
    away = signed(deviations)
    return f"{text}; {away}" if away else text


def _numbers(values: Sequence[float]) -> str:
    middle = sum(values) / len(values)
    return number(middle) + (f" [{number(min(values))} to {number(max(values))}]" if len(values) > 1 else "")


def _beside(ours: Sequence[float], paper: float) -> str:
    return f"{shares(ours)} ({100 * paper:.2f})"


def took_in(seeds: Sequence[bool]) -> str:
    """A bare word is one seed's.

    >>> took_in([True]), took_in([False]), took_in([False, False]), took_in([True, False])
    ('took', 'did not take', 'took in 0 of 2 seeds', 'took in 1 of 2 seeds')
    """
    if len(seeds) > 1:
        return f"took in {sum(seeds)} of {len(seeds)} seeds"
    return "took" if all(seeds) else "did not take"


def title_of(kind: str) -> str:
    return {"honest": "honest", "flip": "FA", "pattern": "PAA"}[kind]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
