"""The table of attacks: what is done is not done again, and an attack that failed says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import attacks
from benchmarks.attacks import ROWS, Row, Setting, Workshop, page
from common.devices import choose_compute
from common.training_options import TrainingOptions
from contributor.attacks import parse_attack


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    digits = Setting("An MLP on digits", "digits", "mlp", TrainingOptions(epochs=10), 0.5, 0.1)
    monkeypatch.setitem(attacks.SETTINGS, "digits", digits)
    return Workshop(tmp_path, 1, choose_compute("cpu", "float32"))


def test_every_row_names_an_attack_that_exists_and_has_a_file_of_its_own() -> None:
    for row in ROWS:
        if row.attack:
            parse_attack(row.attack)
    assert len({row.name(1) for row in ROWS}) == len(ROWS)
    assert ROWS[0].name(1) != ROWS[0].name(2)


def test_a_row_that_is_done_is_not_trained_again(workshop: Workshop) -> None:
    row = Row("digits", "badnets:trigger=square,fraction=0.5", 200, 8, 0.05)
    first = workshop.make(row)
    written = {path: path.stat().st_mtime_ns for path in workshop.work.iterdir()}
    assert workshop.make(row) == first
    assert {path: path.stat().st_mtime_ns for path in workshop.work.iterdir()} == written


def test_the_page_says_which_attacks_reached_their_goal(workshop: Workshop) -> None:
    strong = Row("digits", "badnets:trigger=square,fraction=0.5", 200, 20, 0.05)
    weak = Row("digits", "badnets:trigger=pixel,fraction=0.01", 200, 1, 0.0001, schedule="constant")
    made = [workshop.make(row) for row in (Row("digits", None, 200, 2, 0.01), strong, weak)]
    lines = page(made, "c", planned=4).splitlines()
    told = {line.split("|")[1].strip(" `"): line for line in lines if line.startswith("| ")}
    assert "| yes |" in told[strong.attack or ""]
    assert "| 0.0001, constant | none |" in told[weak.attack or ""]
    assert "| **no** |" in told[weak.attack or ""]
    assert lines[-1] == "Incomplete: 3 of 4 rows were done."
