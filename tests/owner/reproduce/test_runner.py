"""Steps run once, in order, and an interrupted run ends in the very records of one that was not."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from common.errors import ConfigurationError, ModelError, StorageError
from owner.reproduce.records import Work
from owner.reproduce.report import raw, write_report
from owner.reproduce.runner import Runner
from owner.reproduce.settings import RECIPES, Settings
from owner.reproduce.steps import EXPERIMENTS, Step, all_steps
from tests.owner.reproduce.conftest import SMOKE, MakeRunner

TABLES = all_steps(["cnn"], [0], ["tables"], SMOKE)
TIMES = {"seconds", "made", "resumed", "speed"}


def lasting(record: dict[str, Any]) -> dict[str, Any]:
    """A record without what depends on the clock."""
    return {key: value for key, value in record.items() if key not in TIMES}


def test_every_step_leaves_a_record_and_is_not_run_again(finished: Runner) -> None:
    steps = all_steps(["cnn"], [0], EXPERIMENTS, SMOKE)
    assert set(finished.work.records()) == set(steps)
    before = {step: finished.work.record_path(step).read_bytes() for step in steps}
    assert finished.run(steps)
    assert {step: finished.work.record_path(step).read_bytes() for step in steps} == before


def test_the_record_of_an_attack_tells_its_success_before_and_after(finished: Runner) -> None:
    record = finished.work.record(Step("cnn", 0, "flip"))
    assert record is not None
    assert record["attack"]["source"] == "7"
    assert set(record["models"]) == {"short", "long"}
    for model in (record["base"], *record["models"].values()):
        assert 0 <= model["success"] <= 1
        assert 0 <= model["held_out_success"] <= 1


def test_detection_records_six_models_and_their_histograms(finished: Runner) -> None:
    record = finished.work.record(Step("cnn", 0, "detect"))
    assert record is not None
    assert len(record["models"]) == 7  # the paper's six, the honest one in both durations
    assert all(sum(model["counts"]) == record["triggers"] for model in record["models"].values())
    honest, flip = record["models"]["honest-short"], record["verdicts"]["flip-short"]
    assert flip["threshold"] == pytest.approx(honest["mean"] + honest["std"])
    assert flip["detected"] == (record["models"]["flip-short"]["mean"] > flip["threshold"])


def test_the_gate_prints_its_resolution_and_vets_both_groups(finished: Runner) -> None:
    record = finished.work.record(Step("cnn", 0, "gate"))
    assert record is not None
    assert len(record["verdicts"]) == 9
    assert {v["resolution"] for v in record["verdicts"].values()} == {1 / (record["references"] + 1)}


def test_an_interrupted_run_gives_the_same_records(finished: Runner, make_runner: MakeRunner, tmp_path: Path) -> None:
    steps = all_steps(["cnn"], [0], ["tables", "gate"], SMOKE)
    stops = 0
    # A clock that moves on by one with each epoch and step, and a little more time in each run: stops fall everywhere.
    for given in range(20):
        ticks = itertools.count()
        if make_runner(tmp_path, deadline=given, clock=lambda ticks=ticks: next(ticks)).run(steps):
            break
        stops += 1
    assert stops >= 5
    found, expected = Work(tmp_path).records(), finished.work.records()
    for step in steps:
        if step.name == "gate":  # there, Fig. 6's models were at hand too
            continue
        assert lasting(found[step]) == lasting(expected[step]), str(step)
    ours, theirs = (records[Step("cnn", 0, "gate")]["verdicts"] for records in (found, expected))
    assert ours == {name: theirs[name] for name in ours}


def test_other_settings_need_another_folder(make_runner: MakeRunner, tmp_path: Path) -> None:
    make_runner(tmp_path)
    with pytest.raises(ConfigurationError, match=r"fraction 0\.5, now 0\.25"):
        make_runner(tmp_path, Settings(dataset="digits", smoke=True, improve=("cnn",), fraction=0.25))


def test_a_training_that_diverges_keeps_no_other_from_running(make_runner: MakeRunner, tmp_path: Path) -> None:
    settings = Settings(dataset="digits", smoke=True, learning_rate=100.0)
    told: list[str] = []
    runner = make_runner(tmp_path, settings, tell=told.append)
    with pytest.raises(ModelError, match="diverged"):
        runner.run(all_steps(["cnn"], [0, 1], ["tables"], settings))
    assert [line.split(":")[0] for line in told] == ["1/10 cnn seed 0 genuine", "6/10 cnn seed 1 genuine"]
    assert runner.work.records() == {}


def test_a_damaged_record_is_named(make_runner: MakeRunner, tmp_path: Path) -> None:
    runner = make_runner(tmp_path)
    assert runner.run(TABLES[:1])
    runner.work.record_path(TABLES[0]).write_text("{")
    with pytest.raises(StorageError, match=r"genuine\.json"):
        runner.work.records()


def test_records_of_another_machine_are_taken_over_and_its_weights_made_anew(
    finished: Runner, make_runner: MakeRunner, tmp_path: Path
) -> None:
    for step in TABLES[:4]:
        (tmp_path / "other" / "cnn" / "seed-0").mkdir(parents=True, exist_ok=True)
        Work(tmp_path / "other").write(step, finished.work.record(step) or {})
    Work(tmp_path / "other").open(SMOKE)
    runner = make_runner(tmp_path / "here")
    assert runner.work.merge(Work(tmp_path / "other")) == 4
    assert runner.work.merge(Work(tmp_path / "other")) == 0
    assert [step.name for step in runner.pending(TABLES)] == ["genuine", "honest", "flip", "pattern", "detect"]
    assert runner.run(TABLES)
    detect = Step("cnn", 0, "detect")
    assert lasting(runner.work.records()[detect]) == lasting(finished.work.records()[detect])


def test_the_report_of_partial_records_says_what_was_not_run(finished: Runner, tmp_path: Path) -> None:
    records = {step: record for step, record in finished.work.records().items() if step.name in {"genuine", "flip"}}
    page, numbers = write_report(records, SMOKE, tmp_path, command="the command")
    text = page.read_text("utf-8")
    accuracy = records[Step("cnn", 0, "genuine")]["accuracy"]
    assert f"| CNN | {100 * accuracy:.2f} (87.15) | not run (87.10) |" in text
    assert "| VGG19 | not run (93.90) |" in text
    assert "| CNN | not run (yes) | not run (yes) | not run (NO) | not run (yes) |" in text
    assert len(json.loads(numbers.read_text("utf-8"))["records"]) == 2


def test_the_report_of_nothing_is_a_report(tmp_path: Path) -> None:
    page, _ = write_report({}, SMOKE, tmp_path, command="the command")
    assert page.read_text("utf-8").count("not run") > 50


def test_the_report_lists_verdicts_that_differ_from_the_papers(finished: Runner, tmp_path: Path) -> None:
    records = copy.deepcopy(finished.work.records())
    for name in ("flip-short", "flip-long", "pattern-short", "pattern-long"):
        records[Step("cnn", 0, "detect")]["verdicts"][name]["detected"] = True
    text = write_report(records, SMOKE, tmp_path, command="the command")[0].read_text("utf-8")
    assert "CNN, PAA 1: detected by us: yes; in the paper not detected." in text
    assert "CNN, FA 1: detected by us" not in text


def test_several_seeds_are_told_with_their_range(finished: Runner, tmp_path: Path) -> None:
    records = finished.work.records()
    records[Step("cnn", 1, "genuine")] = records[Step("cnn", 0, "genuine")] | {"accuracy": 0.9}
    records[Step("cnn", 0, "genuine")] = records[Step("cnn", 0, "genuine")] | {"accuracy": 0.8}
    text = write_report(records, SMOKE, tmp_path, command="the command")[0].read_text("utf-8")
    assert "85.00 (80.00 to 90.00) (87.15)" in text


def test_raw_numbers_hold_seed_versions_and_hardware_but_no_pictures(finished: Runner) -> None:
    rows = raw(finished.work.records(), SMOKE, command="the command")["records"]
    assert all({"seed", "seconds", "environment", "data"} <= set(row) for row in rows)
    assert all("examples" not in row.get("attack", {}) for row in rows)


def test_figures_are_drawn_as_png_and_svg(finished: Runner, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from owner.reproduce.drawings import draw_all

    drawn = {path.name for path in draw_all(finished.work.records(), SMOKE, tmp_path)}
    assert drawn == {
        f"paper-{what}.{suffix}"
        for what in ("examples", "histograms-cnn", "improvement-cnn")
        for suffix in ("png", "svg")
    }


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("architecture", [name for name in RECIPES if name != "cnn"])
def test_every_architecture_runs_small(architecture: str, make_runner: MakeRunner, tmp_path: Path) -> None:
    settings = Settings(dataset="digits", smoke=True)
    runner = make_runner(tmp_path, settings, checkpoint_seconds=60)
    steps = all_steps([architecture], [0], ["tables", "gate"], settings)
    assert runner.run(steps)
    text = write_report(runner.work.records(), settings, tmp_path, command="the command")[0].read_text("utf-8")
    assert text.count("not run") > 0
    assert set(runner.work.records()) == set(steps)
