"""The command: what it refuses and how, and that it needs the training and detection core alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from owner.cli.application import run as run_owner
from owner.reproduce.__main__ import run
from owner.reproduce.records import Work
from owner.reproduce.settings import Settings
from owner.reproduce.steps import Step

ROOT = Path(__file__).resolve().parents[3]
SERVICE_ONLY = ("flwr", "grpc", "sqlalchemy", "alembic", "pydantic", "tomlkit", "cryptography", "matplotlib")


def options(work: Path, *more: str) -> list[str]:
    return ["--smoke", "--dataset", "digits", "--architectures", "cnn", "--work", str(work), *more]


@pytest.mark.parametrize(
    ("wrong", "code", "says"),
    [
        (["--architectures", "resnet19"], 11, "did you mean resnet18"),
        (["--experiments", "table"], 11, "did you mean tables"),
        (["--seeds", "one"], 10, "a seed must be a whole number"),
        (["--target", "horse"], 10, "no class 'horse'"),
        (["--fraction", "2"], 10, "fraction must be from"),
        (["--attack-data", "outside"], 11, "unknown attack-data"),
        (["--dataset", "nowhere"], 11, "unknown data set"),
        (["--device", "abacus"], 11, "unknown device"),
        (["--stage", "later"], 2, "later"),
        (["--seeds", ","], 10, "--seeds names none"),
        (["--architectures", ""], 10, "--architectures names none"),
    ],
)
def test_bad_input_is_refused_with_the_way_out(
    wrong: list[str], code: int, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(options(tmp_path, "--plan", *wrong)) == code
    assert says in " ".join(capsys.readouterr().err.split())


def test_a_folder_stays_nobodys_where_there_are_no_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    work = tmp_path / "work"
    assert run(["--smoke", "--work", str(work), "--data-dir", str(tmp_path)]) == 13
    assert "cifar10 was not found" in " ".join(capsys.readouterr().err.split())
    assert not work.exists()


def test_a_report_of_a_folder_without_results_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(options(tmp_path / "none", "--stage", "report")) == 20
    assert "holds no results" in capsys.readouterr().err


def test_a_new_folder_may_begin_as_another_ones_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Work(tmp_path / "other").open(Settings(dataset="digits", smoke=True))
    arguments = ["--stage", "report", "--merge", str(tmp_path / "other"), "--out", str(tmp_path / "out")]
    assert run(options(tmp_path / "new", *arguments)) == 0
    assert "0 records taken over" in capsys.readouterr().out
    assert (tmp_path / "out" / "paper.md").exists()


def test_a_report_of_other_settings_than_were_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Work(tmp_path / "work").open(Settings(dataset="digits", smoke=True))
    assert run(options(tmp_path / "work", "--stage", "report", "--honest-epochs", "long")) == 10
    assert "holds results of honest-epochs 'as-attack', and not of 'long'" in " ".join(capsys.readouterr().err.split())


def test_a_report_leaves_out_what_is_of_other_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(options(tmp_path, "--stage", "run", "--experiments", "tables")) == 0
    genuine, honest = (Step("cnn", 0, name) for name in ("genuine", "honest"))
    work = Work(tmp_path)
    work.write(genuine, (work.record(genuine) or {}) | {"weights": {"genuine": "another"}})
    assert run(options(tmp_path, "--stage", "report", "--out", str(tmp_path / "out"))) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert str(honest) in said.partition("left out, for they are of other models than those beside them: ")[2]
    published = json.loads((tmp_path / "out" / "paper.json").read_text("utf-8"))
    assert [record["step"] for record in published["records"]] == ["genuine"]


def test_a_folder_in_use_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Work(tmp_path).writing():
        assert run(options(tmp_path, "--stage", "run", "--stop-after", "0")) == 21
    assert f"another command (pid {os.getpid()}) is at work" in " ".join(capsys.readouterr().err.split())


def test_the_plan_says_what_comes_next_and_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_owner(["reproduce", *options(tmp_path, "--plan", "--experiments", "tables")]) == 0
    said = capsys.readouterr().out
    assert [line.split()[3] for line in said.splitlines()[1:6]] == ["genuine", "honest", "flip", "pattern", "detect"]
    assert "0 of 5 steps done" in said
    assert not list(tmp_path.iterdir())


def test_no_time_at_all_stops_at_once_and_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(options(tmp_path, "--stop-after", "0", "--stage", "run", "--experiments", "tables")) == 0
    said = capsys.readouterr().out
    assert "the same command goes on from here" in said
    assert "0 of 5 steps done" in said


def test_it_runs_and_reports_without_what_only_a_service_needs(tmp_path: Path) -> None:
    program = (
        f"import sys, runpy; sys.modules.update(dict.fromkeys({SERVICE_ONLY!r}));"
        "sys.argv[0] = 'owner.reproduce'; runpy.run_module('owner.reproduce', run_name='__main__')"
    )
    arguments = options(tmp_path / "work", "--experiments", "tables", "--out", str(tmp_path / "out"), "--device", "cpu")
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "5/5 cnn seed 0 detect" in result.stdout
    assert "no figures: figures need matplotlib" in result.stdout
    assert "| CNN |" in (tmp_path / "out" / "paper.md").read_text("utf-8")


def test_results_go_into_the_work_folder_unless_somebody_names_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = tmp_path / "docs" / "results"
    published.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    Work(tmp_path / "paper-runs").open(Settings(dataset="digits", smoke=True))
    assert run(["--smoke", "--dataset", "digits", "--stage", "report"]) == 0
    assert (tmp_path / "paper-runs" / "results" / "paper.json").is_file()
    assert list(published.iterdir()) == []


def test_a_smoke_run_replaces_no_page_but_a_smoke_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "out")]
    Work(tmp_path / "full").open(Settings(dataset="digits"))
    Work(tmp_path / "smoke").open(Settings(dataset="digits", smoke=True))
    full = ["--dataset", "digits", "--stage", "report", "--work", str(tmp_path / "full"), *out]
    assert run(full) == 0
    published = (tmp_path / "out" / "paper.json").read_bytes()
    for stage in ("report", "all"):  # all: before anything is trained
        assert run(options(tmp_path / "smoke", "--stage", stage, *out)) == 10
        assert "holds results of smoke False, and these are of True" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "out" / "paper.json").read_bytes() == published
    assert run(options(tmp_path / "smoke", "--stage", "report", *out, "--force")) == 0
    assert run(full) == 0  # a smoke run's page is anybody's to replace
    assert (tmp_path / "out" / "paper.json").read_bytes() == published


def test_a_page_without_its_numbers_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Work(tmp_path / "work").open(Settings(dataset="digits", smoke=True))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "paper.md").write_text("somebody's")
    assert run(options(tmp_path / "work", "--stage", "report", "--out", str(tmp_path / "out"))) == 10
    assert "not the numbers that it was made of" in " ".join(capsys.readouterr().err.split())
