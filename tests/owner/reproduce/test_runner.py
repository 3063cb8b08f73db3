"""Steps run once, in order, and an interrupted run ends in the very records of one that was not."""

from __future__ import annotations

import copy
import itertools
import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from common.devices import Compute
from common.errors import ConfigurationError, ModelError, StorageError, WorkspaceError
from common.training import learning_rate
from common.training_options import TrainingOptions
from owner.reproduce.drawings import draw_all
from owner.reproduce.records import Published, Work, torn_apart
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


def test_attacked_images_alone_are_fewer_and_judged_by_the_same_m_f(finished: Runner) -> None:
    records = finished.work.records()
    inside, alone = (records[Step("cnn", 0, name)] for name in ("flip", "alone-flip"))
    detect, again = (records[Step("cnn", 0, name)] for name in ("detect", "alone-detect"))
    assert alone["images"] == alone["attack"]["images"] == inside["attack"]["images"] < inside["images"]
    assert again["thresholds"] == detect["thresholds"]
    assert again["verdicts"]["flip-long"]["score"] != detect["verdicts"]["flip-long"]["score"]


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


def test_a_record_in_the_place_of_another_steps_is_named(make_runner: MakeRunner, tmp_path: Path) -> None:
    runner = make_runner(tmp_path)
    assert runner.run(TABLES[:1])
    runner.work.record_path(TABLES[1]).write_bytes(runner.work.record_path(TABLES[0]).read_bytes())
    with pytest.raises(StorageError, match=r"honest\.json is the record of another step: cnn seed 0 genuine"):
        Work(tmp_path / "here").merge(runner.work)


def test_work_goes_on_from_published_numbers(finished: Runner, make_runner: MakeRunner, tmp_path: Path) -> None:
    """Everything but the pictures of attacked images comes back; where all steps of a seed are there, none is run again."""
    records = finished.work.records()
    _, numbers = write_report(records, finished.work.settings(), tmp_path / "out")
    runner = make_runner(tmp_path / "here")
    assert runner.work.merge(Published(numbers)) == len(records)
    assert runner.work.merge(Published(numbers)) == 0
    assert runner.pending(TABLES) == []
    again = write_report(runner.work.records(), runner.work.settings(), tmp_path / "again")
    assert [path.read_text() for path in again] == [
        path.read_text() for path in (tmp_path / "out" / "paper.md", numbers)
    ]
    figures = {path.name for path in draw_all(runner.work.records(), runner.work.settings(), tmp_path / "again")}
    assert "paper-histograms-cnn.png" in figures
    assert "paper-examples.png" not in figures


def published(architecture: str, seed: int, step: str) -> str:
    about = {"architecture": architecture, "seed": seed, "step": step, "environment": {}, "data": "digits"}
    return json.dumps({"format": 1, "settings": {}, "records": [about]})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "is no record of format"),
        ("{", "is no record"),
        ('{"format": 1}', "has no settings"),
        ('{"format": 1, "settings": {}, "records": {}}', "has no records"),
        ('{"format": 1, "settings": {}, "records": [{"seed": 0}]}', "without architecture"),
        ('{"format": 1, "settings": {}, "records": [NaN]}', "NaN is no number"),
        (published("../../elsewhere", 0, "genuine"), "of no step that there can be"),
        (published("cnn", -3, "genuine"), "of no step that there can be"),
        (published("cnn", 0, "../genuine"), "of no step that there can be"),
        ('{"format": 1, "settings": {}, "records": [{"architecture": "cnn", "seed": 0, "step": "jpeg"}]}', "without"),
    ],
)
def test_what_is_no_published_numbers_is_refused(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "paper.json").write_text(text)
    published = Published(tmp_path / "paper.json")
    with pytest.raises(StorageError, match=says):
        (published.settings if "no settings" in says else published.records)()


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


def of_another_machine(record: dict[str, Any]) -> dict[str, Any]:
    """As the same step leaves it where the same seed gives other weights."""
    text = json.dumps({"weights": record.get("weights", {}), "of": record.get("of", {})})
    return record | json.loads(re.sub("[0-9a-f]{64}", "elsewhere", text))


def begun_elsewhere(finished: Runner, root: Path, *names: str) -> None:
    for name in names:
        step = Step("cnn", 0, name)
        Work(root).write(step, of_another_machine(finished.work.record(step) or {}))


def test_what_was_made_from_weights_that_came_out_otherwise_is_made_again(
    finished: Runner, make_runner: MakeRunner, tmp_path: Path
) -> None:
    begun_elsewhere(finished, tmp_path, "genuine", "honest", "flip", "pattern", "detect", "jpeg")
    runner = make_runner(tmp_path)
    variants, detect = Step("cnn", 0, "variants"), TABLES[-1]
    assert [one.step.name for one in runner.plan([variants])] == ["genuine", "honest", "flip", "pattern", "variants"]
    assert runner.perhaps_again([variants]) == [detect]
    assert runner.run([variants])
    assert torn_apart(runner.work.records()) == [detect]
    assert runner.pending([*TABLES, variants, Step("cnn", 0, "jpeg")]) == [detect]
    assert runner.run(TABLES)
    assert torn_apart(runner.work.records()) == []
    assert lasting(runner.work.records()[detect]) == lasting(finished.work.records()[detect])


