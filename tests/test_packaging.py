"""What users install: a wheel of the four packages with their data files, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_wheel_holds_the_four_packages_and_their_data(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", str(tmp_path), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("portier-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if not name.startswith("portier-")}
    assert tops == {"owner", "contributor", "common", "protos"}
    for needed in (
        "protos/collaboration.proto",
        "protos/collaboration_pb2.py",
        "owner/simulate/scenarios/demo.toml",
        "owner/simulate/scenarios/cifar10.toml",
        "owner/compare/grids/table4.toml",
        "owner/py.typed",
    ):
        assert needed in names
    assert any(name.startswith("owner/ledger/migrations/versions/") for name in names)
