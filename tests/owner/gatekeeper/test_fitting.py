"""Fitting a guard in a process of its own, which may be killed."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from common import canonical
from common.errors import ConfigurationError, GuardError
from common.training import train
from owner.gatekeeper import Gatekeeper, Guard, GuardOptions, UtilityLimits
from owner.gatekeeper.assistants import Share
from owner.gatekeeper.escalation import Escalation
from owner.gatekeeper.fine_tunes import FineTunes
from owner.gatekeeper.fitting import FittingJob, fit, fit_escalation, main
from owner.gatekeeper.making import ReferenceMaker
from owner.gatekeeper.own_processes import environment
from owner.gatekeeper.transplants import KEPT, KeptReferences
from tests.owner.gatekeeper.conftest import fitting_job

OPTIONS = GuardOptions(
    detectors=("paper",), references=9, reject_level=0.1, quarantine_level=0.1, hidden=32, latent=8, epochs=2
)


@pytest.fixture
def job(bench, tmp_path: Path) -> FittingJob:  # type: ignore[no-untyped-def]
    return fitting_job(bench, tmp_path, OPTIONS)


DYING = """
import os, signal, sys
from importlib import import_module
module, name, after, *arguments = sys.argv[1:]
within, _, called = name.rpartition(".")
holder = import_module(module)
holder = getattr(holder, within) if within else holder
call, left = getattr(holder, called), [int(after)]
def dying(*given):
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    return call(*given)
setattr(holder, called, dying)
from owner.gatekeeper.fitting import main
sys.exit(main(arguments))
"""
"""The process that fits, killed at the call of a function (module, name) that follows so many of them."""


def killed(job: FittingJob, path: Path, *, after: int) -> list[int]:
    """What a process of the owner reports to have done before it is killed, at the report that would have followed."""
    job.write(path)
    arguments = ["owner.gatekeeper.fitting", "_report", str(after), str(path)]
    process = subprocess.run(
        [sys.executable, "-P", "-c", DYING, *arguments], stdout=subprocess.PIPE, env=environment(), check=False
    )
    assert process.returncode == -signal.SIGKILL
    return [json.loads(line)["done"] for line in process.stdout.splitlines()]


@pytest.fixture
def made_here(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the fine-tunes that this process makes."""
    made: list[int] = []
    make = FineTunes.make

    def counted(self: FineTunes, number: int, *given: Any, **named: Any) -> Any:
        made.append(number)
        return make(self, number, *given, **named)

    monkeypatch.setattr(FineTunes, "make", counted)
    return made


def test_killed_at_any_reference_the_next_process_finishes_the_guard_and_the_tier(
    bench,  # type: ignore[no-untyped-def]
    job: FittingJob,
    tmp_path: Path,
    made_here: list[int],
) -> None:
    tier = dataclasses.replace(
        OPTIONS, escalation="maximum-margin", escalation_references=4, escalation_reject_level=0.2
    )
    job = dataclasses.replace(job, options=tier)
    assert killed(job, tmp_path / "job.json", after=4) == [1, 2, 3, 4]
    assert not job.directory.exists()
    again: list[int] = []
    guard = fit(job, progress=False, on_reference=lambda done, total, scores: again.append(done))
    assert again == list(range(1, 11))
    assert len(made_here) <= 6
    assert not job.work.exists()
    assert Guard.load(job.directory).options == guard.options == tier
    assert Gatekeeper.load(job.directory, bench.model).vet(bench.honest()).p_value is not None

    made_here.clear()
    assert killed(dataclasses.replace(job, what="escalation"), tmp_path / "tier.json", after=1) == [1]
    assert not job.escalation.exists()
    assert len(fit_escalation(job, progress=False).references) == 4
    assert len(made_here) <= 3
    assert Escalation.load(job.escalation).fits(guard)
    assert not job.escalation_work.exists()


def test_a_guard_that_stands_is_not_fitted_again_and_left_work_is_removed(job: FittingJob) -> None:
    fit(job, progress=False)
    # As a process leaves it that is killed as soon as its guard stands.
    job.work.mkdir()
    job.work.joinpath("job.json").write_text("{}")
    touched: list[int] = []
    fit(job, progress=False, on_reference=lambda done, total, scores: touched.append(done))
    assert touched == []
    assert not job.work.exists()


