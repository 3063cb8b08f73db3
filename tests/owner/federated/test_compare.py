"""A grid of federations: its cells, and that a run goes on where another stopped."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from common.datasets import load
from common.errors import ConfigurationError, StorageError, UnknownNameError
from owner.addresses import free_ports
from owner.federated import compare, provenance
from owner.federated.compare import run_grid, summarise
from owner.federated.config import FederationConfig
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


@pytest.mark.parametrize(
    ("clients", "share", "attackers"), [(23, 0.5, 11), (10, 0.3, 3), (30, 0.3, 9), (100, 0.29, 29), (10, 0.5, 5)]
)
def test_a_share_of_a_half_is_never_a_majority(clients: int, share: float, attackers: int) -> None:
    (cell,) = cells({**SHARED, "clients": clients}, {"attacker-share": [share]})
    assert cell.config is not None
    assert cell.config.attackers == attackers


REPLACEMENT = "model-replacement:factor={replace},backdoor=flip,source=7,target=5"


@pytest.mark.parametrize(
    ("changes", "factor"),
    [
        ({"attacker-share": 0.3, "clients": 10}, "3.33333"),
        ({"attackers": 5, "clients": "10"}, "2"),
        ({"attackers": 0}, "1"),
        ({"attackers": 3, "setting": "incremental"}, "2"),
    ],
)
def test_the_factor_of_model_replacement_is_what_makes_the_merged_model_the_attackers(
    changes: dict[str, Any], factor: str
) -> None:
    """The attackers' updates by n / attackers in their mean with n - attackers of nothing; alone by 1 / the merge weight."""
    (cell,) = cells({**SHARED, "attack": REPLACEMENT, **changes}, {"seed": [0]})
    assert cell.config is not None
    assert cell.config.attack == cell.values["attack"] == REPLACEMENT.replace("{replace}", factor)


def test_a_placeholder_that_does_not_exist_is_named() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown placeholder of the attack .*repalce") as caught:
        cells({**SHARED, "attack": "model-replacement:factor={repalce}"}, {"attacker-share": [0.3]})
    assert "did you mean replace?" in caught.value.hint


def test_where_nobody_attacks_the_first_attack_stands_for_all() -> None:
    attacks = ["flip:source=7,target=5", "model-replacement:factor={replace}", "sign-flip"]
    grid = cells(SHARED, {"strategy": ["fedavg", "krum"], "attacker-share": [0, 0.25], "attack": attacks, "seed": [0]})
    quiet = [cell.config for cell in grid if cell.config and not cell.config.attackers]
    assert [(config.strategy, config.attack) for config in quiet] == [("fedavg", attacks[0]), ("krum", attacks[0])]
    assert len(grid) == 2 + 2 * 3


def test_of_honest_clients_alone_it_is_recorded_how_many_were_dropped_and_what_the_attack_comes_to(
    tmp_path: Path,
) -> None:
    shared = {**SHARED, "release-epochs": 2, "attack": "flip:source=7,target=5", "attacker-share": 0}
    grid = cells(shared, {"setting": ["federated", "incremental"], "strategy": ["fedavg", "krum"], "seed": [0]})
    undefended, krum, alone, _ = run_grid(grid, tmp_path, progress=False)
    assert krum["result"]["detection"]["honest_dropped"] == 0.75
    assert (krum["result"]["detection"]["f1"], krum["result"]["detection"]["recall"]) == (None, None)
    assert undefended["result"]["detection"]["honest_dropped"] is None
    before = {record["result"]["initial_attack_success"] for record in (undefended, krum, alone)}
    assert len(before) == 1
    assert 0 <= before.pop() <= 1
    assert {record["result"]["attack_effective"] for record in (undefended, krum, alone)} == {None}
    assert summarise([krum])[0]["honest_dropped"] == 0.75


def test_a_cell_keeps_its_name_when_the_grid_grows() -> None:
    small = cells(SHARED, {"strategy": ["fedavg"], "seed": [0]})
    large = cells(SHARED, {"strategy": ["krum", "fedavg"], "seed": [1, 0]})
    assert small[0].name in {cell.name for cell in large}


def test_the_precision_of_a_cell_is_no_part_of_its_name() -> None:
    """Records of before it was written in the grid are of the same cells."""
    silent = {name: value for name, value in SHARED.items() if name != "precision"}
    assert cells(SHARED, {"seed": [0]})[0].name == cells(silent, {"seed": [0]})[0].name
    with pytest.raises(ConfigurationError, match="differ in precision alone are the same cell"):
        cells(silent, {"precision": ["float32", "bfloat16"]})


def edited(path: Path, section: str, **changes: str | None) -> None:
    """The record with these entries of one section, without those that are None."""
    record = json.loads(path.read_text())
    record[section] = {key: value for key, value in {**record[section], **changes}.items() if value is not None}
    path.write_text(json.dumps(record))


