"""A foreign package named like one of ours is reported by name, at import, with the way out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("side", ["owner", "contributor"])
@pytest.mark.parametrize("shadowed", ["common", "protos"])
def test_a_foreign_package_that_shadows_ours_is_named(tmp_path: Path, side: str, shadowed: str) -> None:
    foreign = tmp_path / shadowed
    foreign.mkdir()
    (foreign / "__init__.py").write_text("")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    result = subprocess.run(
        [sys.executable, "-c", f"import {side}"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode != 0
    assert f"the package {shadowed!r} at {foreign}" in result.stderr
    assert "virtual environment" in result.stderr
