"""`make test` runs what `pytest` would: no folder of tests or doctests falls between the two halves."""

from __future__ import annotations

import tomllib
from pathlib import Path

from tests.halves import HALVES

ROOT = Path(__file__).resolve().parents[1]


def test_every_folder_that_pytest_looks_into_is_of_exactly_one_half() -> None:
    first, second = ({path for path in half if not path.startswith("--")} for half in HALVES)
    left_out = {path.removeprefix("--ignore=") for path in HALVES[0] if path.startswith("--ignore=")}
    configured = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["pytest"]["ini_options"][
        "testpaths"
    ]
    modules = {str(path.relative_to(ROOT)) for folder in configured for path in (ROOT / folder).rglob("*.py")}
    for module in modules:
        if module.startswith("tests/") and not Path(module).name.startswith("test_"):
            continue  # what tests share, not tests
        above = {module, *(str(parent) for parent in Path(module).parents)}
        of_first = bool(above & first) and not above & left_out
        assert of_first + bool(above & second) == 1, module