def test_shared_with_a_process_that_is_killed_the_fine_tunes_are_the_same_ones(
    job: FittingJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made_here: list[int]
) -> None:
    job = dataclasses.replace(job, options=dataclasses.replace(OPTIONS, references=19))
    alone = fit(dataclasses.replace(job, directory=tmp_path / "alone"), progress=False)
    made_here.clear()
    assistants: list[subprocess.Popen[bytes]] = []

    class Remembered(subprocess.Popen[bytes]):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            assistants.append(self)

    make = ReferenceMaker.make

    def after_the_first_of_theirs(*given: Any) -> Any:
        assistants[0].wait()
        return make(*given)

    def dying(_: str, *arguments: str) -> list[str]:
        where = ["owner.gatekeeper.making", "ReferenceMaker.make", "1"]
        return [sys.executable, "-P", "-c", DYING, *where, *arguments]

    monkeypatch.setattr(subprocess, "Popen", Remembered)
    monkeypatch.setattr("owner.gatekeeper.assistants.command", dying)
    monkeypatch.setattr("owner.gatekeeper.fitting._WORTH_SHARING", 1)
    monkeypatch.setattr(ReferenceMaker, "make", after_the_first_of_theirs)
    torch.set_num_threads(2)
    try:
        shared = fit(job, progress=False)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert [process.returncode for process in assistants] == [-signal.SIGKILL]
    # All but the one that was made before the kill.
    assert len(made_here) == 19
    assert [one.scores for one in shared.references] == [one.scores for one in alone.references]
    assert not job.work.exists()


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
    assert touched == list(range(1, 11))
    assert Gatekeeper.load(job.directory, bench.model).vet(bench.honest()).p_value is not None


def test_what_a_process_killed_while_it_wrote_has_left_is_removed(job: FittingJob) -> None:
    job.directory.with_name(".guard-abc").mkdir()
    fit(job, progress=False)
    assert list(job.directory.parent.glob(".guard*")) == []


@pytest.mark.parametrize(("content", "code"), [("{", 40), ("{}", 10), ('{"weights": "x"}', 10)])
def test_a_job_that_cannot_be_read_is_told_in_one_line(
    tmp_path: Path, content: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "job.json").write_text(content)
    assert main([str(tmp_path / "job.json")]) == code
    assert "fitting job" in capsys.readouterr().err


@pytest.mark.parametrize(
    "path",
    [
        "parent_guard",
        "parent_weights",
        "fresh",
        "utility",
        "merge",
        "merge.weight",
        "utility.recall_drop",
        "options.detectors",
        "options.population",
        "finetuning.epochs",
        "spec.head",
    ],
)
def test_a_job_that_lacks_a_field_is_refused_by_its_name(
    job: FittingJob, tmp_path: Path, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    about = inner = dataclasses.replace(job, utility=UtilityLimits()).to_json()
    *outer, name = path.split(".")
    for one in outer:
        inner = inner[one]
    del inner[name]
    (tmp_path / "job.json").write_bytes(canonical.encode(about))
    assert main([str(tmp_path / "job.json")]) == ConfigurationError.exit_code
    assert name in capsys.readouterr().err
    assert not job.directory.exists()


def test_a_job_survives_json(job: FittingJob) -> None:
    for one in (job, dataclasses.replace(job, utility=UtilityLimits(), parent_guard=job.directory, fresh=True)):
        assert FittingJob.from_json(canonical.parse(canonical.encode(one.to_json()), limit=1 << 20, depth=16)) == one


def test_a_guard_that_shall_have_more_references_is_grown_from_the_one_that_stands(
    job: FittingJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = dataclasses.replace(job.options, references=4, reject_level=0.2, quarantine_level=0.2, incremental=True)
    first = fit(dataclasses.replace(job, options=few), progress=False)
    trained = []

    def counted(*given, **options):  # type: ignore[no-untyped-def]
        trained.append(given)
        return train(*given, **options)

    monkeypatch.setattr("owner.gatekeeper.fine_tunes.train", counted)
    grown = fit(dataclasses.replace(job, options=dataclasses.replace(few, references=6)), progress=False)
    assert len(trained) == 2
    assert [one.scores for one in grown.references[:4]] == [one.scores for one in first.references]
    assert all(KeptReferences(job.directory / KEPT).holds("calibrating", k) for k in range(6))
    other = dataclasses.replace(few, seed=1)
    fit(dataclasses.replace(job, options=other), progress=False)
    assert len(trained) == 2 + 5
