"""A simulation with real processes and real sockets: interrupted in the middle, run again, and looked at from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.own_detectors import SHOWN

ROOT = Path(__file__).parents[2]
SCENARIO = """
title = "one of each"
threads = 1
[settings.data]
name = "digits"
train = 0.4
references = 0.3
[settings.model]
architecture = "mlp"
precision = "float32"
[settings.training]
epochs = 10
batch_size = 32
[settings.finetuning]
epochs = 1
batch_size = 32
learning_rate = 0.005
schedule = "constant"
[[contributors]]
name = "ada"
[[contributors]]
name = "eve"
attack = "same-value:value=0.5"
"""


WITH_A_DETECTOR_OF_ONES_OWN = f"""{SCENARIO}
[settings.guard]
modules = ["my_detectors"]
detectors = ["update-angle"]
references = 4
reject_level = 0.2
quarantine_level = 0.2
"""


@dataclass(frozen=True)
class Simulated:
    """directory: of the simulation. left_behind: processes found after the interruption. again: output of the second run."""

    directory: Path
    interrupted_code: int
    left_behind: list[int]
    again: str
    document: dict[str, Any]


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Simulated:
    folder = tmp_path_factory.mktemp("simulate")
    (folder / "two.toml").write_text(SCENARIO)
    directory = folder / "run"
    first = _start(folder)
    try:
        _wait_for(directory / "contributors" / "ada" / "contributions", first)
        first.send_signal(signal.SIGINT)
        first.communicate(timeout=60)
    finally:
        first.kill()
    left_behind = _processes_of(directory)
    second = _start(folder, "--json", str(folder / "result.json"))
    try:
        output, _ = second.communicate(timeout=240)
    finally:
        second.kill()
    assert second.returncode == 0, output
    return Simulated(directory, first.returncode, left_behind, output, json.loads((folder / "result.json").read_text()))


def test_an_interrupted_simulation_leaves_no_process_behind(simulated: Simulated) -> None:
    assert simulated.interrupted_code == 130
    assert simulated.left_behind == []


def test_the_second_run_goes_on_and_does_not_train_again(simulated: Simulated) -> None:
    log = (simulated.directory / "logs" / "owner-train.log").read_text()
    assert log.count("accuracy") == 1
    assert not (simulated.directory / "logs" / "owner-train.out").exists()


def test_everybody_gets_a_verdict_and_the_table_says_who_attacked(simulated: Simulated) -> None:
    ada, eve = simulated.document["contributors"]
    assert (ada["attack"], eve["attack"]) == (None, "same-value:value=0.5")
    assert {ada["fate"], eve["fate"]} <= {"accepted", "rejected", "held"}
    for one in (ada, eve):
        assert f"{one['name']}" in simulated.again
        assert one["fate"] in simulated.again


def test_weights_that_are_all_one_value_never_reach_the_model(simulated: Simulated) -> None:
    _, eve = simulated.document["contributors"]
    assert eve["fate"] != "accepted"
    assert eve["accuracy"] < 0.3
    before, after = simulated.document["release"]["before"], simulated.document["release"]["after"]
    assert after["accuracy"] >= before["accuracy"] - 0.05


def test_the_rates_count_what_the_table_shows(simulated: Simulated) -> None:
    rates = simulated.document["rates"]
    assert (rates["tpr_stopped"]["hits"], rates["tpr_stopped"]["n"]) == (1, 1)
    assert rates["fpr_rejected"]["n"] == 1


def test_the_report_lies_beside_the_result(simulated: Simulated) -> None:
    page = (simulated.directory / "report.html").read_text()
    assert "<svg" in page
    assert json.loads((simulated.directory / "result.json").read_text()) == simulated.document


def test_the_ledger_of_the_simulation_verifies(simulated: Simulated) -> None:
    done = _owner("verify-ledger", "-w", str(simulated.directory / "owner"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_another_scenario_does_not_go_on_in_the_same_directory(simulated: Simulated) -> None:
    done = _owner("simulate", "demo", "--directory", str(simulated.directory))
    assert done.returncode == 21
    assert "another scenario" in done.stderr


@pytest.mark.slow
def test_a_detector_of_ones_own_vets_in_the_processes_of_a_simulation(tmp_path: Path) -> None:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "my_detectors.py").write_text(SHOWN)
    (tmp_path / "two.toml").write_text(WITH_A_DETECTOR_OF_ONES_OWN)
    running = _start(tmp_path, "--json", str(tmp_path / "result.json"), path=tmp_path / "modules")
    try:
        output, _ = running.communicate(timeout=280)
    finally:
        running.kill()
    assert running.returncode == 0, output
    ada, eve = json.loads((tmp_path / "result.json").read_text())["contributors"]
    assert ada["fate"] is not None
    assert eve["fate"] != "accepted"
    about = (str(tmp_path / "run" / "owner"), "--json")  # what needs no guard needs no module either
    log = _owner("log", "--kind", "verdict", "-w", *about)
    submissions = [json.loads(line)["body"]["submission"] for line in log.stdout.splitlines()]
    shown = [json.loads(_owner("show", one, "-w", *about).stdout) for one in submissions]
    assert {check["name"] for one in shown for check in one["verdict"]["checks"]} >= {"update-angle"}


def _start(folder: Path, *more: str, path: Path = ROOT) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "owner", "simulate", str(folder / "two.toml"), "--directory", str(folder / "run")]
    return subprocess.Popen(
        [*command, *more],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(path), str(ROOT)))},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _owner(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "owner", *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )


def _wait_for(path: Path, process: subprocess.Popen[str], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _processes_of(directory: Path) -> list[int]:
    """Processes whose command line names the simulation's directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            if str(directory) in (entry / "cmdline").read_bytes().decode("utf-8", "replace"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found
