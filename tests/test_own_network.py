"""docs/own-network.md, tried: its two Python blocks and its commands, as they stand on the page."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from owner.addresses import free_ports
from owner.cli.application import run

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "own-network.md").read_text("utf-8")
MODULES = {"portier-owner": "owner", "portier-contributor": "contributor"}

# Few references and short training: this is about finding the network, not about the gate.
QUICK = {
    "GUARD__DETECTORS": "paper",
    "GUARD__REFERENCES": "4",
    "GUARD__REJECT_LEVEL": "0.2",
    "GUARD__QUARANTINE_LEVEL": "0.2",
    "GUARD__EPOCHS": "2",
    "FINETUNING__EPOCHS": "1",
    "MODEL__PRECISION": "float32",
    "SERVICE__HOST": "127.0.0.1",
}


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.+?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return [text for name, text in found if name == language]


def commands() -> list[list[str]]:
    """Of every block of commands, in the page's order."""
    return [shlex.split(line) for block in blocks("") for line in block.splitlines() if line.startswith("portier-")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the module and the weights of the page."""
    folder = tmp_path_factory.mktemp("own-network")
    factory, training = blocks("python")
    (folder / "my_networks.py").write_text(factory)
    (folder / "training.py").write_text(training)
    done = subprocess.run([sys.executable, "training.py"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def environment(folder: Path) -> dict[str, str]:
    ports = [str(port) for port in free_ports(2)]
    settings = QUICK | {"SERVICE__PORT": ports[0], "SERVICE__ENROLMENT_PORT": ports[1]}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PORTIER_")}
    return (
        kept
        | {f"PORTIER_{name}": value for name, value in settings.items()}
        | {
            "PYTHONPATH": os.pathsep.join((str(folder), str(ROOT))),
            "PORTIER_CONTRIBUTOR_HOME": str(folder / "home"),
        }
    )


def module_of(words: list[str]) -> list[str]:
    """The command of the page, by the interpreter that runs the tests. -P: nothing is found in the current folder, as by the command's
    own name."""
    return [sys.executable, "-P", "-m", MODULES[words[0]], *words[1:]]


@pytest.fixture(scope="module")
def founded(folder: Path, environment: dict[str, str]) -> list[list[str]]:
    """The owner's commands that are left, when those that need no contributor have run."""
    rest = [words for words in commands() if words[0] == "portier-owner"]
    with pytest.MonkeyPatch.context() as changed:
        changed.chdir(folder)
        changed.syspath_prepend(folder)
        for name, value in environment.items():
            changed.setenv(name, value)
        while rest[0][1] in ("init", "train", "protect"):
            assert run(rest.pop(0)[1:]) == 0
    return rest


def test_the_owner_adopts_weights_of_a_network_of_its_own_and_protects_them(
    founded: list[list[str]], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [words[1] for words in founded] == ["invite", "serve"]
    assert run(["status", "-w", str(folder / "clinic"), "--json"]) == 0
    release = json.loads(capsys.readouterr().out)["release"]
    assert (release["architecture"], release["guard"]) == ("my_networks:small", "ready")


@pytest.mark.slow
def test_a_contributor_hands_in_where_it_allows_the_factory_and_not_before(
    founded: list[list[str]], folder: Path, environment: dict[str, str]
) -> None:
    def of_the_page(words: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            module_of(words), cwd=folder, env=environment, capture_output=True, text=True, check=False
        )

    invite, serve = founded
    join, contribute = (words for words in commands() if words[0] == "portier-contributor")
    assert of_the_page(invite).returncode == 0
    with subprocess.Popen(module_of(serve), cwd=folder, env=environment, stderr=subprocess.PIPE, text=True) as service:
        try:
            deadline = time.monotonic() + 120
            while not (folder / "clinic" / "locks" / "ports.json").exists():
                assert service.poll() is None, service.stderr and service.stderr.read()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert of_the_page(join).returncode == 0
            without = of_the_page(contribute[: contribute.index("--factory")])
            assert without.returncode == 10
            assert "allow it with --factory my_networks:small" in " ".join(without.stderr.split())
            handed_in = of_the_page(contribute)
        finally:
            service.kill()
    assert handed_in.returncode in (0, 53), handed_in.stderr
    assert "submission" in handed_in.stdout
