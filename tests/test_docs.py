"""The documents tell the truth: settings as they are, tests that exist, links that lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from common.config import as_toml
from owner.settings import OwnerSettings

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]


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
