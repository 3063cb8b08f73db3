"""`flwr run .` as the page tells: Flower's own commands, their daemons, and this repository as the app."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from owner.addresses import free_ports

pytest.importorskip("ray")

ROOT = Path(__file__).resolve().parents[3]
COMMANDS = Path(sys.executable).parent


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """With a SuperLink that runs, by the name `by-hand`."""
    if shutil.which("flwr", path=str(COMMANDS)) is None:
        pytest.skip("flwr is not installed beside this Python")
    home, (port,) = tmp_path / "flwr", free_ports(1)
    home.mkdir()
    (home / "config.toml").write_text(f'[superlink.by-hand]\naddress = "127.0.0.1:{port}"\ninsecure = true\n')
    found = {**os.environ, "FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0", "RAY_worker_niceness": "0"}
    found["PATH"] = f"{COMMANDS}{os.pathsep}{found['PATH']}"
    found["PYTHONPATH"] = str(ROOT)
    options = ["--insecure", "--simulation", "--disable-runtime-dependency-installation", "--port", str(port)]
    log = (tmp_path / "superlink.log").open("wb")
    superlink = subprocess.Popen([str(COMMANDS / "flower-superlink"), *options], env=found, stdout=log, stderr=log)
    deadline = time.monotonic() + 120
    while not answers(port):
        assert superlink.poll() is None, (tmp_path / "superlink.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    yield found
    superlink.terminate()
    superlink.wait(60)
    log.close()


@pytest.mark.slow
def test_flwr_run_runs_the_federation_of_the_configuration(environment: dict[str, str]) -> None:
    config = (
        "clients=4 attackers=1 attack='add-noise' rounds=1 model='logistic' strategy='multikrum' assumed-malicious=0"
    )
    command = [str(COMMANDS / "flwr"), "run", ".", "by-hand", "--stream", "--federation-config", "num-supernodes=4"]
    found = subprocess.run(
        [*command, "--run-config", config],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert "RobustStrategy: kept 4 of 4 replies" in found.stdout
    assert "Strategy execution finished" in found.stdout
    assert "Result: accuracy 0." in found.stdout
