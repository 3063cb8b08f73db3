"""`portier-owner compare`: what it refuses, what it plans, and that it goes on where it stopped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from owner.cli.application import run
from owner.federated import FederationConfig, FederationResult, running


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        (('"krum"', '"krumm"'), 11, "did you mean krum?"),
        (('"sign-flip"', '"sign-flop"'), 11, "did you mean sign-flip?"),
        (('model = "logistic"', 'model = "logistics"'), 11, "did you mean logistic?"),
        (("[federation]", '[federation]\ndata = "digit"'), 11, "did you mean digits?"),
        (("clients = 5", "clints = 5"), 11, "did you mean clients?"),
        (('"gated"', '"gated:guard-detectors=activation-autoencodr"'), 11, "activation-autoencoder"),
        (('setting = "incremental"', 'setting = "alone"'), 11, "unknown setting"),
        (("source=7", "source=12"), 10, "source class must be from 0 to 9"),
        (("[0.2]", "[1.2]"), 10, "attacker-share must be from 0 to 1"),
        (("attacker-share = [0.2]", "attackers = [6]"), 10, "6 attackers among 5 clients"),
        (('engine = "inline"', 'client-app = "no.such.module"\nengine = "inline"'), 10, "cannot be imported"),
    ],
)
def test_a_mistake_is_told_before_anything_runs(
    change: tuple[str, str], code: int, says: str, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = config.read_text()
    assert change[0] in text
    config.write_text(text.replace(*change))
    assert run(["compare", str(config), "--work", str(tmp_path / "runs")]) == code
    assert says in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "runs").exists()


def test_an_unknown_name_of_a_comparison_is_told_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", "digit", "--plan"]) == 11
    assert "did you mean digits?" in capsys.readouterr().err


def test_a_seed_that_is_none_is_refused(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", str(config), "--plan", "--seeds", "0,one"]) == 10
    assert "a seed must be a whole number" in capsys.readouterr().err


def test_the_plan_counts_what_is_left_and_runs_nothing(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "runs"
    assert run(["compare", str(config), "--plan", "--json", "--work", str(work)]) == 0
    first, second = json.loads(capsys.readouterr().out)["blocks"]
    assert (first["cells"], first["to_do"], first["seconds"]) == (12, 12, None)
    assert (second["cells"], second["unserved"], second["to_do"]) == (12, 4, 8)
    assert not work.exists()


def test_the_plan_of_a_finished_comparison_has_nothing_left_to_do(
    config: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["compare", str(config), "--plan", "--work", str(finished)]) == 0
    assert "24 cells, 0 to do" in capsys.readouterr().out


def test_the_plan_tells_times_by_cells_like_those_that_are_left(
    config: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["compare", str(config), "--plan", "--json", "--seeds", "0,1,2", "--work", str(finished)]) == 0
    first, _ = json.loads(capsys.readouterr().out)["blocks"]
    assert first["to_do"] == 6
    assert first["seconds"] > 0


def test_one_cell_that_took_long_is_not_the_estimate_of_all_others(
    config: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "runs"
    shutil.copytree(finished, work)
    for path in work.glob("*.json"):
        record = json.loads(path.read_bytes())
        if record["status"] == "done":
            first = record["values"]["seed"] == 0 and record["values"]["attack"] == "sign-flip"
            path.write_text(json.dumps(record | {"wall_seconds": 3600.0 if first else 1.0}))
    assert run(["compare", str(config), "--plan", "--json", "--seeds", "0,1,9", "--work", str(work)]) == 0
    blocks = json.loads(capsys.readouterr().out)["blocks"]
    assert [(block["to_do"], block["seconds"]) for block in blocks] == [(6, 6.0), (4, 4.0)]


def test_what_is_done_is_not_done_again(
    config: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "runs"
    shutil.copytree(finished, work)
    gone = sorted(work.glob("*.json"))[3]
    before = gone.read_bytes()
    gone.unlink()
    kept = {path: path.stat().st_mtime_ns for path in work.glob("*.json")}
    assert run(["compare", str(config), "--work", str(work), "--stage", "run", "--parallel", "1"]) == 0
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    again, first = json.loads(gone.read_bytes()), json.loads(before)
    assert again["values"] == first["values"]
    assert again["status"] == first["status"]


def test_cells_of_other_code_are_run_again_and_can_be_kept(
    config: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "runs"
    shutil.copytree(finished, work)
    one = sorted(work.glob("*.json"))[3]
    record = json.loads(one.read_bytes())
    del record["environment"]["code"]
    one.write_text(json.dumps(record))
    arguments = ["compare", str(config), "--plan", "--work", str(work)]
    assert run([*arguments, "--keep-older"]) == 0
    assert "24 cells, 0 to do" in capsys.readouterr().out
    assert run(["compare", str(config), "--work", str(work), "--stage", "run", "--parallel", "1"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "1 records in" in said
    assert "--keep-older" in said
    assert json.loads(one.read_bytes())["environment"]["code"]
    assert run(arguments) == 0
    assert "were made by other code" not in capsys.readouterr().err


def test_published_records_of_cells_that_are_asked_for_no_more_are_left_out_and_counted(
    config: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(["compare", str(config), "--stage", "report", "--work", str(finished), "--out", str(out)]) == 0
    config.write_text(config.read_text().replace("rounds = 2", "rounds = 3"))
    capsys.readouterr()
    arguments = ["compare", str(config), "--plan", "--work", str(tmp_path / "runs")]
    assert run([*arguments, "--merge", str(out / "federated.json")]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "0 records taken over" in said
    assert "24 records there are of cells that this comparison does not have" in said


def test_no_time_at_all_runs_nothing_and_says_how_to_go_on(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "runs"
    assert run(["compare", str(config), "--work", str(work), "--stage", "run", "--stop-after", "0"]) == 0
    assert "24 cells are left; the same command goes on" in " ".join(capsys.readouterr().err.split())
    assert not list(work.glob("*.json"))


def test_a_cell_that_fails_ends_no_other_and_shows_in_the_exit_code(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = running.run_federation

    def breaks_on_krum(federation: FederationConfig) -> FederationResult:
        if federation.strategy == "krum":
            raise ZeroDivisionError("division by zero")
        return honest(federation)

    monkeypatch.setattr(running, "run_federation", breaks_on_krum)
    arguments = ["compare", str(config), "--block", "in rounds", "--seeds", "0", "--parallel", "1"]
    arguments += ["--work", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    assert run(arguments) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "2 cells failed, the first: ZeroDivisionError: division by zero" in said
    assert "| failed |" in (tmp_path / "out" / "federated.md").read_text()
    monkeypatch.undo()
    assert run(arguments) == 0
    assert "| failed |" not in (tmp_path / "out" / "federated.md").read_text()


def test_a_report_of_nothing_is_refused(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", str(config), "--stage", "report", "--work", str(tmp_path / "none")]) == 10
    assert "holds no records of this comparison" in capsys.readouterr().err


def test_rows_come_as_json_for_a_program(
    config: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["compare", str(config), "--stage", "report", "--work", str(finished), "--out", str(out), "--json"]
    assert run(arguments) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert len(rows) == 12
    krum = next(r for r in rows if r["strategy"] == "krum" and r["attack"] == "sign-flip" and "setting" not in r)
    assert (krum["n"], krum["recall"]) == (2, 1.0)
    assert (out / "federated.md").exists()


def test_results_go_into_the_work_folder_unless_somebody_names_another(
    config: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished, tmp_path / "compare-runs")
    published = tmp_path / "docs" / "results"
    published.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert run(["compare", str(config), "--stage", "report"]) == 0
    assert (tmp_path / "compare-runs" / "results" / "small" / "federated.json").is_file()
    assert list(published.iterdir()) == []


@pytest.mark.parametrize("numbers", ['{"title": "Published"}', "[]", None])
def test_a_page_of_another_comparison_is_replaced_only_by_force(
    numbers: str | None, config: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "federated.md").write_text("published")
    if numbers is not None:
        (out / "federated.json").write_text(numbers)
    arguments = ["compare", str(config), "--stage", "report", "--work", str(finished), "--out", str(out)]
    assert run(arguments) == 10
    assert "--force" in capsys.readouterr().err
    assert (out / "federated.md").read_text() == "published"
    assert run([*arguments, "--force"]) == 0
    assert run(arguments) == 0  # its own page is made anew
    assert "A small one" in (out / "federated.md").read_text()
