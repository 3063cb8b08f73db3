"""Guards of an owner whose settings name a module with detectors of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.errors import ConfigurationError, UnknownNameError
from common.weights import save
from owner.cli.application import run
from owner.guards import GuardKeeper
from owner.operations.deciding import rollback, vet_file
from owner.operations.guarding import protect
from owner.operations.opening import Office, open_office
from owner.releases import load_weights
from tests.own_detectors import Write, own_modules

OWN = {"guard.detectors": ["moved"], "guard.modules": ["moving_of_a_test"]}


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Write]:
    folder = tmp_path / "modules"
    folder.mkdir()
    with own_modules(folder) as written:
        yield written


def test_a_workspace_is_protected_and_vets_by_a_detector_of_ones_own(root: Path, write: Write, tmp_path: Path) -> None:
    write("moving_of_a_test")
    with open_office(root, OWN) as office:
        assert list(protect(office, progress=False).guard.detectors) == ["moved"]
        twice = {name: 2 * tensor for name, tensor in load_weights(office.workspace, office.store.current()).items()}
        save(tmp_path / "twice.safetensors", twice)
        verdict = vet_file(office, tmp_path / "twice.safetensors")  # in a process of its own
    assert [(check.name, str(check.decision)) for check in verdict.checks if check.name == "moved"] == [
        ("moved", "rejected")
    ]


NEEDS_A_GUARD: dict[str, Callable[[Office], object]] = {
    "protect": lambda office: protect(office, progress=False),
    "vet": lambda office: vet_file(office, office.workspace.settings_file),
    "rollback": lambda office: rollback(office, office.store.current().id, ""),
    "serve": lambda office: GuardKeeper(office.workspace, office.settings, office.store),
}


@pytest.mark.parametrize("what", NEEDS_A_GUARD)
def test_whatever_needs_a_guard_tells_a_module_that_is_not_there(root: Path, what: str) -> None:
    with open_office(root, OWN) as office, pytest.raises(ConfigurationError) as caught:
        NEEDS_A_GUARD[what](office)
    assert "the module 'moving_of_a_test' of guard.modules cannot be imported" in caught.value.message


def test_init_takes_modules_by_flag_and_leaves_nothing_where_a_detector_is_unknown(
    tmp_path: Path, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    write("moving_of_a_test")
    words = ["init", str(tmp_path / "ward"), "--architecture", "mlp", "--detector-module", "moving_of_a_test"]
    assert run([*words, "--detectors", "paper,moves"]) == UnknownNameError.exit_code
    assert "did you mean moved?" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "ward").exists()
    assert run([*words, "--detectors", "paper,moved"]) == 0
    with open_office(tmp_path / "ward", environment={}) as office:
        assert office.settings.guard.modules == ("moving_of_a_test",)
        assert office.settings.guard.detectors == ("paper", "moved")
