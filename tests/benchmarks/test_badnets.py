"""The BadNets table: which models it is made of, that what is done is not done again, and what the table says of them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.badnets import Run, answers, chosen_pairs, make, picture, runs, table
from common.datasets import load
from common.devices import choose_compute


def record(run: Run, clean: float, triggered: float | None) -> dict[str, Any]:
    return {"run": asdict(run), "clean_error": clean, "triggered_error": triggered, "cpu_seconds": 60.0}


def test_the_pairs_are_drawn_by_the_seed_and_more_of_them_begin_with_the_same() -> None:
    assert chosen_pairs(9, 0)[:4] == chosen_pairs(4, 0)
    assert chosen_pairs(9, 0) != chosen_pairs(9, 1)
    assert len({(i, j) for i, j in chosen_pairs(90, 0) if i != j}) == 90


def test_both_triggers_are_trained_at_every_dose_and_for_every_pair() -> None:
    listed = runs(3, 0)
    for trigger in ("pixel", "pattern"):
        mine = [run for run in listed if run.trigger == trigger]
        assert sorted(run.fraction for run in mine if run.kind == "all-to-all" and run.fraction) == [0.1, 0.33, 0.5]
        assert len({(run.source, run.target) for run in mine if run.kind == "single"}) == 3
    assert len({run.name for run in listed}) == len(listed)


def test_a_model_that_is_done_is_not_trained_again(tmp_path: Path) -> None:
    data, compute = load("digits"), choose_compute("cpu", "float32")
    run = Run("single", 0, 8, "pattern", 0.5, 3, 8)
    first = make(run, data, tmp_path, compute)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert make(run, data, tmp_path, compute) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == written
    assert 0 <= first["clean_error"] <= 100
    assert 0 <= first["triggered_error"] <= 100


def test_the_table_counts_pairs_and_measures_them_against_the_mean_baseline() -> None:
    models = [record(Run("baseline", 0, 8), 0.8, None), record(Run("baseline", 1, 8), 1.0, None)]
    models += [record(Run("single", 0, 8, "pixel", 0.5, *pair), 1.0, 4.0) for pair in ((1, 2), (3, 4))]
    text = table(models, "command", planned=9)
    assert "| single target, n = 2 | 8 | pixel | 100 | +0.10 to +0.10 against the baseline" in text
    assert "| at most 4.00 (mean 4.00) |" in text
    assert "2 of the paper's 90 pairs" in text
    assert "| 1 to 2 | 1.00 | 4.00 | - | - |" in text
    assert "Incomplete: 4 of 9 models were done." in text


def test_a_filter_answers_the_trigger_by_what_it_changes_about_its_outputs() -> None:
    filters, bias = torch.zeros(16, 1, 5, 5), torch.zeros(16)
    filters[:, 0, 4, 4] = 0.1
    filters[5, 0, 4, 4] = 1.0
    found = answers(filters, bias, torch.zeros(3, 1, 28, 28, dtype=torch.uint8), "pixel")
    assert float(found[5]) == pytest.approx(1.0, abs=1e-5)
    assert float(found[4]) == pytest.approx(0.1, abs=1e-5)


def test_the_picture_shows_baseline_and_badnet_for_both_triggers(tmp_path: Path) -> None:
    data, compute = load("digits"), choose_compute("cpu", "float32")
    wanted = [Run("baseline", 0, 8), *(Run("all-to-all", 0, 8, trigger, 0.33) for trigger in ("pixel", "pattern"))]
    picture([make(run, data, tmp_path, compute) for run in wanted], tmp_path, data.test.images, tmp_path / "f.png")
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
