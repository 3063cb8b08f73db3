"""The documents tell the truth: settings as they are, tests that exist, links that lead somewhere, files that can be used."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from common.config import as_toml, load
from common.errors import exit_codes
from contributor.settings import ContributorSettings
from owner.compare import configuration
from owner.settings import OwnerSettings
from owner.simulate import checking, scenario
from tests.own_detectors import SHOWN, own_modules

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
TOML = [
    pytest.param(text, id=f"{document.name}-{number}")
    for document in DOCUMENTS
    for number, text in enumerate(
        re.findall(r"^```toml\n(.+?)^```$", document.read_text("utf-8"), re.DOTALL | re.MULTILINE), 1
    )
]


def test_the_settings_page_shows_the_settings_and_their_defaults() -> None:
    page = (ROOT / "docs" / "settings.md").read_text("utf-8")
    shown = page.split("```toml\n")[1].split("```")[0]
    assert shown == as_toml(OwnerSettings()), "paste the output of `portier-owner init`'s portier.toml into the page"


def test_every_test_the_threat_model_names_exists() -> None:
    page = (ROOT / "docs" / "threat-model.md").read_text("utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page)
    assert len(named) >= 20
    missing = [
        f"{file}::{function}"
        for file, function in named
        if not (ROOT / file).exists() or f"def {function}(" not in (ROOT / file).read_text("utf-8")
    ]
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text("utf-8"))
    assert [link for link in links if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("text", TOML)
def test_every_toml_file_on_a_page_is_one_that_the_product_reads(text: str, tmp_path: Path) -> None:
    found = tomllib.loads(text)
    path = tmp_path / "page.toml"
    path.write_text(text, "utf-8")
    if "contributors" in found:
        with own_modules(tmp_path) as write:
            write("my_detectors", SHOWN)
            checking.check(scenario.load(str(path)))
    elif "grid" in found:
        assert configuration.load(str(path)).cells
    else:
        kind = OwnerSettings if found.keys() <= OwnerSettings.model_fields.keys() else ContributorSettings
        assert load(kind, path, environment={}) == kind()


def test_the_shipped_forms_of_toml_are_all_on_some_page() -> None:
    assert len(TOML) >= 4  # a scenario, a comparison, the settings of both sides


def test_the_settings_page_lists_every_exit_code_of_the_owner() -> None:
    page = (ROOT / "docs" / "settings.md").read_text("utf-8")
    table = page.partition("## Exit codes of `portier-owner`\n")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| ([\d, ]+) \|", table, re.MULTILINE)
    listed = sorted(int(code) for row in rows for code in row.split(","))
    assert listed == sorted({0, 2, 130, *exit_codes()})


def test_the_exit_codes_at_the_top_of_the_errors_are_those_there_are() -> None:
    import common.errors

    listed = re.findall(r"\+?-* ?(\w+Error) +(\d+)", common.errors.__doc__ or "")
    assert {int(code): name for name, code in listed} == {code: kind.__name__ for code, kind in exit_codes().items()}


def test_the_spectral_vae_of_the_flower_page_runs_as_it_stands() -> None:
    page = (ROOT / "docs" / "flower.md").read_text("utf-8")
    (example,) = (text for text in re.findall(r"```python\n(.+?)```", page, re.DOTALL) if "SpectralVAE" in text)
    done = subprocess.run(
        [sys.executable, "-c", example],
        env=os.environ | {"PYTHONPATH": str(ROOT), "FLWR_TELEMETRY_ENABLED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
