"""What of a comparison is done, what is left, and about how long that takes."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from owner.compare.configuration import Comparison
from owner.federated.compare import read_record
from owner.federated.grids import Cell

LIKE: tuple[tuple[str, ...], ...] = (
    ("setting", "data", "model", "strategy"),
    ("setting", "data", "model"),
    ("data", "model"),
    ("model",),
    (),
)
"""A cell takes about as long as the median of those that are like it in these; the first that any has run of. Not the mean: the first of a process makes what the others
share, and one that a machine was asleep in would be the rest's estimate."""


def plan_of(comparison: Comparison, directory: Path, *, keep_older: bool = False) -> list[dict[str, Any]]:
    """A row a block: block, cells, done, unserved (known to be n/a), to_do, and seconds, what those take one after the other; None
    where no cell at all has run. A cell of two blocks is counted in each. keep_older: see `read_record`. Raises StorageError for a damaged
    record."""
    records = {cell.name: read_record(directory, cell, keep_older=keep_older) for cell in comparison.cells}
    times: dict[tuple[Any, ...], list[float]] = {}
    for record in records.values():
        if record is not None and record["status"] == "done":
            for keys in LIKE:
                times.setdefault(_key(record["values"], keys), []).append(record["wall_seconds"])
    rows = []
    for block in comparison.blocks:
        found = [records[cell.name] for cell in block.cells]
        left = [cell for cell, record in zip(block.cells, found, strict=True) if record is None and cell.config]
        expected = [_expected(cell, times) for cell in left]
        rows.append(
            {
                "block": block.name,
                "cells": len(block.cells),
                "done": sum(record is not None and record["status"] == "done" for record in found),
                "unserved": sum(
                    record["status"] == "n/a" if record is not None else cell.config is None
                    for cell, record in zip(block.cells, found, strict=True)
                ),
                "to_do": len(left),
                "seconds": None if None in expected else sum(one for one in expected if one is not None),
            }
        )
    return rows


def _expected(cell: Cell, times: Mapping[tuple[Any, ...], list[float]]) -> float | None:
    for keys in LIKE:
        if found := times.get(_key(cell.values, keys)):
            return statistics.median(found)
    return None


def _key(values: Mapping[str, Any], keys: tuple[str, ...]) -> tuple[Any, ...]:
    return (keys, *(values.get(key) for key in keys))
