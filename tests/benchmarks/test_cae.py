"""The table of the classification auto-encoder: what it is made of, and that what is done is not done again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

import benchmarks.cae
import common.examples
import common.randomness
from benchmarks.cae import ALPHAS, DETECTORS, SHOWN_ALPHA, Cell, cells, code, detection, measure, page, sets, summary
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


def test_a_record_of_other_code_counts_as_missing(digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    cell = Cell("digits", "flipping", 0.2, 0, epochs=1)
    first = measure(cell, digits, tmp_path)
    (path,) = tmp_path.iterdir()
    assert first["code"] == json.loads(path.read_text())["code"] == code()
    monkeypatch.setattr(benchmarks.cae, "code", lambda: "other")
    again = measure(cell, digits, tmp_path)
    assert json.loads(path.read_text())["code"] == again["code"] == "other"
    assert again["rows"] == json.loads(json.dumps(first["rows"]))


def test_the_code_of_a_record_is_that_of_attacks_detectors_data_and_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(benchmarks.cae, "code_digest", lambda *packages: asked.append(packages) or "packages")
    as_it_is = code.__wrapped__()
    assert asked == [("common.datasets", "owner.data_poisoning")]
    for module in (benchmarks.cae, common.examples, common.randomness):
        changed = tmp_path / f"{module.__name__}.py"
        changed.write_text(Path(str(module.__file__)).read_text() + "# changed")
        with monkeypatch.context() as patched:
            patched.setattr(module, "__file__", str(changed))
            assert code.__wrapped__() != as_it_is
    assert code.__wrapped__() == as_it_is


def test_where_an_attack_changed_nothing_there_is_nothing_to_find() -> None:
    found = detection(torch.tensor([True, False]), torch.tensor([1.0, 0.0]), torch.tensor([False, False]))
    assert set(found.values()) == {None}


def test_the_table_has_mean_and_spread_over_seeds_and_says_when_it_is_incomplete(digits, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    planned = [cell for cell in cells(["digits"], [0.2], 3, epochs=5) if cell.attack == "flipping"]
    records = [measure(cell, digits, tmp_path) for cell in planned]
    rows = summary(records)
    assert len(rows) == len(DETECTORS) * len(ALPHAS)
    assert all(row["n"] == 3 for row in rows)
    shown = page(records, "a command", planned=3)
    assert "±" in shown
    assert "Incomplete" not in shown
    assert "Incomplete: 2 of 3 cells" in page(records[:2], "a command", planned=3)
    assert all(f"| {detector} | {source} | {SHOWN_ALPHA:g} | 3 |" in shown for detector, source in DETECTORS)
    row = next(row for row in rows if row["learnt_from"] == "clean" and row["alpha"] == 0.5)
    values = [r["rows"][ALPHAS.index(0.5)]["f1"] for r in records]
    assert row["f1"]["mean"] == pytest.approx(sum(values) / 3)
