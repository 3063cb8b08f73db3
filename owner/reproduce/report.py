"""The page and the raw numbers, of whatever records there are."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.files import ensure_directory, write_atomically
from owner.figures import percent
from owner.reproduce.disagreements import (
    ACCURACY_POINTS,
    SUCCESS_POINTS,
    below_the_paper,
    disagreements,
    improvement_note,
    inconsistencies,
)
from owner.reproduce.paper import TITLES
from owner.reproduce.records import Record
from owner.reproduce.results import NOT_RUN, Results, shares
from owner.reproduce.settings import CALIBRATED, RECIPES, Settings
from owner.reproduce.steps import EXPERIMENTS, KINDS, Experiment, Step, experiment_steps
from owner.reproduce.tables import (
    table,
    table_1,
    table_2,
    table_3,
    table_held_out,
    table_honest,
    table_improvement,
    table_otherwise,
    table_readings,
)
from owner.reproduce.tables_gate import gate_notes, table_gate, vetted_whole
from owner.reproduce.tables_speed import table_speed

FORMAT = 1
NONE = "None among the cells that were run."
WHOLE = "*whole training set*: as in the paper, many times longer than any reference, so that the gate's assumption does not hold for the honest one either. "
_GUIDE = ". What the paper leaves open, and how it was chosen: [paper-reproduction.md](../paper-reproduction.md)."


def write_report(records: Mapping[Step, Record], settings: Settings, out: Path) -> tuple[Path, Path]:
    """`paper.md` and `paper.json` below `out`. Raises StorageError."""
    ensure_directory(out)
    page, numbers = out / "paper.md", out / "paper.json"
    write_atomically(page, markdown(Results(records), settings, drawn=_drawn(out, records)).encode())
    write_atomically(numbers, json.dumps(raw(records, settings), indent=1).encode() + b"\n")
    return page, numbers


def raw(records: Mapping[Step, Record], settings: Settings) -> dict[str, Any]:
    """Every record, without the pictures of Fig. 2."""
    rows = []
    for step in sorted(records, key=str):
        record = records[step]
        attack = {key: value for key, value in record.get("attack", {}).items() if key != "examples"}
        rows.append({**record, **({"attack": attack} if attack else {})})
    command = " && ".join(commands_of(records, settings))
    return {"format": FORMAT, "command": command, "settings": settings.to_json(), "records": rows}


def commands_of(records: Mapping[Step, Record], settings: Settings) -> list[str]:
    """Those that run what there is records of, whichever commands they came from; one for all seeds that were given the same.

    >>> records = {Step("cnn", seed, "detect"): {} for seed in (0, 1, 2)}
    >>> commands_of(records, Settings(fraction=0.25))
    ['portier-owner reproduce --architectures cnn --seeds 0,1,2 --experiments tables --fraction 0.25']
    >>> for command in commands_of(records | {Step("cnn", 1, "gate"): {}}, Settings()):
    ...     print(command)
    portier-owner reproduce --architectures cnn --seeds 0,2 --experiments tables
    portier-owner reproduce --architectures cnn --seeds 1 --experiments tables,gate
    """
    names: dict[tuple[str, int], set[str]] = {}
    for step in records:
        names.setdefault((step.architecture, step.seed), set()).add(step.name)
    alike: dict[tuple[str, tuple[Experiment, ...]], list[int]] = {}
    for architecture, seed in sorted(names, key=lambda one: (list(RECIPES).index(one[0]), one[1])):
        found = names[architecture, seed]
        if experiments := tuple(
            one for one in EXPERIMENTS if found & _own(one)
        ):  # none of an M that nothing started from yet
            alike.setdefault((architecture, experiments), []).append(seed)
    together: dict[tuple[tuple[int, ...], tuple[Experiment, ...]], list[str]] = {}
    for (architecture, experiments), seeds in alike.items():
        together.setdefault((tuple(seeds), experiments), []).append(architecture)
    return [
        _command(architectures, seeds, experiments, settings)
        for (seeds, experiments), architectures in together.items()
    ] or [_command((), (), (), settings)]


def _command(
    architectures: Sequence[str], seeds: Sequence[int], experiments: Sequence[Experiment], settings: Settings
) -> str:
    improved = tuple(architectures) if "improvement" in experiments else Settings().improve
    settings = dataclasses.replace(settings, improve=improved)
    chosen: dict[str, Sequence[object]] = {"architectures": architectures, "seeds": seeds, "experiments": experiments}
    given = [f"--{name} {','.join(str(value) for value in values)}" for name, values in chosen.items() if values]
    for name, value in settings.to_json().items():
        if value != Settings().to_json()[name]:
            text = ",".join(value) if isinstance(value, list) else shlex.quote(str(value))
            given.append(f"--{name.replace('_', '-')}" + ("" if value is True else f" {text}"))
    return " ".join(["portier-owner reproduce", *given])


def _own(experiment: Experiment) -> set[str]:
    """Steps that say it was run: the models that others start from are of `tables`, or of none."""
    steps = set(experiment_steps(experiment, CALIBRATED[0], Settings(improve=CALIBRATED)))
    return steps if experiment == "tables" else steps - {"genuine", "part", *KINDS}


def markdown(results: Results, settings: Settings, *, drawn: Mapping[str, list[str]]) -> str:
    """drawn: file names of the figures there are, by `examples`, `histograms`, `improvement`."""
    differs = disagreements(results, settings)
    weak = below_the_paper(results)
    lines = [
        "# The paper, reproduced",
        "",
        "El Moadine, Coatrieux, Bellafqira, *Poisoning-Attack Detection Using an Auto-encoder for Deep Learning Models* (ICDF2C "
        f"2022), on {_listed({r['data'] for r in results.records.values()}) or settings.dataset}. Our figure comes first, the "
        f"paper's in round brackets. Seeds: {_listed({str(seed) for seed in results.seeds}) or 'none'}; of several the mean and, in square "
        "brackets, the range; what has no range is of one. What was not run says so.",
        "",
        f"Made by {' and '.join(f'`{command}`' for command in commands_of(results.records, settings))}"
        + (", a smoke run: its figures mean nothing." if settings.smoke else _GUIDE),
        "",
        *_missing(results),
        "The words: *M* is the owner's genuine model; *fine-tuned* an honest contributor's work on it, *M_f* where it is what an attack is measured "
        "against; *FA* labels half of one class as another, *PAA* also puts a white square on those images; the number after each is epochs of "
        "fine-tuning. *Eq. 4*, the paper's rule: an auto-encoder learns M's penultimate activations on the test images; a model is rejected where the "
        "mean of its images' reconstruction errors lies above M_f's mean by more than one standard deviation of M_f's errors over the images.",
        "",
        "## Table 1: accuracy on the test set, %",
        "",
        *table_1(results, settings),
        "",
        "The paper has one figure for the honest fine-tune and does not say of which duration. Wide-ResNet's columns are "
        f"{settings.durations('wrn-28-10')[0]} and {settings.durations('wrn-28-10')[1]} epochs, as in the paper.",
        "",
        *([f"Genuine models below the paper's accuracy: {'; '.join(weak)}.", ""] if weak else []),
        *_jpeg(results),
        "## Table 2: attack success on the attacked training images, %",
        "",
        *table_2(results, settings),
        "",
        "The same on held-out images of the source class (for PAA stamped), how often the genuine model errs that way by itself, "
        "and whether the attack took (PAA: at least half of those the genuine model does not take that way by itself; FA: 20 points "
        "of the class's recall):",
        "",
        *table_held_out(results, settings),
        "",
        "## Table 3: detected by Eq. 4",
        "",
        *table_3(results, settings),
        "",
        "The signed number: by how many per-image standard deviations of M_f the mean error lies above M_f's; the rule rejects "
        "above 1. How an honest fine-tune would have fared, judged by the M_f of the other duration (by its own it always passes); and another "
        "honest run of M, of the same data in another order, by the M_f that took as long (experiment `again`):",
        "",
        *table_honest(results, settings),
        "",
        "The same under other readings of what the paper leaves open: one M_f for all attacks, attacks fine-tuned "
        "on the attacked images alone (experiment `alone`) or beside the whole training set (`beside`), all fine-tunes at the rate that M's training ended at (`slow`), and other "
        "auto-encoders on the same models (`variants`). Each cell: rejected or not, and the deviations as above.",
        "",
        *table_readings(results, settings),
        "",
        "What models that are fine-tuned otherwise reach: accuracy, %; of attacks also the success on the attacked training images and on held-out ones:",
        "",
        *table_otherwise(results, settings),
        "",
        *_pictures("Fig. 2: attacked images", drawn.get("examples", [])),
        *_pictures(
            "Fig. 5: error of each test image, six models of the first seed, threshold of Eq. 4",
            drawn.get("histograms", []),
        ),
        "## Fig. 6: M of a part of the training set, fine-tuned on all of it",
        "",
        f"M is trained on {percent(settings.owners_part, 0)} of the training set; {settings.durations('resnet18')[0]} epochs of "
        "fine-tuning on all of it.",
        "",
        *table_improvement(results, settings),
        "",
        *improvement_note(results),
        *_pictures("", drawn.get("improvement", [])),
        "## The calibrated gate, beside the paper's rule",
        "",
        "Not in the paper. M is trained on a part of the training set, because honest references need images that M has not seen. "
        "*contributor's images*: fine-tuned on unseen images of the contributor's own, as the references are. "
        + (WHOLE if vetted_whole(results) else "")
        + "The gate is the preset `standard` of the version that ran it, and its decision includes the utility check on the merged model; the paper's score "
        "alone is ranked among the same references. Eq. 4 stands beside it with the guard's own honest "
        f"fine-tune of {settings.durations('cnn')[0]} epochs as M_f, for models of both durations: what it says of the longer ones, honest and attacked, says as much "
        "of their duration. p: the share of honest references, the model among them, that score as high.",
        "",
        *table_gate(results, settings),
        "",
        *(gate_notes(results) or [f"The gate: {NOT_RUN}."]),
        "",
        "## Where we disagree with the paper",
        "",
        f"Accuracies more than {100 * ACCURACY_POINTS:.0f} points apart, success more than {100 * SUCCESS_POINTS:.0f} (means over seeds), other verdicts; after each, what our figures say of its cause:",
        "",
        *(f"- {text}" for text in differs.apart or [NONE]),
        "",
        "Accuracies and success that differ by less; where the paper's figure is outside the range of our seeds, or there is one seed, with what our figures say of it:",
        "",
        *(f"- {text}" for text in differs.nearer or [NONE]),
        "",
        "## Where the paper disagrees with itself",
        "",
        *(f"- {text}" for text in inconsistencies(results)),
        "",
        "## Speed",
        "",
        *table_speed(results),
        "",
        "Operations are those of torch's counter for a forward and a backward pass, a multiply-add as two; the peak is the maker's "
        "for dense bfloat16, or where there is no such figure what the same process reached on products of matrices, which beside other work is no constant (unknown to older records). Each a median over trainings, and in square brackets their range. Minutes are those that "
        "went into a step, beside whatever else the machine had to do (of a training that was interrupted, at least what the whole of it takes at the rate of its last "
        "part); those of a seed are added up, though steps may have run side by side. M of a part of the training set counts in the rate of M, not in its minutes.",
        "",
        "## What it ran on",
        "",
        *_environments(results),
        "",
        "## Settings",
        "",
        *table(["option", "value"], [[f"`{name}`", f"`{value}`"] for name, value in settings.to_json().items()]),
    ]
    return "\n".join(lines) + "\n"


def _missing(results: Results) -> list[str]:
    """Why architectures without a record have none: they are a GPU's work."""
    missing = [
        title for name, title in TITLES.items() if not any(step.architecture == name for step in results.records)
    ]
    if not missing or not results.records:
        return []
    devices = _listed({record["environment"]["device"] for record in results.records.values()})
    return [
        f"Nothing was run of {', '.join(missing)}: a seed of these takes a GPU minutes to hours, a processor days (`--plan` says how long), "
        f"and all there was is {devices}. The same command without `--architectures` fills them.",
        "",
    ]


