"""The paper's Tables 1 to 3 with ours beside them, and our own: held-out success, Fig. 6 in numbers, the gate, speed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from owner.figures import number, percent
from owner.reproduce.paper import CASES, FIGURE_6, PAPER, ROWS, TITLES
from owner.reproduce.readings import HONEST, readings
from owner.reproduce.records import Record
from owner.reproduce.results import NOT_RUN, Results, mean, shares, told
from owner.reproduce.settings import CALIBRATED, Settings
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
            cells.append(f"{shares(reached)}, genuine {shares(before)}, {_took(took)}")
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
            away = mean([v["deviations"] for v in verdicts if v["deviations"] is not None])
            cells.append(text + (f"; {away:+.2f}" if away is not None else ""))
        rows.append([TITLES[name], *cells])
    return table(["architecture", *case_titles(settings)], rows)


def table_honest(results: Results, settings: Settings) -> Lines:
    """Would an honest fine-tune be rejected? Each against the M_f of the other duration."""
    short, long = settings.durations("resnet18")
    rows = []
    for name in ROWS:
        cells = []
        for duration in ("short", "long"):
            verdicts = results.verdicts(name, f"honest-{duration}")
            away = mean([v["deviations"] for v in verdicts if v["deviations"] is not None])
            rejected = told([v["detected"] for v in verdicts]).replace("NO", "no")
            cells.append(rejected + (f"; {away:+.2f}" if away is not None else ""))
        rows.append([TITLES[name], *cells])
    return table(["architecture", f"honest {short}, M_f {long}", f"honest {long}, M_f {short}"], rows)


def table_readings(results: Results, settings: Settings) -> Lines:
    """Table 3 under every other reading of what the paper leaves open; no line for architectures without any."""
    short, long = settings.durations("resnet18")
    rows = []
    for name in ROWS:
        for reading in readings(results, settings, name):
            cells = []
            for case in (*CASES, *HONEST):
                away = mean(reading.deviations.get(case, []))
                rejected = told(reading.detected(case))
                rejected = rejected.replace("NO", "no") if case in HONEST else rejected
                cells.append("-" if away is None else f"{rejected}; {away:+.2f}")
            rows.append([TITLES[name], reading.title, *cells])
    if not rows:
        return [f"{NOT_RUN.capitalize()}."]
    return table(["architecture", "otherwise", *case_titles(settings), f"honest {short}", f"honest {long}"], rows)


def table_improvement(results: Results, settings: Settings) -> Lines:
    """Fig. 6 in numbers: accuracy and mean error before and after; the paper prints two of the accuracies."""
    rows = []
    for name in ROWS:
        found = results.of(name, "part-detect").values()
        if not found and name not in settings.improve:
            continue
        for model, title in (("part", "M of the part"), *((f"{kind}-short", _kind(kind)) for kind in KINDS)):
            accuracy = results.accuracy(name, model if model == "part" else f"part-{model}")
            errors = [record["models"][model]["mean"] for record in found]
            verdicts = results.verdicts(name, model, step="part-detect")
            verdict = told([v["detected"] for v in verdicts]) if verdicts else "-" if found else NOT_RUN
            paper = (
                dict(zip(("part", "honest-short"), FIGURE_6, strict=True)).get(model) if name == "resnet18" else None
            )
            reached = shares(accuracy) if paper is None else _beside(accuracy, paper)
            rows.append([TITLES[name], title, reached, number(mean(errors)) if errors else NOT_RUN, verdict])
    return table(["architecture", "model", "accuracy %", "mean error", "detected by Eq. 4"], rows)


def table_gate(results: Results, settings: Settings) -> Lines:
    """The calibrated gate, the paper's score ranked among its references, and Eq. 4 with its own M_f, on the same models."""
    rows = []
    for name in CALIBRATED:
        durations = dict(zip(("short", "long"), settings.durations(name), strict=True))
        for group, title in (("contribution", "contributor's images"), ("whole", "whole training set")):
            for kind in KINDS:
                for duration, epochs in durations.items():
                    verdicts = results.verdicts(name, f"{group}-{kind}-{duration}", step="gate")
                    if not verdicts and group == "whole":
                        continue
                    prefix = "contribution" if group == "contribution" else "part"
                    success = results.measured(name, f"{prefix}-{kind}-{duration}", "held_out_success")
                    rows.append(
                        [
                            TITLES[name],
                            title,
                            f"{_kind(kind)} {epochs}",
                            shares(success) if success or kind != "honest" else "-",
                            _each([v["decision"] for v in verdicts]),
                            _each([number(v["p_value"]) for v in verdicts]),
                            "; ".join(" ".join(v["codes"]) or "-" for v in verdicts) or "-",
                            _each([number(v["score_p_value"]) for v in verdicts]),
                            told([v["detected"] for v in verdicts if v["detected"] is not None]),
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


def resolution_note(results: Results) -> str:
    """K, its resolution and what it bounds; "" where no gate was fitted."""
    for name in CALIBRATED:
        for record in results.of(name, "gate").values():
            verdict = next(iter(record["verdicts"].values()))
            levels = record["options"]
            return (
                f"K = {record['references']} references; p of at most {number(levels['reject_level'])} is rejected, of at most "
                f"{number(levels['quarantine_level'])} left to a person. The smallest p-value is {number(verdict['resolution'])}, and the "
                f"false-positive rate realised by one calibration is at most {percent(verdict['fpr_bound_95'])} "
                "(with 95 % confidence)."
            )
    return ""


def table_speed(results: Results) -> Lines:
    """Training from scratch and the longest fine-tunes: images a second, share of the peak, seconds of the whole row."""
    rows = []
    for name in ROWS:
        row = [(step, record) for step, record in results.records.items() if step.architecture == name]
        trained = [r for _, r in row if r.get("speed", {}).get("images_per_second")]
        for device in dict.fromkeys(r["environment"]["device"] for r in trained):
            mine = [r for r in trained if r["environment"]["device"] == device]
            rates = sorted(r["speed"]["images_per_second"] for r in mine)
            shares_of_peak = [r["speed"]["share_of_peak"] for r in mine]
            known = [share for share in shares_of_peak if share is not None]
            spent = sum(_seconds(r) for _, r in row if r["environment"]["device"] == device)
            rows.append(
                [
                    TITLES[name],
                    device + (", compiled" if any(r["environment"]["compiled"] for r in mine) else ""),
                    f"{rates[len(rates) // 2]:.0f}",
                    f"{mine[0]['speed']['flops_per_image'] / 1e9:.3g}",
                    percent(max(known)) if known else "unknown",
                    f"{spent / 60:.1f}",
                ]
            )
        if not trained:
            rows.append([TITLES[name], NOT_RUN, "-", "-", "-", "-"])
    head = ["architecture", "device", "images/s (median)", "GFLOP/image", "share of peak", "minutes in all"]
    return table(head, rows)


def _seconds(record: Record) -> float:
    """Of a training that was interrupted, at least what the whole of it takes at the speed of its last part: seconds may have
    been lost with a process that was killed."""
    rate = record.get("speed", {}).get("images_per_second")
    whole = record["image_steps"] / rate if record["resumed"] and rate else 0.0
    return float(max(record["seconds"], whole))


def _beside(ours: Sequence[float], paper: float) -> str:
    return f"{shares(ours)} ({100 * paper:.2f})"


def _took(seeds: Sequence[bool]) -> str:
    """
    >>> _took([True]), _took([False, False]), _took([True, False])
    ('took', 'did not take', 'took in 1 of 2 seeds')
    """
    if len(set(seeds)) > 1:
        return f"took in {sum(seeds)} of {len(seeds)} seeds"
    return "took" if all(seeds) else "did not take"


def _each(texts: Sequence[str]) -> str:
    return ", ".join(texts) if texts else NOT_RUN


def _kind(kind: str) -> str:
    return {"honest": "honest", "flip": "FA", "pattern": "PAA"}[kind]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
