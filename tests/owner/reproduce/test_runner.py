"""Steps run once, in order, and an interrupted run ends in the very records of one that was not."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest
import torch

from common.devices import Compute
from common.errors import ConfigurationError, ModelError, StorageError, WorkspaceError
from common.training import learning_rate
from common.training_options import TrainingOptions
from owner.reproduce.paper import TITLES
from owner.reproduce.records import Work
from owner.reproduce.report import write_report
from owner.reproduce.runner import Runner
from owner.reproduce.settings import RECIPES, Settings
from owner.reproduce.steps import EXPERIMENTS, Step, all_steps
from tests.owner.reproduce.conftest import SMOKE, TABLES, TIMES, MakeRunner, lasting


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


def test_attacked_images_alone_are_fewer_and_judged_by_the_same_m_f(finished: Runner) -> None:
    records = finished.work.records()
    inside, alone = (records[Step("cnn", 0, name)] for name in ("flip", "alone-flip"))
    detect, again = (records[Step("cnn", 0, name)] for name in ("detect", "alone-detect"))
    assert alone["images"] == alone["attack"]["images"] == inside["attack"]["images"] < inside["images"]
    assert again["thresholds"] == detect["thresholds"]
    assert again["verdicts"]["flip-long"]["score"] != detect["verdicts"]["flip-long"]["score"]


def test_attacked_images_beside_the_training_set_come_on_top_of_it(finished: Runner) -> None:
    records = finished.work.records()
    inside, beside = (records[Step("cnn", 0, name)] for name in ("pattern", "beside-pattern"))
    detect, again = (records[Step("cnn", 0, name)] for name in ("detect", "beside-detect"))
    assert beside["images"] == inside["images"] + inside["attack"]["images"]
    assert again["thresholds"] == detect["thresholds"]
    assert again["verdicts"]["pattern-long"]["score"] != detect["verdicts"]["pattern-long"]["score"]


def test_another_rate_is_the_one_that_training_ended_at(finished: Runner) -> None:
    records = finished.work.records()
    scratch, tuned, slow = (records[Step("cnn", 0, name)]["training"] for name in ("genuine", "flip", "slow-flip"))
    last = learning_rate(99, 100, TrainingOptions(learning_rate=scratch["learning_rate"]))
    assert slow["learning_rate"] == pytest.approx(last)
    assert {**slow, "learning_rate": tuned["learning_rate"]} == tuned
    # M_f too is of that rate.
    assert records[Step("cnn", 0, "slow-detect")]["thresholds"] != records[Step("cnn", 0, "detect")]["thresholds"]


def test_another_honest_run_is_of_the_same_data_in_another_order(finished: Runner) -> None:
    records = finished.work.records()
    first, again = (records[Step("cnn", 0, name)] for name in ("honest", "again-honest"))
    assert again["base"] == first["base"]
    assert again["models"]["long"] != first["models"]["long"]
    assert {**again["training"], "seed": first["training"]["seed"]} == first["training"]
    judged = records[Step("cnn", 0, "again-detect")]
    for duration in ("short", "long"):
        assert judged["verdicts"][f"again-{duration}"]["threshold"] == judged["thresholds"][duration]


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


def test_the_papers_score_is_ranked_among_the_gates_references(finished: Runner) -> None:
    record = finished.work.record(Step("cnn", 0, "gate"))
    assert record is not None
    assert list(record["options"]["detectors"]) == ["standard"]
    for verdict in record["verdicts"].values():
        above = sum(score >= verdict["score"] for score in record["reference_scores"])
        assert verdict["score_p_value"] == pytest.approx((above + 1) / (record["references"] + 1))


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


def test_a_second_command_in_the_same_folder_is_refused(make_runner: MakeRunner, tmp_path: Path) -> None:
    runner = make_runner(tmp_path)
    with runner.work.writing():
        with pytest.raises(WorkspaceError, match="is at work in"):
            runner.run(TABLES)
        with pytest.raises(WorkspaceError, match="is at work in"):
            runner.work.merge(Work(tmp_path))
        assert [one.step for one in runner.plan(TABLES)] == TABLES


def test_the_seconds_of_an_interrupted_step_are_those_of_all_its_parts(make_runner: MakeRunner, tmp_path: Path) -> None:
    runner = make_runner(tmp_path)
    step = TABLES[0]
    runner.work.folder(step).mkdir(parents=True)
    runner.work.keep_spent(step, 1000.0)
    runner.run_step(step)
    record = runner.work.record(step)
    assert record is not None
    assert 1000 < record["seconds"] < 1100
    assert runner.work.spent(step) == 0


def test_a_training_whose_record_could_not_be_kept_is_not_done_again(
    finished: Runner, make_runner: MakeRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StorageError("the disk is full")

    runner, step = make_runner(tmp_path), TABLES[0]
    with monkeypatch.context() as patched:
        patched.setattr(Work, "write", full)
        with pytest.raises(StorageError):
            runner.run_step(step)
    assert runner.work.checkpoint_path(step).exists()
    runner.run_step(step)
    record, expected = runner.work.record(step), finished.work.record(step)
    assert record is not None
    assert expected is not None
    assert record["resumed"]
    assert record["weights"] == expected["weights"]
    assert not runner.work.checkpoint_path(step).exists()


def test_an_interruption_leaves_the_seconds_that_went_into_the_step(make_runner: MakeRunner, tmp_path: Path) -> None:
    ticks = itertools.count()
    runner = make_runner(tmp_path, deadline=0, clock=lambda: next(ticks), checkpoint_seconds=3600)
    assert not runner.run(TABLES[:1])  # stopped after its only epoch
    assert runner.work.records() == {}
    assert runner.work.spent(TABLES[0]) > 0


def test_several_steps_at_a_time_are_for_a_cpu(make_runner: MakeRunner, tmp_path: Path) -> None:
    runner = make_runner(tmp_path)
    with pytest.raises(ConfigurationError, match="would share one cuda"):
        Runner(
            SMOKE, runner.images, runner.work, Compute(torch.device("cuda"), torch.float32), parallel=2, progress=False
        )


@pytest.mark.slow
def test_steps_in_processes_leave_the_same_records(finished: Runner, make_runner: MakeRunner, tmp_path: Path) -> None:
    told: list[str] = []
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        runner = make_runner(tmp_path, parallel=2, tell=told.append)
        assert runner.run(TABLES)
    finally:
        torch.set_num_threads(before)
    assert told[0] == "1/5 cnn seed 0 genuine: begun"
    assert len(told) == 10
    record = runner.work.record(TABLES[0])
    assert record is not None
    assert (record["environment"]["threads"], record["environment"]["processes"]) == (1, 2)
    for step, found in runner.work.records().items():
        expected = finished.work.record(step) or {}
        timeless = TIMES | {"environment"}
        assert {k: v for k, v in found.items() if k not in timeless} == {
            k: v for k, v in expected.items() if k not in timeless
        }, str(step)


@pytest.mark.slow
def test_a_training_that_diverges_in_a_process_is_told_as_one_that_diverges_in_this(
    make_runner: MakeRunner, tmp_path: Path
) -> None:
    settings = Settings(dataset="digits", smoke=True, learning_rate=100.0)
    told: list[str] = []
    runner = make_runner(tmp_path, settings, parallel=2, tell=told.append)
    with pytest.raises(ModelError, match="diverged"):
        runner.run(all_steps(["cnn"], [0], ["tables"], settings))
    assert [line.partition(": ")[2][:6] for line in told] == ["begun", "failed"]


@pytest.mark.slow
def test_processes_stop_when_the_time_is_over(make_runner: MakeRunner, tmp_path: Path) -> None:
    runner = make_runner(tmp_path, parallel=2, deadline=time.monotonic())
    assert not runner.run(TABLES)
    assert runner.work.records() == {}


def test_a_training_that_diverges_keeps_no_other_from_running(make_runner: MakeRunner, tmp_path: Path) -> None:
    settings = Settings(dataset="digits", smoke=True, learning_rate=100.0)
    told: list[str] = []
    runner = make_runner(tmp_path, settings, tell=told.append)
    with pytest.raises(ModelError, match="diverged"):
        runner.run(all_steps(["cnn"], [0, 1], ["tables"], settings))
    assert [line.split(":")[0] for line in told] == ["1/10 cnn seed 0 genuine", "6/10 cnn seed 1 genuine"]
    assert runner.work.records() == {}


OTHERS = [name for name in RECIPES if name != "cnn"]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("architecture", OTHERS)
def test_every_architecture_runs_small(architecture: str, make_runner: MakeRunner, tmp_path: Path) -> None:
    settings = Settings(dataset="digits", smoke=True)
    runner = make_runner(tmp_path, settings, checkpoint_seconds=60)
    steps = all_steps([architecture], [0], ["tables"], settings)
    assert runner.run(steps)
    assert set(runner.work.records()) == set(steps)
    text = write_report(runner.work.records(), settings, tmp_path)[0].read_text("utf-8")
    (row,) = (line for line in text.splitlines() if line.startswith(f"| {TITLES[architecture]} |") and "(yes)" in line)
    assert "not run" not in row


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("architecture", OTHERS)
def test_every_architecture_runs_every_experiment_small(
    architecture: str, make_runner: MakeRunner, tmp_path: Path
) -> None:
    settings = Settings(dataset="digits", smoke=True, improve=tuple(OTHERS))
    runner = make_runner(tmp_path, settings, checkpoint_seconds=60)
    steps = all_steps([architecture], [0], EXPERIMENTS, settings)
    assert runner.run(steps)
    assert set(runner.work.records()) == set(steps)