def ran(grid: list[compare.Cell], directory: Path, monkeypatch: pytest.MonkeyPatch, **options: bool) -> list[str]:
    """The cells that a run does not find done."""
    found: list[str] = []

    def noted(cell: compare.Cell, ray_address: str) -> dict[str, Any]:
        found.append(cell.name)
        return {"format": compare.FORMAT, "values": dict(cell.values), "status": "failed", "reason": "not run"}

    with monkeypatch.context() as patch:
        patch.setattr(compare, "run_cell", noted)
        run_grid(grid, directory, progress=False, **options)  # type: ignore[arg-type]
    return found


def test_a_record_tells_its_code_its_precision_and_machine_and_a_digest_of_the_data(tmp_path: Path) -> None:
    grid = cells(SHARED, {"strategy": ["fedavg", "bulyan:assumed-malicious=2"], "attacker-share": [0.5], "seed": [0]})
    done, unserved = run_grid(grid, tmp_path, progress=False)
    about = done["environment"]
    assert about["code"] == unserved["environment"]["code"] == provenance.code()
    assert about["dtype"] == "float32"
    assert str(os.cpu_count()) in about["device"]
    assert done["data"]["digest"] == provenance.data_digest(grid[0].config or pytest.fail("it can be configured"))


@pytest.mark.parametrize("code", ["0123456789ab", None], ids=["other code", "before digests were recorded"])
def test_a_cell_that_other_code_has_made_is_run_again_unless_older_ones_are_kept(
    code: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = cells(SHARED, {"strategy": ["fedavg", "bulyan:assumed-malicious=2"], "attacker-share": [0.5], "seed": [0]})
    run_grid(grid, tmp_path, progress=False)
    assert ran(grid, tmp_path, monkeypatch) == []
    for cell in grid:
        edited(tmp_path / f"{cell.name}.json", "environment", code=code)
    assert compare.older_records(tmp_path, grid) == 2
    assert ran(grid, tmp_path, monkeypatch, keep_older=True) == []
    assert sorted(ran(grid, tmp_path, monkeypatch)) == sorted(cell.name for cell in grid)


def test_a_cell_that_ran_in_another_precision_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = cells(SHARED, {"seed": [0]})
    run_grid(grid, tmp_path, progress=False)
    edited(tmp_path / f"{grid[0].name}.json", "environment", dtype="bfloat16")
    assert ran(grid, tmp_path, monkeypatch, keep_older=True) == [grid[0].name]


def test_cells_of_another_copy_of_the_data_are_not_added_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = cells(SHARED, {"seed": [0, 1]})
    run_grid(grid[:1], tmp_path, progress=False)
    edited(tmp_path / f"{grid[0].name}.json", "data", digest="0123456789ab")
    assert ran(grid[:1], tmp_path, monkeypatch) == []
    with pytest.raises(ConfigurationError, match=r"1 records in .* another copy of digits") as caught:
        run_grid(grid, tmp_path, progress=False)
    assert "--work" in caught.value.hint
    assert not (tmp_path / f"{grid[1].name}.json").exists()


def test_the_digest_of_data_is_of_every_example_and_not_of_the_part_a_cell_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def digest(**changes: Any) -> str:
        config = cells({**SHARED, **changes}, {"seed": [0]})[0].config
        return provenance.data_digest(config or pytest.fail("it can be configured"))

    assert digest() == digest(examples=100, seed=3)
    digits = load("digits")
    smaller = dataclasses.replace(digits, train=digits.train.take(torch.arange(1000)))
    relabelled = dataclasses.replace(digits, test=digits.test.with_labels(digits.test.labels.flip(0)))
    found = {digest()}
    for other in (smaller, relabelled):
        monkeypatch.setattr(provenance, "load", lambda *_given, other=other, **_options: other)
        provenance._data_digest.cache_clear()
        found.add(digest())
    provenance._data_digest.cache_clear()
    assert len(found) == 3


def test_code_that_decides_a_cell_is_in_its_digest_and_a_client_app_of_ones_own_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    digests = set()
    for text in ("a = 1\n", "a = 2\n"):
        (tmp_path / "my_clients.py").write_text(text)
        provenance.code.cache_clear()
        digests.add(provenance.code("my_clients"))
    assert len(digests | {provenance.code()}) == 3
    config = FederationConfig(client_app="my_clients", attack="my_attacks:Mine:factor=2", attackers=1)
    (tmp_path / "my_attacks.py").write_text("b = 1\n")
    assert provenance.code_of(config) == provenance.code("my_clients", "my_attacks") not in digests
    for module in provenance._MODULES:
        assert provenance._source(module)


def test_a_combination_that_cannot_be_is_a_row_with_its_reason(tmp_path: Path) -> None:
    grid = cells(SHARED, {"strategy": ["bulyan:assumed-malicious=2"], "attacker-share": [0.5], "seed": [0]})
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
    assert rows[1]["dtype"] == ["float32"]


def test_a_cell_of_unknown_precision_stands_in_the_row_of_its_other_seeds(tmp_path: Path) -> None:
    records = run_grid(cells(SHARED, {"seed": [0, 1]}), tmp_path, progress=False)
    del records[0]["environment"]["dtype"], records[0]["values"]["precision"]
    (row,) = summarise(records)
    assert (row["n"], row["dtype"]) == (2, ["float32", "not recorded"])


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
    (port,) = free_ports(1)
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