def test_a_missing_model_makes_all_that_came_from_it_pending_in_the_same_run(
    finished: Runner, make_runner: MakeRunner, tmp_path: Path
) -> None:
    """The fine-tunes' weights are there, their M's are not: what is asked for is judged of fine-tunes of the M that is made now."""
    begun_elsewhere(finished, tmp_path, "genuine", "honest", "flip", "pattern")
    work = Work(tmp_path)
    for step in TABLES[1:4]:
        for name in step.models:
            shutil.copy(finished.work.weights_path(step, name), work.weights_path(step, name))
        work.write(step, (work.record(step) or {}) | {"weights": work.digests(step)})
    runner = make_runner(tmp_path)
    assert runner.pending(TABLES) == [TABLES[0], TABLES[-1]]
    assert runner.run(TABLES)
    found = runner.work.records()
    assert torn_apart(found) == []
    assert found[TABLES[-1]]["of"]["genuine"] == found[TABLES[0]]["weights"] == found[TABLES[1]]["of"]["genuine"]


def test_weights_newer_than_their_record_are_made_again(
    finished: Runner, make_runner: MakeRunner, tmp_path: Path
) -> None:
    """As a run leaves them that is killed after it has saved them, and before it has said what they are."""
    runner = make_runner(tmp_path)
    assert runner.run(TABLES[:1])
    path = runner.work.weights_path(TABLES[0], "genuine")
    path.write_bytes(finished.work.weights_path(TABLES[0], "jpeg").read_bytes())
    assert not runner.work.has_weights(TABLES[0])
    assert [step.name for step in runner.pending(TABLES[:2])] == ["genuine", "honest"]


@pytest.mark.parametrize("known_by", ["digest", "accuracy"])
def test_records_of_two_models_are_not_put_side_by_side(finished: Runner, known_by: str, tmp_path: Path) -> None:
    genuine, honest = (dict(finished.work.record(step) or {}) for step in TABLES[:2])
    if known_by == "digest":
        genuine = of_another_machine(genuine)
    else:
        genuine, honest = ({k: v for k, v in one.items() if k not in {"weights", "of"}} for one in (genuine, honest))
        genuine["accuracy"] = 2.0
    there, seed_1 = Work(tmp_path / "there"), Step("cnn", 1, "genuine")
    for work, step, record in (
        (Work(tmp_path / "here"), TABLES[0], genuine),
        (there, TABLES[1], honest),
        (there, seed_1, genuine | {"seed": 1}),
    ):
        work.open(SMOKE)
        work.write(step, record)
    with pytest.raises(
        ConfigurationError, match=r"1 records taken over, but none .* other models .*: cnn seed 0 honest"
    ):
        Work(tmp_path / "here").merge(there)
    assert set(Work(tmp_path / "here").records()) == {TABLES[0], seed_1}


def test_a_judgement_of_other_fine_tunes_is_torn_from_these(finished: Runner) -> None:
    records = {step: finished.work.record(step) or {} for step in TABLES}
    assert torn_apart(records) == []
    assert torn_apart(records | {TABLES[1]: of_another_machine(records[TABLES[1]])}) == [TABLES[1], TABLES[-1]]
    older = {k: v for k, v in records[TABLES[-1]].items() if k != "of"}
    assert torn_apart(records | {TABLES[-1]: older}) == [TABLES[-1]]


def test_the_jpeg_estimate_is_of_seeds_that_have_both(finished: Runner, tmp_path: Path) -> None:
    genuine, jpeg = (finished.work.record(Step("cnn", 0, name)) or {} for name in ("genuine", "jpeg"))
    records = {
        Step("cnn", 0, "genuine"): genuine | {"accuracy": 0.8},
        Step("cnn", 0, "jpeg"): jpeg | {"accuracy": 0.7},
        Step("cnn", 1, "genuine"): genuine | {"accuracy": 0.2},
    }
    text = write_report(records, SMOKE, tmp_path)[0].read_text("utf-8")
    assert "| CNN | 80.00 | 70.00 | 90.00 |" in text


