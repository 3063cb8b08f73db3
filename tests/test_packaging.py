"""What users install: a wheel of the four packages with their data files, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import tarfile
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


@pytest.mark.slow
def test_the_source_distribution_holds_what_a_wheel_is_built_from_and_no_part_of_the_tests(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77", reason="what builds it is not in this environment")
    subprocess.run(
        [sys.executable, "-c", f"import setuptools.build_meta as b; b.build_sdist({str(tmp_path)!r})"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (archive,) = tmp_path.glob("portier-*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    tops = {name.split("/")[0] for name in names}
    assert {"owner", "contributor", "common", "protos", "LICENSE", "README.md", "CHANGELOG.md", "docs"} <= tops
    assert not tops & {"tests", "benchmarks", "build"}
    assert {"owner/py.typed", "protos/collaboration.proto", "owner/simulate/scenarios/demo.toml"} <= names
    assert not any(name.startswith("docs/results") for name in names)
