"""A founded, trained and protected workspace: made once a run, and copied for each test that changes it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from owner.operations.founding import init, train_first
from owner.operations.guarding import protect
from owner.operations.opening import Office, open_office
from tests.owner.people import QUICK, Contributor


@pytest.fixture(scope="session")
def protected_workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Never change it: `workspace` is a copy."""
    root = tmp_path_factory.mktemp("owner") / "protected"
    init(root, QUICK)
    with open_office(root) as office:
        train_first(office, progress=False)
        protect(office, progress=False)
    return root


@pytest.fixture
def root(protected_workspace: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(protected_workspace, tmp_path / "workspace"))


@pytest.fixture
def office(root: Path) -> Iterator[Office]:
    with open_office(root) as opened:
        yield opened


@pytest.fixture
def ada(office: Office) -> Contributor:
    return Contributor(office, "ada")
