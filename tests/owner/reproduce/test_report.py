"""The page, the numbers and the figures, of whatever records there are."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from owner.reproduce.drawings import draw_all
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

    drawn = {path.name for path in draw_all(finished.work.records(), SMOKE, tmp_path)}
    assert drawn == {
        f"paper-{what}.{suffix}"
        for what in ("examples", "histograms-cnn", "improvement-cnn")
        for suffix in ("png", "svg")
    }
