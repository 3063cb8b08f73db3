"""The committed stubs are those of the definition."""

from __future__ import annotations

from pathlib import Path

import pytest

from protos import generate


def test_the_committed_stubs_are_a_fresh_generation() -> None:
    assert generate.differing() == []


def test_a_stale_stub_is_named_with_the_command_that_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    generate.generate(tmp_path)
    (tmp_path / "collaboration_pb2.pyi").write_text("something older")
    monkeypatch.setattr(generate.differing, "__defaults__", (tmp_path,))
    assert generate.main(["--check"]) == 1
    assert "collaboration_pb2.pyi" in (said := capsys.readouterr().err)
    assert "python -m protos.generate" in said