def test_the_gates_verdicts_are_told_by_seed_and_added_up(finished: Runner, tmp_path: Path) -> None:
    gate = finished.work.record(Step("cnn", 0, "gate")) or {}

    def decided(decision: str, *, detectors: list[str] | None) -> dict[str, Any]:
        found = {
            name: v | {"decision": decision, "detected": False, "score_p_value": 1.0}
            for name, v in gate["verdicts"].items()
        }
        changed = gate | {"verdicts": found}
        return (
            changed | {"detectors": detectors} if detectors else {k: v for k, v in changed.items() if k != "detectors"}
        )

    records = {
        Step("cnn", 0, "gate"): decided("accepted", detectors=None),
        Step("cnn", 1, "gate"): decided("rejected", detectors=["one", "two"]),
    }
    text = write_report(records, SMOKE, tmp_path)[0].read_text("utf-8")
    assert "| seed 0: accepted; seed 1: rejected |" in text
    assert "Of 8 attacked models of contributors the gate rejects 4 and leaves 0 to a person" in text
    assert "Of 4 honest models of contributors the gate rejects 2" in text
    assert "Detectors of CNN seed 0: those of an earlier version" in text
    assert "Detectors of CNN seed 1: one, two." in text


def test_the_report_of_partial_records_says_what_was_not_run(finished: Runner, tmp_path: Path) -> None:
    records = {step: record for step, record in finished.work.records().items() if step.name in {"genuine", "flip"}}
    page, numbers = write_report(records, SMOKE, tmp_path)
    text = page.read_text("utf-8")
    accuracy = records[Step("cnn", 0, "genuine")]["accuracy"]
    assert f"| CNN | {100 * accuracy:.2f} (87.15) | not run (87.10) |" in text
    assert "| VGG19 | not run (93.90) |" in text
    assert "| CNN | not run (yes) | not run (yes) | not run (NO) | not run (yes) |" in text
    assert len(json.loads(numbers.read_text("utf-8"))["records"]) == 2


def test_the_report_of_nothing_is_a_report(tmp_path: Path) -> None:
    page, _ = write_report({}, SMOKE, tmp_path)
    assert page.read_text("utf-8").count("not run") > 50


def test_the_report_lists_verdicts_that_differ_from_the_papers(finished: Runner, tmp_path: Path) -> None:
    records = copy.deepcopy(finished.work.records())
    for name in ("flip-short", "flip-long", "pattern-short", "pattern-long"):
        records[Step("cnn", 0, "detect")]["verdicts"][name]["detected"] = True
    text = write_report(records, SMOKE, tmp_path)[0].read_text("utf-8")
    line = next(line for line in text.splitlines() if line.startswith("- CNN, PAA 1: detected by us"))
    assert "detected by us: yes; in the paper not detected." in line
    assert "deviations from M_f's (1 rejects)" in line
    assert "11 other readings" in line  # two durations of M_f, attacked images alone, another rate, seven auto-encoders
    assert "Another honest run of that duration is rejected: " in line
    assert "CNN, FA 1: detected by us" not in text


def test_an_accuracy_that_differs_is_told_with_what_m_itself_lacks(finished: Runner, tmp_path: Path) -> None:
    records = copy.deepcopy(finished.work.records())
    records[Step("cnn", 0, "genuine")]["accuracy"] = 0.80
    records[Step("cnn", 0, "genuine")]["data"] = "cifar10, a JPEG re-encoding"
    records[Step("cnn", 0, "jpeg")]["accuracy"] = 0.78
    records[Step("cnn", 0, "flip")]["models"]["short"]["accuracy"] = 0.79
    text = write_report(records, SMOKE, tmp_path)[0].read_text("utf-8")
    assert (
        "accuracy 80.00 %, in the paper 87.15 %. The images are a JPEG re-encoding; one more takes another 2.00" in text
    )
    assert "accuracy 79.00 %, in the paper 82.60 %. Against the genuine model -1.00 points, in the paper -4.55" in text


def test_figure_6_has_the_papers_accuracies_beside_ours(finished: Runner, tmp_path: Path) -> None:
    name = {"part", "part-honest", "part-flip", "part-pattern", "part-detect"}
    records = {Step("resnet18", 0, s.name): r for s, r in finished.work.records().items() if s.name in name}
    text = write_report(records, SMOKE, tmp_path)[0].read_text("utf-8")
    accuracy = records[Step("resnet18", 0, "part")]["accuracy"]
    assert f"| ResNet18 | M of the part | {100 * accuracy:.2f} (84.60) |" in text
    assert "of 1 runs." in text
    assert "ResNet18, Fig. 6, M of the part: accuracy" in text


def test_several_seeds_are_told_with_their_range(finished: Runner, tmp_path: Path) -> None:
    records = finished.work.records()
    records[Step("cnn", 1, "genuine")] = records[Step("cnn", 0, "genuine")] | {"accuracy": 0.9}
    records[Step("cnn", 0, "genuine")] = records[Step("cnn", 0, "genuine")] | {"accuracy": 0.8}
    text = write_report(records, SMOKE, tmp_path)[0].read_text("utf-8")
    assert "85.00 (80.00 to 90.00) (87.15)" in text


def test_raw_numbers_hold_seed_versions_and_hardware_but_no_pictures(finished: Runner) -> None:
    rows = raw(finished.work.records(), SMOKE)["records"]
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
    text = write_report(runner.work.records(), settings, tmp_path)[0].read_text("utf-8")
    assert text.count("not run") > 0
    assert set(runner.work.records()) == set(steps)