def jpeg_estimate(once: float, twice: float) -> float:
    """Accuracy on the original images, from one encoding and two, were each to cost as much as the other.

    >>> round(jpeg_estimate(0.86, 0.84), 2)
    0.88
    """
    return once + (once - twice)


def _jpeg(results: Results) -> list[str]:
    rows = []
    for name, title in TITLES.items():
        once, twice = (results.of(name, step) for step in ("genuine", "jpeg"))
        both = [(once[seed]["accuracy"], twice[seed]["accuracy"]) for seed in once if seed in twice]
        if both:
            estimates = [jpeg_estimate(*pair) for pair in both]
            rows.append([title, *map(shares, (*zip(*both, strict=True), estimates))])
    if not rows:
        return [f"The part that the JPEG encoding of the images plays (experiment `jpeg`): {NOT_RUN}.", ""]
    head = ["architecture", "as they are", "encoded once more", "estimate without any encoding"]
    note = "In %, of the seeds that have both. The estimate is a straight line through two points of a seed, no measurement."
    return [*table(head, rows), "", note, ""]


def _environments(results: Results) -> list[str]:
    found: dict[str, set[str]] = {}
    for step, record in results.records.items():
        e = record["environment"]
        code = f", code {e['code']}" if "code" in e else ""
        text = (
            f"{e['device']}, {e['dtype']}, torch {e['torch']}, torchvision {e['torchvision']}, Python {e['python']}, "
            f"{e['threads']} threads, {'compiled' if e['compiled'] else 'not compiled'}"
            + (f", one of {e['processes']} processes" if e.get("processes", 1) > 1 else "")
            + code
            + (f" ({e['note']})" if "note" in e else "")
        )
        found.setdefault(text, set()).add(f"{step.architecture} (seed {step.seed})")
    return [f"- {text}: {_listed(cells)}" for text, cells in sorted(found.items())] or [f"- {NOT_RUN}"]


def _pictures(title: str, names: list[str]) -> list[str]:
    lines = [f"## {title}", ""] if title else []
    if title and not names:
        lines += ["Not drawn: `--stage figures` draws what was run; published numbers hold no images.", ""]
    for name in names:
        lines += [f"![{name.removesuffix('.png')}]({name})", ""]
    return lines


def _drawn(out: Path, records: Mapping[Step, Record]) -> dict[str, list[str]]:
    """Figures that are there, of what these records are of: another folder's may lie beside them."""
    names = {"examples": ["paper-examples.png"] if {"flip", "pattern"} <= {step.name for step in records} else []}
    for kind, name in (("histograms", "detect"), ("improvement", "part-detect")):
        names[kind] = sorted({f"paper-{kind}-{step.architecture}.png" for step in records if step.name == name})
    return {kind: [name for name in found if (out / name).exists()] for kind, found in names.items()}


def _listed(texts: set[str]) -> str:
    return ", ".join(sorted(texts))
