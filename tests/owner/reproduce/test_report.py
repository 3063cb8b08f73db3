"""The page, the numbers and the figures, of whatever records there are."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from owner.reproduce.drawings import draw_all
from owner.reproduce.readings import SLOW
from owner.reproduce.report import raw, write_report
from owner.reproduce.runner import Runner
from owner.reproduce.steps import Step
from tests.owner.reproduce.conftest import SMOKE


def test_the_jpeg_estimate_is_of_seeds_that_have_both(finished: Runner, tmp_path: Path) -> None:
    genuine, jpeg = (finished.work.record(Step("cnn", 0, name)) or {} for name in ("genuine", "jpeg"))
    records = {
        Step("cnn", 0, "genuine"): genuine | {"accuracy": 0.8},
        Step("cnn", 0, "jpeg"): jpeg | {"accuracy": 0.7},
        Step("cnn", 1, "genuine"): genuine | {"accuracy": 0.2},
    }
    text = write_report(records, SMOKE, tmp_path)[0].read_text("utf-8")
    assert "| CNN | 80.00 | 70.00 | 90.00 |" in text


def test_the_gates_verdicts_are_told_by_seed_and_versions_are_not_added_up(finished: Runner, tmp_path: Path) -> None:
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
    earlier, _, present = text.partition("- Detectors of CNN seed 0: those of an earlier version")[2].partition(
        "- Detectors of CNN seed 1: one, two."
    )
    for of_one, rejected in ((earlier, (0, 0)), (present, (4, 2))):
        attacked, honest = rejected
        assert f"Of 4 attacked models of contributors the gate rejects {attacked} and leaves 0 to a person" in of_one
        assert f"Of 2 honest models of contributors the gate rejects {honest}" in of_one


def test_seeds_with_one_gate_are_added_up(finished: Runner, tmp_path: Path) -> None:
    gate = finished.work.record(Step("cnn", 0, "gate")) or {}
    text = write_report({Step("cnn", seed, "gate"): gate for seed in (0, 1)}, SMOKE, tmp_path)[0].read_text("utf-8")
    assert "Detectors of CNN seed 0, CNN seed 1: " in text
    assert "Of 8 attacked models of contributors" in text


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
    # Two durations of M_f, attacked images alone and beside, another rate, seven auto-encoders.
    assert "12 other readings" in line
    assert "Another honest run of that duration is rejected: " in line
    assert "CNN, FA 1: detected by us" not in text


def test_an_accuracy_that_differs_is_told_with_what_m_itself_lacks(finished: Runner, tmp_path: Path) -> None:
    records = copy.deepcopy(finished.work.records())
    records[Step("cnn", 0, "genuine")]["accuracy"] = 0.80
    records[Step("cnn", 0, "genuine")]["data"] = "cifar10, a JPEG re-encoding"
    records[Step("cnn", 0, "jpeg")]["accuracy"] = 0.78
    records[Step("cnn", 0, "flip")]["base"]["accuracy"] = 0.80
    records[Step("cnn", 0, "flip")]["models"]["short"]["accuracy"] = 0.79
    text = write_report(records, SMOKE, tmp_path)[0].read_text("utf-8")
    assert (
        "accuracy 80.00 %, in the paper 87.15 %. The images are a JPEG re-encoding; one more takes another 2.00" in text
    )
    assert "accuracy 79.00 %, in the paper 82.60 %. Against the genuine model -1.00 points, in the paper -4.55" in text


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        ([0.87], "accuracy 87.00 %, in the paper 87.15 %."),
        ([0.86, 0.88], "accuracy 87.00 [86.00 to 88.00] %, in the paper 87.15 %. Within the range of our seeds."),
        ([0.86, 0.87], "accuracy 86.50 [86.00 to 87.00] %, in the paper 87.15 %. Outside the range of our seeds."),
        ([0.8715], None),
    ],
)
def test_small_differences_are_listed_too(
    ours: list[float], said: str | None, finished: Runner, tmp_path: Path
) -> None:
    genuine = finished.work.record(Step("cnn", 0, "genuine")) or {}
    records = {Step("cnn", seed, "genuine"): genuine | {"accuracy": value} for seed, value in enumerate(ours)}
    text = write_report(records, SMOKE, tmp_path)[0].read_text("utf-8")
    apart, _, nearer = text.partition("## Where we disagree with the paper")[2].partition("that differ by less")
    assert "CNN, normal: accuracy" not in apart
    assert ("CNN, normal: accuracy" in nearer) is (said is not None)
    assert f"- CNN, normal: {said}" in nearer or said is None


def test_architectures_without_a_record_are_named_with_why(finished: Runner, tmp_path: Path) -> None:
    device = finished.work.records()[Step("cnn", 0, "genuine")]["environment"]["device"]
    text = write_report(finished.work.records(), SMOKE, tmp_path)[0].read_text("utf-8")
    assert "Nothing was run of ResNet18, ResNet152, Wide-ResNet28, VGG19: " in text
    assert f"and all there was is {device}." in text


def test_models_of_the_whole_training_set_are_told_of_where_a_gate_vetted_any(finished: Runner, tmp_path: Path) -> None:
    records = copy.deepcopy(finished.work.records())
    assert "*whole training set*" in write_report(records, SMOKE, tmp_path)[0].read_text("utf-8")
    gate = records[Step("cnn", 0, "gate")]
    gate["verdicts"] = {case: said for case, said in gate["verdicts"].items() if not case.startswith("whole-")}
    assert "*whole training set*" not in write_report(records, SMOKE, tmp_path)[0].read_text("utf-8")


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
    assert "85.00 [80.00 to 90.00] (87.15)" in text


def test_raw_numbers_hold_seed_versions_and_hardware_but_no_pictures(finished: Runner) -> None:
    rows = raw(finished.work.records(), SMOKE)["records"]
    assert all({"seed", "seconds", "environment", "data"} <= set(row) for row in rows)
    assert all("examples" not in row.get("attack", {}) for row in rows)


def test_figures_are_drawn_as_png_and_svg(finished: Runner, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")

    drawn = {path.name for path in draw_all(finished.work.records(), SMOKE, tmp_path)}
    assert drawn == {
        f"paper-{what}.{suffix}"
        for what in ("examples", "histograms-cnn", "improvement-cnn")
        for suffix in ("png", "svg")
    }


def test_a_reading_that_agrees_with_the_paper_says_of_which_models_it_does(finished: Runner, tmp_path: Path) -> None:
    records = finished.work.records()
    records[Step("cnn", 1, "detect")] = records[Step("cnn", 0, "detect")]
    for seed, step in ((0, "detect"), (1, "detect"), (0, "alone-detect")):
        record = records[Step("cnn", seed, step)] = copy.deepcopy(records[Step("cnn", seed, step)])
        for name, model in record["models"].items():
            away = 9.0 if step == "alone-detect" else -0.5
            model.update(mean=1.0 if name.startswith("honest") else 1.0 + away, std=1.0)
        for name, verdict in record["verdicts"].items():
            verdict.update(detected=False, deviations=0.0 if name.startswith("honest") else -0.5)
    text = write_report(records, SMOKE, tmp_path)[0].read_text("utf-8")
    line = next(
        line for line in text.splitlines() if line.startswith("- CNN, FA 1: detected by us: NO in 2 of 2 seeds")
    )
    assert "-0.50 [-0.50 to -0.50] deviations from M_f's (1 rejects). Below M_f's own" in line
    accuracy = records[Step("cnn", 0, "alone-flip")]["models"]["short"]["accuracy"]
    assert (
        "fine-tuned on the attacked images alone (tried with 1 of 2 seeds; its accuracy is "
        f"{100 * accuracy:.2f} %, in the paper 82.60 %)" in line
    )


def test_what_a_slower_fine_tuning_reaches_stands_beside_the_same_seeds(finished: Runner, tmp_path: Path) -> None:
    records = finished.work.records()
    for seed, step, accuracy in ((0, "flip", 0.5), (1, "flip", 0.7), (1, "slow-flip", 0.625)):
        record = records[Step("cnn", seed, step)] = copy.deepcopy(records[Step("cnn", 0, step)])
        record["models"]["short"]["accuracy"] = accuracy
    del records[Step("cnn", 0, "beside-flip")]
    in_both = copy.deepcopy(records)
    del records[Step("cnn", 0, "slow-flip")]

    def said(found: Mapping[Step, Any], folder: str) -> str:
        text = write_report(found, SMOKE, tmp_path / folder)[0].read_text("utf-8")
        return next(line for line in text.splitlines() if line.startswith("- CNN, FA 1: accuracy 60.00 "))

    told = f"{SLOW.replace('fine', 'Fine', 1)}, it is 62.50 % (tried with 1 of 2 seeds, which have 70.00 % here)."
    assert told in said(records, "one")
    assert "tried with" not in said(in_both, "both")


def test_the_commands_are_those_of_each_seed(finished: Runner, tmp_path: Path) -> None:
    """A seed of which less was run is not told as one that has it all."""
    records = finished.work.records()
    records |= {Step("cnn", 1, name): records[Step("cnn", 0, name)] for name in ("genuine", "honest", "flip")}
    text, numbers = (path.read_text("utf-8") for path in write_report(records, SMOKE, tmp_path))
    more = "--experiments tables,improvement,gate,variants,alone,beside,again,slow,jpeg --dataset digits --improve cnn --smoke"
    first = f"portier-owner reproduce --architectures cnn --seeds 0 {more}"
    second = "portier-owner reproduce --architectures cnn --seeds 1 --experiments tables --dataset digits --smoke"
    assert f"Made by `{first}` and `{second}`" in text
    assert json.loads(numbers)["command"] == f"{first} && {second}"


def test_the_speed_of_processes_side_by_side_is_one_of_theirs(finished: Runner, tmp_path: Path) -> None:
    records = copy.deepcopy(finished.work.records())
    genuine = records[Step("cnn", 0, "genuine")]
    genuine["environment"] |= {"device": "2 x CPU", "processes": 2}
    text = write_report({Step("cnn", 0, "genuine"): genuine}, SMOKE, tmp_path)[0].read_text("utf-8")
    assert "| CNN | 2 x CPU, one of 2 processes |" in text
