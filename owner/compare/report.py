"""The page, `federated.md`, and the numbers, `federated.json`, of whatever records there are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import StorageError
from common.files import ensure_directory, read_bounded, write_atomically
from owner.compare.attackers import about_attackers, about_told
from owner.compare.configuration import Block, Comparison
from owner.compare.origins import differences, notes
from owner.compare.poisoned import OnData, about_poisoned, read_poisoned
from owner.compare.scenes import DEFAULTS, NO_DEFENCE, Group, Record, Scenes, attacked, scenes_of
from owner.compare.tables import (
    lines_of_table_4,
    marks,
    reasons,
    table_4,
    table_measures,
    table_methods,
    table_scenes,
)
from owner.federated.compare import TAKEN_OVER, is_record, read_record, write_record
from owner.federated.grids import name_of

FORMAT = 1
PAGE, NUMBERS, FIGURES = "federated.md", "federated.json", "federated-"
CAE = "cae.json"
"""What `python -m benchmarks.cae` writes, looked for beside the page."""

_LIMIT = 256 << 20
_ROUND = (
    "number",
    "accuracy",
    "attack_success",
    "seconds",
    "vetting_seconds",
    "guard_seconds",
    "merging_seconds",
    "threshold",
    "kept_model",
    "note",
)
_OUTCOMES = ("kept", "dropped", "failed")
_SUBMISSION = ("attacks", "own_accuracy", "own_attack_success", "p_value", "own_rule_drops")
_GUIDE = "How it is measured, and how to run it: [compare.md](../compare.md)."


def read_records(comparison: Comparison, directory: Path, *, keep_older: bool = False) -> dict[str, Record]:
    """Those of the comparison's cells that were tried, by name of the cell. keep_older: see `read_record`. Raises StorageError for a damaged
    one."""
    found = {cell.name: read_record(directory, cell, failed=True, keep_older=keep_older) for cell in comparison.cells}
    return {name: record for name, record in found.items() if record is not None}


def take_over(comparison: Comparison, numbers: Path, directory: Path, *, keep_older: bool = False) -> int:
    """Writes the records of a published `federated.json` into a work folder, of those cells of the comparison that it lacks; returns how
    many those were. Cells that failed are left to be run again. Records of other code are taken over too, and the page says so.

    keep_older: see `read_record`. Raises StorageError for what is no such file, and for a record of other values than its cell's.
    """
    records = _published(numbers)
    ensure_directory(directory)
    taken = 0
    for cell in {cell.name: cell for cell in comparison.cells}.values():
        record = records.get(cell.name)
        if record is None or not is_record(record, ("done", "n/a")):
            continue
        values = record.get("values")
        if not isinstance(values, dict) or name_of(values) != cell.name:
            raise StorageError(
                f"{numbers} holds a record under {cell.name}, the name of a cell that has other values",
                hint="take the file as it was published, or leave it out",
            )
        if read_record(directory, cell, keep_older=keep_older) is None:
            kept = {key: value for key, value in record.items() if key != "cell"}
            write_record(directory, cell, {**kept, TAKEN_OVER: True})
            taken += 1
    return taken


def strangers(comparison: Comparison, numbers: Path) -> int:
    """How many records of a published `federated.json` are of cells that the comparison does not have: it asks for other values than it did
    when they were made, or is another one. Raises StorageError for what is no such file."""
    mine = {cell.name for cell in comparison.cells}
    return sum(cell not in mine for cell in _published(numbers))


def _published(numbers: Path) -> dict[str, Any]:
    try:
        return {record["cell"]: record for record in json.loads(read_bounded(numbers, _LIMIT))["records"]}
    except (ValueError, TypeError, KeyError) as error:
        raise StorageError(f"{numbers} holds no published records: {error!r}", hint="name a federated.json") from error


def write_report(
    comparison: Comparison,
    records: Mapping[str, Record],
    out: Path,
    *,
    command: str,
    figures: Mapping[str, Sequence[str]],
) -> tuple[Path, Path]:
    """figures: names of files below `out`, by block. Raises StorageError."""
    ensure_directory(out)
    page, numbers = out / PAGE, out / NUMBERS
    poisoned = read_poisoned(out / CAE, comparison.poisoned.data) if comparison.poisoned else ()
    text = markdown(comparison, records, command=command, figures=figures, poisoned=poisoned)
    write_atomically(page, text.encode())
    write_atomically(numbers, numbers_of(comparison, records, command=command).encode())
    return page, numbers


def numbers_of(comparison: Comparison, records: Mapping[str, Record], *, command: str) -> str:
    """JSON, a line a record. Single clients are counted and not listed, and figures have six digits; everything else is in."""
    about = {
        "format": FORMAT,
        "title": comparison.title,
        "command": command,
        "seeds": comparison.seeds,
        "marks": dict(comparison.marks),
        "missing": [vars(one) for one in comparison.missing],
        "blocks": [
            {"name": b.name, "row": b.row, "own": b.own, "cells": [cell.name for cell in b.cells]}
            for b in comparison.blocks
        ],
    }
    # The values stay as they are: they name the cell.
    slim = (
        {"cell": name, **_six_digits(_slim(record)), "values": record["values"]} for name, record in records.items()
    )
    lines = [json.dumps(one, allow_nan=False) for one in slim]
    head = json.dumps(about, indent=1, allow_nan=False).removesuffix("\n}")
    return head + ',\n "records": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n"


def _slim(record: Record) -> dict[str, Any]:
    record = {key: value for key, value in record.items() if key != TAKEN_OVER}
    if record["status"] != "done":
        return record
    result = {key: value for key, value in record["result"].items() if key not in ("rounds", "config")}
    rounds = []
    for one in record["result"]["rounds"]:
        kept = {key: one[key] for key in (*_ROUND, *_SUBMISSION, *_OUTCOMES) if key in one}
        if "clients" in one:  # what was taken over from published numbers has the counts alone
            outcomes = [client["outcome"] for client in one["clients"]]
            kept |= {outcome: outcomes.count(outcome) for outcome in _OUTCOMES}
        rounds.append(kept)
    return {**record, "result": {**result, "rounds": rounds}}


def _six_digits(value: Any) -> Any:
    """
    >>> _six_digits({"a": [0.123456789, 3, "b"]})
    {'a': [0.123457, 3, 'b']}
    """
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _six_digits(one) for key, one in value.items()}
    return [_six_digits(one) for one in value] if isinstance(value, list | tuple) else value


def markdown(
    comparison: Comparison,
    records: Mapping[str, Record],
    *,
    command: str,
    figures: Mapping[str, Sequence[str]],
    poisoned: Sequence[OnData] = (),
) -> str:
    done = sum(record["status"] == "done" for record in records.values())
    unserved = sum(record["status"] == "n/a" for record in records.values())
    seeds = ", ".join(map(str, comparison.seeds))
    lines = [
        f"# {comparison.title}",
        "",
        f"{done} of {len(comparison.cells)} cells run, {unserved} that cannot be served (n/a), {len(comparison.cells) - done - unserved} "
        f"not run. Seeds {seeds}: mean ± standard deviation over them (n - 1); one figure alone is of one seed.",
        "",
        f"Made by `{command}`. {_GUIDE}",
        "",
    ]
    if any(block.row for block in comparison.blocks) or comparison.missing:
        lines += [*_table_4(comparison, records, poisoned)]
    for block in comparison.blocks:
        lines += _block(block, records, figures.get(block.name, ()))
    lines += about_told(comparison)
    lines += notes(records)
    return "\n".join(lines) + "\n"


def _table_4(comparison: Comparison, records: Mapping[str, Record], poisoned: Sequence[OnData]) -> list[str]:
    of_lines: dict[str, list[Group]] = {}
    for line in lines_of_table_4(comparison, records):
        of_lines.setdefault(line.title, []).extend(line.every_group)
    about = [about_poisoned(comparison.poisoned.row, poisoned), ""] if comparison.poisoned else []
    return [
        "## The paper's Table 4, from measurements",
        "",
        *table_methods(),
        "",
        "Each line is the mean over those of the row's scenes with attackers (attacks, their shares, partitions; in the block below) in which "
        "every strategy of the line that serves the model has run, and over the seeds that all of them have there. F1 is of dropping "
        "attackers, over all these scenes and over those alone whose attack takes where nobody defends; accuracy and attack success (ASR) are "
        "of the model that comes of it, *targeted* over the scenes whose attack has a target (flips and backdoors), *untargeted* over the "
        "others (sign-flip, noise, same value), which have no ASR; n/a: the strategy cannot serve that model.",
        "",
        *table_4(comparison, records, poisoned),
        "",
        *_spaced(differences(of_lines)),
        *about,
        *_marks(comparison, records),
    ]


def _marks(comparison: Comparison, records: Mapping[str, Record]) -> list[str]:
    used = {str(cell.values.get("data", DEFAULTS["data"])).lower().replace("_", "-") for cell in comparison.cells}
    notes = [f"\\* {data}: {note}." for data, note in marks(comparison, records).items() if data in used]
    return _spaced(notes)


def _spaced(paragraphs: Sequence[str]) -> list[str]:
    return [line for paragraph in paragraphs for line in (paragraph, "")]


def _block(block: Block, records: Mapping[str, Record], figures: Sequence[str]) -> list[str]:
    scenes = scenes_of(block, records)
    incremental = any(cell.values.get("setting") == "incremental" for cell in block.cells)
    lines = [f"## {block.name}", ""]
    lines += [block.about, ""] if block.about else []
    sizes = _sizes(block, records)
    lines += [sizes, ""] if sizes else []
    if not any(group.done for group in scenes.groups.values()):
        why = reasons(scenes)
        return [*lines, *(why or ["Nothing of it was run."]), ""]
    lines += [*table_measures(scenes), "", _about_dropping(scenes), ""]
    of_variants = {
        scenes.variant_title(variant): [scenes.group(scene, variant) for scene in scenes.scenes]
        for variant in scenes.variants
    }
    lines += _spaced(differences(of_variants))
    lines += about_attackers(block, records)
    if incremental:
        lines += [
            "† with the one adaptation it needs: a submission comes alone, so the owner puts K honest references of its own beside it, "
            "and the submission is dropped by its p-value over their scores. *F1 by its own rule*: had the detector's rule for rounds "
            "decided among the same K + 1.",
            "",
        ]
    lines += (
        [
            "*No defence*: what `fedavg` came to in the scenes, and with the seeds, that the strategy of the line has figures of.",
            "",
        ]
        if scenes.with_strategy(NO_DEFENCE)
        else []
    )
    lines += ["F1 / accuracy % / attack success %, scene by scene:", "", *table_scenes(scenes), ""]
    why = reasons(scenes)
    lines += [*why, ""] if why else []
    for name in figures:
        lines += [f"![{name.removesuffix('.png')}]({name})", ""]
    return lines


def _about_dropping(scenes: Scenes) -> str:
    hostile = [scene for scene in scenes.scenes if attacked(scene)]
    common, took = len(scenes.common(hostile, scenes.variants)), sum(bool(scenes.took(scene)) for scene in hostile)
    return (
        "In brackets: in how many of the line's cells a measure of dropping is defined, where not in all, and the mean is over those (no "
        "precision where nobody was dropped; recall and F1 are 0 there). *F1 in common scenes*: over the scenes, and their seeds, that "
        f"every line with figures has, {common} here. *F1 where the attack took*: over the scenes, and their seeds, in which the attack "
        f"reaches its goal where nobody defends (`fedavg`; of a backdoor half of what is left to be won, of a flip 20 points of recall, else "
        f"20 points of accuracy), {took} here. *Honest dropped*: the share of honest replies. *Targeted*: scenes whose attack has a target, "
        "and so a success; *untargeted*: the others. *Nobody attacks*: the same clients, all of them honest; all else is of scenes with "
        "attackers."
    )


def _sizes(block: Block, records: Mapping[str, Record]) -> str:
    """How much data the block's cells have, as far as they have run."""
    found: dict[str, str] = {}
    for cell in block.cells:
        about = (records.get(cell.name) or {}).get("data")
        if about:
            owners = about["train"] - about["clients"]
            data = cell.values.get("data", DEFAULTS["data"])
            found.setdefault(
                str(data),
                f"{about['train']:,} training examples of {data} ({owners:,} the owner's, {about['clients']:,} the clients' together), "
                f"accuracy on {about['evaluation']:,}",
            )
    if found:
        return "; ".join(found.values()) + "."
    asked = {cell.values.get("examples", 0) for cell in block.cells} - {0}
    return f"Training examples: {', '.join(f'{count:,}' for count in sorted(asked))} at most." if asked else ""
