"""A grid of federations: its cells, and that a run goes on where another stopped."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from common.errors import ConfigurationError, StorageError, UnknownNameError
from owner.federated import compare
from owner.federated.compare import run_grid, summarise
from owner.federated.grids import cells, read_grid

SHARED = {
    "model": "logistic",
    "clients": 4,
    "rounds": 1,
    "learning-rate": 0.1,
    "engine": "inline",
    "attack": "add-noise",
    "device": "cpu",
    "precision": "float32",
}


def test_a_grid_is_every_combination() -> None:
    grid = cells(SHARED, {"strategy": ["fedavg", "krum"], "attacker-share": [0.0, 0.25], "seed": [0, 1, 2]})
    assert len(grid) == len({cell.name for cell in grid}) == 12
    assert {cell.config.attackers for cell in grid if cell.config} == {0, 1}


def test_a_cell_keeps_its_name_when_the_grid_grows() -> None:
    small = cells(SHARED, {"strategy": ["fedavg"], "seed": [0]})
    large = cells(SHARED, {"strategy": ["krum", "fedavg"], "seed": [1, 0]})
    assert small[0].name in {cell.name for cell in large}


def test_a_combination_that_cannot_be_is_a_row_with_its_reason(tmp_path: Path) -> None:
    grid = cells(SHARED, {"strategy": ["bulyan"], "attacker-share": [0.5], "seed": [0]})
    (record,) = run_grid(grid, tmp_path, progress=False)
    assert record["status"] == "n/a"
    assert "needs at least 11 clients" in summarise([record])[0]["reason"]


def test_a_strategy_that_cannot_serve_the_model_is_not_applicable(tmp_path: Path) -> None:
    (record,) = run_grid(cells(SHARED, {"strategy": ["gated"], "seed": [0]}), tmp_path, progress=False)
    assert record["status"] == "n/a"
    assert "does not depend on the model's weights" in record["reason"]


def test_a_run_goes_on_where_another_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = cells(SHARED, {"strategy": ["fedavg", "fedmedian"], "attacker-share": [0.25], "seed": [0, 1]})
    first = run_grid(grid[:3], tmp_path, progress=False)
    ran: list[str] = []
    original = compare.run_cell

    def counted(cell: compare.Cell, ray_address: str) -> dict[str, Any]:
        ran.append(cell.name)
        return original(cell, ray_address)

    monkeypatch.setattr(compare, "run_cell", counted)
    every = run_grid(grid, tmp_path, progress=False)
    assert ran == [grid[3].name]
    assert every[:3] == first


def test_a_cell_that_failed_is_tried_again(tmp_path: Path) -> None:
    grid = cells({**SHARED, "attack": "no-such-attack"}, {"attacker-share": [0.25], "seed": [0]})
    assert run_grid(grid, tmp_path, progress=False)[0]["status"] == "failed"
    assert compare.read_record(tmp_path, grid[0]) is None


def test_a_summary_has_mean_and_spread_over_seeds(tmp_path: Path) -> None:
    grid = cells(SHARED, {"strategy": ["fedavg", "multikrum"], "clients": [5], "attacker-share": [0.2], "seed": [0, 1]})
    rows = summarise(run_grid(grid, tmp_path, progress=False))
    assert [(row["strategy"], row["n"]) for row in rows] == [("fedavg", 2), ("multikrum", 2)]
    assert (rows[0]["f1"], rows[0]["f1_n"]) == (None, 0)
    assert rows[1]["f1"] == 1.0
    assert (rows[1]["f1_spread"], rows[1]["f1_n"]) == (0.0, 2)
    assert rows[1]["seconds_per_round"] > 0


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("[grid]\nseed = 3", ConfigurationError, "seed must be a list"),
        ("[grid]\nseed = []", ConfigurationError, "seed must be a list of at least one"),
        ("[grids]\nseed = [1]", UnknownNameError, "unknown section"),
        ("[grid]\nstrategie = ['krum']", UnknownNameError, "strategie"),
        ("[grid]\nstrategy = ['krumm']", UnknownNameError, "krumm"),
        ("[grid]\nattacker-share = [1.5]", ConfigurationError, "attacker-share must be from 0 to 1"),
        ("[grid", ConfigurationError, "cannot be read"),
    ],
)
def test_a_grid_that_is_none_is_refused(tmp_path: Path, text: str, error: type, message: str) -> None:
    (tmp_path / "grid.toml").write_text(text)
    with pytest.raises(error, match=message):
        read_grid(tmp_path / "grid.toml")


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    (cell,) = cells(SHARED, {"seed": [0]})
    (tmp_path / f"{cell.name}.json").write_text("{")
    with pytest.raises(StorageError, match=cell.name):
        run_grid([cell], tmp_path, progress=False)


def test_records_are_plain_json(tmp_path: Path) -> None:
    (cell,) = cells(
        {**SHARED, "strategy": "spectral-vae", "detector-epochs": 2}, {"attacker-share": [0.25], "seed": [0]}
    )
    run_grid([cell], tmp_path, progress=False)
    record = json.loads((tmp_path / f"{cell.name}.json").read_text(), parse_constant=pytest.fail)
    assert record["result"]["rounds"][0]["clients"][0]["scored"] is True


def test_a_strategy_can_stand_in_a_list_more_than_once_with_settings_of_its_own() -> None:
    listed = ["fedcvae", "fedcvae:size=16,mean-factor=2", "gated:guard-detectors=standard,guard-references=39"]
    plain, tuned, gate = (cell.config for cell in cells(SHARED, {"strategy": listed}))
    assert plain is not None
    assert tuned is not None
    assert gate is not None
    assert (tuned.strategy, tuned.detector_options) == ("fedcvae", "size=16,mean_factor=2")
    assert (gate.strategy, gate.guard_detectors, gate.guard_references) == ("gated", "standard", 39)
    assert plain.detector_options == ""


@pytest.mark.parametrize("strategy", ["fedcvae:latnet=3", "gated:guard-detectrs=standard", "krumm:assumed-malicious=1"])
def test_settings_of_a_strategy_that_do_not_exist_are_refused(strategy: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        cells(SHARED, {"strategy": [strategy]})
    assert "did you mean" in caught.value.hint


def test_the_first_seed_of_every_cell_comes_before_the_second_of_any() -> None:
    grid = cells(SHARED, {"seed": [1, 0], "model": ["logistic", "mlp"], "partition": ["iid", "dirichlet:alpha=1"]})
    order = [(cell.values["seed"], cell.values["model"]) for cell in compare.ordered(grid)]
    assert order == [(s, m) for s in (0, 1) for m in ("logistic", "mlp") for _ in range(2)]


def test_no_cell_begins_after_the_deadline(tmp_path: Path) -> None:
    grid = cells(SHARED, {"seed": [0, 1]})
    assert run_grid(grid, tmp_path, progress=False, deadline=0.0) == []
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nowhere", "127.0.0.1:99999999"])
def test_a_cluster_that_does_not_answer_is_told_before_any_cell(tmp_path: Path, address: str) -> None:
    pytest.importorskip("ray")
    with pytest.raises(ConfigurationError, match="no Ray cluster answers"):
        run_grid(cells(SHARED, {"seed": [0]}), tmp_path, progress=False, ray_address=address)
    assert not list(tmp_path.glob("*.json"))


def test_auto_without_any_cluster_is_told_before_any_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(ConfigurationError, match="no Ray cluster was started on this machine"):
        run_grid(cells(SHARED, {"seed": [0]}), tmp_path / "runs", progress=False, ray_address="auto")
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:1\n")  # of one that is gone
    with pytest.raises(ConfigurationError, match=r"no Ray cluster answers at 127\.0\.0\.1:1"):
        run_grid(cells(SHARED, {"seed": [0]}), tmp_path / "runs", progress=False, ray_address="auto")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_on_a_ray_cluster_a_cell_comes_out_as_it_does_here(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    ray = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--disable-usage-stats"]
    options = ["--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=2", "--include-dashboard=false"]
    # Sockets lie there, and the path of one must not exceed 107 bytes.
    short = tempfile.mkdtemp(prefix="ray")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "RAY_worker_niceness": "0"}
    with (tmp_path / "ray.log").open("wb") as log:
        cluster = subprocess.Popen([*ray, *options, f"--temp-dir={short}"], stdout=log, stderr=log, env=environment)
    try:
        deadline = time.monotonic() + 120
        while "Ray runtime started" not in (tmp_path / "ray.log").read_text():
            said = (tmp_path / "ray.log").read_text()
            assert cluster.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.5)
        grid = cells(SHARED, {"strategy": ["krum"], "clients": [5], "attacker-share": [0.2], "seed": [0]})
        (there,) = run_grid(grid, tmp_path / "there", progress=False, ray_address=f"127.0.0.1:{port}")
    finally:
        cluster.terminate()
        cluster.wait(60)
        shutil.rmtree(short, ignore_errors=True)
    (here,) = run_grid(grid, tmp_path / "here", progress=False)
    assert there["status"] == here["status"] == "done", there["reason"]
    assert there["result"]["detection"] == here["result"]["detection"]
    accuracies = [[one["accuracy"] for one in record["result"]["rounds"]] for record in (there, here)]
    assert accuracies[0] == accuracies[1]


@pytest.mark.slow
def test_two_processes_find_what_one_does(tmp_path: Path) -> None:
    grid = cells(SHARED, {"strategy": ["fedavg", "krum"], "clients": [5], "attacker-share": [0.2], "seed": [0]})
    one, two = (run_grid(grid, tmp_path / str(n), parallel=n, progress=False) for n in (1, 2))

    def found(records: list[dict[str, Any]]) -> list[Any]:
        return [[round_["accuracy"] for round_ in record["result"]["rounds"]] for record in records]

    assert found(one) == found(two)
