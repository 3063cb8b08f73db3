"""The table of the classification auto-encoder: what it is made of, and that what is done is not done again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from benchmarks.cae import ALPHAS, Cell, cells, measure, page, sets, summary
from common.datasets import load


@pytest.fixture(scope="module")
def digits():  # type: ignore[no-untyped-def]
    return load("digits")


def test_a_cells_sets_share_no_image(digits) -> None:  # type: ignore[no-untyped-def]
    parts = sets(Cell("digits", "flipping", 0.2, 0), digits)
    rows = torch.cat([parts[name][0] for name in ("train", "clean", "validation")])
    assert len(torch.unique(rows, dim=0)) == len(rows)
    assert {len(parts[name][1]) for name in ("train", "clean", "validation")} == {len(rows) // 3}
    assert all(set(labels.tolist()) == {0, 1} for _, labels in parts.values())


def test_a_cell_that_is_done_is_not_measured_again(digits, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    cell = Cell("digits", "semi-optimal", 0.2, 0, epochs=2)
    first = measure(cell, digits, tmp_path)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert measure(cell, digits, tmp_path) == json.loads(json.dumps(first))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == written
    other = measure(dataclasses.replace(cell, epochs=3), digits, tmp_path)
    assert other["cell"]["epochs"] == 3
    assert len(list(tmp_path.iterdir())) == 2


def test_the_table_has_mean_and_spread_over_seeds_and_says_when_it_is_incomplete(digits, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    planned = [cell for cell in cells(["digits"], [0.2], 3, epochs=5) if cell.attack == "flipping"]
    records = [measure(cell, digits, tmp_path) for cell in planned]
    rows = summary(records)
    assert len(rows) == 2 * len(ALPHAS)
    assert all(row["n"] == 3 for row in rows)
    shown = page(records, "a command", planned=3)
    assert "±" in shown
    assert "Incomplete" not in shown
    assert "Incomplete: 2 of 3 cells" in page(records[:2], "a command", planned=3)
    row = next(row for row in rows if row["learnt_from"] == "clean" and row["alpha"] == 0.5)
    values = [r["rows"][ALPHAS.index(0.5)]["f1"] for r in records]
    assert row["f1"]["mean"] == pytest.approx(sum(values) / 3)
