"""Whose code, precision and data the cells of a table are of, where not all are of the same: a page must not compare such cells in silence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from owner.compare.scenes import DEFAULTS, Group, Record

BEFORE = "code before digests were recorded"


def code_of(record: Record) -> str:
    """The first digits of its digest, "" of a record that has none."""
    return str(record.get("environment", {}).get("code", ""))


def differences(lines: Mapping[str, Sequence[Group]]) -> list[str]:
    """A sentence for each thing in which the cells with figures differ, which lines of the table have how many others than most.

    Precision and copy of the data are compared as far as they were recorded, copies of each data set by themselves.
    """
    cells = {line: [record for group in groups for record in group.done] for line, groups in lines.items()}
    data_sets = dict.fromkeys(_data(record) for records in cells.values() for record in records)
    said = [
        _difference("code", {line: map(_code, records) for line, records in cells.items()}),
        _difference("precision", {line: map(_precision, records) for line, records in cells.items()}),
        *(
            _difference(
                f"copy of {data}",
                {line: [_copy(r) for r in records if _data(r) == data] for line, records in cells.items()},
            )
            for data in data_sets
        ),
    ]
    return [text for text in said if text]


def notes(records: Mapping[str, Record]) -> list[str]:
    """Markdown: what the owner knew of its clients, and on what, in which precision and by which code the cells ran."""
    found = [record for record in records.values() if record["status"] == "done"]
    if not found:
        return []
    hours = sum(record["wall_seconds"] for record in found) / 3600
    environments = Counter(_environment(record) for record in found)
    return [
        "## What the owner knew of its clients",
        "",
        *_population(found),
        "## What it ran on",
        "",
        f"{hours:.2f} hours of processes in all. Seconds are of the server (vetting, guard, merging), and mean little where other work ran "
        "beside.",
        "",
        *(f"- {count} cells: {text}" for text, count in sorted(environments.items())),
    ]


def _population(found: Sequence[Record]) -> list[str]:
    older = sum(not code_of(record) for record in found)
    announced = (
        "How many they are, how many examples they have together, and how they train. From one population of that alone come the gate's "
        "references, those of p-values, and the honest updates that VAE and CVAE learn from ([compare.md](../compare.md))."
    )
    if any(str(record["values"].get("partition", "")).startswith("natural") for record in found):
        announced += " Where data come divided by nature, the smallest and the largest number of examples that a client declares are known, too."
    more = (
        f"In {older} of {len(found)} cells, of {BEFORE}, references had the sizes and class mixes of the clients' true shares, and in "
        "rounds VAE and CVAE learnt from random halves of the public data."
    )
    return [*([announced, ""] if older < len(found) else []), *([more, ""] if older else [])]


def _environment(record: Record) -> str:
    e = record["environment"]
    parts = [f"Python {e['python']}", f"torch {e['torch']}", f"{e['threads']} threads"]
    parts += [str(e["device"])] if "device" in e else []
    return ", ".join(
        [*parts, e.get("dtype", "precision not recorded"), f"code `{e['code']}`" if "code" in e else BEFORE]
    )


def _difference(what: str, lines: Mapping[str, Iterable[str]]) -> str:
    """
    >>> _difference("code", {"krum": ["`a`", "`a`", "`b`"], "gated": ["`a`"]})
    'Not all of these cells are of the same code. Most are of `a` (3 of 4); of others: krum 1 of 3 (`b`).'
    """
    known = {line: [one for one in marks if one] for line, marks in lines.items()}
    every = Counter(one for marks in known.values() for one in marks)
    if len(every) < 2:
        return ""
    (most, count), *_ = every.most_common()
    others = []
    for line, marks in known.items():
        mine = Counter(one for one in marks if one != most)
        if mine:
            those = ", ".join(one if len(mine) == 1 else f"{n} of {one}" for one, n in sorted(mine.items()))
            others.append(f"{line} {sum(mine.values())} of {len(marks)} ({those})")
    return (
        f"Not all of these cells are of the same {what}. Most are of {most} ({count} of {sum(every.values())}); of others: "
        f"{'; '.join(others)}."
    )


def _code(record: Record) -> str:
    return f"`{code_of(record)}`" if code_of(record) else BEFORE


def _precision(record: Record) -> str:
    return str(record.get("environment", {}).get("dtype", ""))


def _copy(record: Record) -> str:
    digest = (record.get("data") or {}).get("digest")
    return f"`{digest}`" if digest else ""


def _data(record: Record) -> str:
    return str(record["values"].get("data", DEFAULTS["data"]))
