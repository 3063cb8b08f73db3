"""Fitting a guard in a process of its own, which may be killed."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from common.datasets import save_examples
from common.errors import ConfigurationError, GuardError
from common.training import train
from owner.gatekeeper import Gatekeeper, Guard, GuardOptions
from owner.gatekeeper.assistants import Share
from owner.gatekeeper.fine_tunes import FineTunes
from owner.gatekeeper.fitting import FittingJob, fit, main
from owner.gatekeeper.protection import Protection

OPTIONS = GuardOptions(references=19, hidden=32, latent=8, epochs=2)


@pytest.fixture
def job(bench, tmp_path: Path) -> FittingJob:  # type: ignore[no-untyped-def]
    shares = bench.shares
    names = {
        "trigger_fit": shares.trigger_fit,
        "trigger_calibration": shares.trigger_calibration,
        "evaluation": shares.evaluation,
        "references_pool": shares.references,
    }
    for name, examples in names.items():
        save_examples(tmp_path / f"{name}.safetensors", examples)
    guard = bench.gatekeeper.guard
    return FittingJob(
        weights=bench.release,
        directory=tmp_path / "guard",
        spec=guard.spec,
        options=OPTIONS,
        finetuning=guard.finetuning,
        compute=guard.compute,
        **{name: tmp_path / f"{name}.safetensors" for name in names},
    )


def test_killed_at_any_reference_the_next_run_finishes_the_guard(bench, job: FittingJob, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    job.write(tmp_path / "job.json")
    command = [sys.executable, "-m", "owner.gatekeeper.fitting", str(tmp_path / "job.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as first:
        assert first.stdout is not None
        reports = [json.loads(first.stdout.readline()) for _ in range(4)]
        first.kill()
    assert [report["done"] for report in reports] == [1, 2, 3, 4]
    assert not job.directory.exists()
    kept = {path: path.stat().st_mtime_ns for path in job.work.rglob("*.json")}
    assert len(kept) >= 4

    again: list[int] = []
    guard = fit(job, progress=False, on_reference=lambda done, total, scores: again.append(done))
    assert again == list(range(1, 21))
    assert not job.work.exists()
    assert Guard.load(job.directory).options == guard.options == OPTIONS
    assert Gatekeeper.load(job.directory, bench.model).vet(bench.honest()).p_value is not None


def test_a_guard_that_stands_is_not_fitted_again(job: FittingJob) -> None:
    fit(job, progress=False)
    touched: list[int] = []
    fit(job, progress=False, on_reference=lambda done, total, scores: touched.append(done))
    assert touched == []


def test_shared_among_processes_the_fine_tunes_are_the_same_ones(
    bench,  # type: ignore[no-untyped-def]
    job: FittingJob,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alone = fit(dataclasses.replace(job, directory=tmp_path / "alone"), progress=False)
    made_here: list[int] = []
    make = FineTunes.make

    def counted(self: FineTunes, number: int, *given: Any, **named: Any) -> Any:
        made_here.append(number)
        return make(self, number, *given, **named)

    monkeypatch.setattr(FineTunes, "make", counted)
    monkeypatch.setattr("owner.gatekeeper.fitting._WORTH_SHARING", 1)
    work = Protection._reference

    def after_the_first_of_theirs(*given: Any) -> Any:
        while not list(job.work.glob("*/fitting-*.json")) and not list(job.work.glob("*/0*.json")):
            time.sleep(0.05)
        return work(*given)

    monkeypatch.setattr(Protection, "_reference", after_the_first_of_theirs)
    torch.set_num_threads(2)
    try:
        shared = fit(job, progress=False)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert len(made_here) < 20
    assert [one.scores for one in shared.references] == [one.scores for one in alone.references]
    assert not job.work.exists()


def test_what_an_assistant_leaves_undone_is_made_all_the_same(job: FittingJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("owner.gatekeeper.fitting._WORTH_SHARING", 1)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    torch.set_num_threads(2)
    try:
        guard = fit(job, progress=False)
    finally:
        torch.set_num_threads(1)
    assert len(guard.references) == 19


@pytest.mark.parametrize("text", ["", "1", "2/2", "-1/2", "a/b", "1/2/3"])
def test_a_share_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="INDEX/OF"):
        Share.parse(text)


def test_a_damaged_guard_is_replaced_by_a_whole_one(bench, job: FittingJob) -> None:  # type: ignore[no-untyped-def]
    fit(job, progress=False)
    (job.directory / "release.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(GuardError, match="damaged"):
        Guard.load(job.directory)
    touched: list[int] = []
    fit(job, progress=False, on_reference=lambda done, total, scores: touched.append(done))
    assert touched == list(range(1, 21))
    assert Gatekeeper.load(job.directory, bench.model).vet(bench.honest()).p_value is not None


def test_what_a_process_killed_while_it_wrote_has_left_is_removed_and_a_living_ones_is_not(job: FittingJob) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    dead = job.directory.with_name(f".guard-{gone.pid}-abc")
    living = job.directory.with_name(f".guard-{os.getppid()}-abc")
    for folder in (dead, living):
        folder.mkdir()
    fit(job, progress=False)
    assert not dead.exists()
    assert {path.name for path in job.directory.parent.glob(".guard-*")} == {living.name}


@pytest.mark.parametrize(("content", "code"), [("{", 40), ("{}", 10), ('{"weights": "x"}', 10)])
def test_a_job_that_cannot_be_read_is_told_in_one_line(
    tmp_path: Path, content: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "job.json").write_text(content)
    assert main([str(tmp_path / "job.json")]) == code
    assert "fitting job" in capsys.readouterr().err


def test_a_guard_that_shall_have_more_references_is_grown_from_the_one_that_stands(
    job: FittingJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = dataclasses.replace(job.options, references=4, reject_level=0.2, quarantine_level=0.2)
    first = fit(dataclasses.replace(job, options=few), progress=False)
    trained = []

    def counted(*given, **options):  # type: ignore[no-untyped-def]
        trained.append(given)
        return train(*given, **options)

    monkeypatch.setattr("owner.gatekeeper.fine_tunes.train", counted)
    grown = fit(dataclasses.replace(job, options=dataclasses.replace(few, references=6)), progress=False)
    assert len(trained) == 2
    assert [one.scores for one in grown.references[:4]] == [one.scores for one in first.references]
    other = dataclasses.replace(few, seed=1)
    fit(dataclasses.replace(job, options=other), progress=False)
    assert len(trained) == 2 + 5
