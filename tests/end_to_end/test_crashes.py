"""An owner killed at any moment of a vetting, a release, a promotion, a rollback or a training goes on as if nothing had been.

Each kill is a real SIGKILL of a real process, at one of the moments `dying` counts. The fast tests take some moments of each
kind of work, spread evenly; the slow ones take every one.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from common.manifest import parse_release
from common.weights import digest_file
from owner.ledger.records import SubmissionState
from owner.operations.founding import init
from owner.operations.opening import Office, open_office
from tests.end_to_end.dying import WORK, count_moments, kill
from tests.owner.people import QUICK, Contributor, negated, slightly_changed

FEW = 5


def whole(root: Path) -> None:
    """Whatever happened: ledger and files agree, and nothing half done is left behind."""
    with open_office(root) as office:
        report = office.store.verify()
        assert report.ok, report.problems
        rows = {one.id: one for one in office.store.releases()}
        assert {path.name for path in office.workspace.releases.iterdir()} == set(rows)
        for identifier, release in rows.items():
            files = office.workspace.release(identifier)
            assert digest_file(files.weights) == release.weights_sha256
            assert parse_release(files.manifest.read_bytes()).id == identifier
        assert not list(office.workspace.submissions.glob("*/would_be.safetensors"))
        assert not [path for part in ("unfinished", "unpublished") for path in root.rglob(f"*{part}*")]


def vetted(root: Path) -> None:
    with open_office(root) as office:
        submissions = office.store.submissions()
        assert {one.contributor: one.state for one in submissions} == {
            "ada": SubmissionState.ACCEPTED,
            "eve": SubmissionState.REJECTED,
        }
        assert len(office.store.entries(kind="verdict")) == 2
        assert len(office.store.releases()) == 2
        assert office.store.current().submission_id == next(one.id for one in submissions if one.contributor == "ada")


def promoted(root: Path) -> None:
    with open_office(root) as office:
        (submission,) = office.store.submissions()
        assert submission.state is SubmissionState.ACCEPTED
        assert office.store.current().submission_id == submission.id
        assert [entry.body["decision"] for entry in office.store.entries(kind="verdict")] == ["quarantined", "accepted"]


def rolled_back(root: Path) -> None:
    with open_office(root) as office:
        assert office.store.current().id == office.store.root().id
        assert len(office.store.entries(kind="rollback")) == 1
        assert len(office.store.releases()) == 2


def trained(root: Path) -> None:
    with open_office(root) as office:
        (release,) = office.store.releases()
        assert release.id == office.store.current().id


def two_submissions(office: Office) -> None:
    Contributor(office, "ada").hand_in(slightly_changed)
    Contributor(office, "eve").hand_in(negated)


def one_in_quarantine(office: Office) -> None:
    submission = Contributor(office, "ada").hand_in(slightly_changed)
    assert office.store.claim() is not None
    office.store.decide(
        submission.id, SubmissionState.QUARANTINED, {"decision": "quarantined", "checks": [], "codes": []}
    )


def one_accepted(office: Office) -> None:
    Contributor(office, "ada").hand_in(slightly_changed)


def prepared(work: str, protected: Path, target: Path) -> Path:
    """A workspace in which `work` is still to be done."""
    if work == "train":
        init(target, {**QUICK, "training.epochs": 2})
        return target
    shutil.copytree(protected, target)
    begin: dict[str, Callable[[Office], None]] = {
        "vet": two_submissions,
        "promote": one_in_quarantine,
        "roll back": one_accepted,
    }
    with open_office(target) as office:
        begin[work](office)
    if work == "roll back":
        WORK["vet"](target)
    return target


DONE = {"vet": vetted, "promote": promoted, "roll back": rolled_back, "train": trained}


def is_done(work: str, root: Path) -> bool:
    with open_office(root) as office:
        if work == "promote":
            return not office.store.submissions(state=SubmissionState.QUARANTINED)
        if work == "train":
            return bool(office.store.releases())
    return False


def survive(work: str, protected: Path, tmp_path: Path, choose: Callable[[int], list[int]]) -> int:
    """Kill `work` at the chosen moments, each in a fresh workspace, do it again, and look; returns how many were killed."""
    template = prepared(work, protected, tmp_path / "template")
    moments = count_moments(work, Path(shutil.copytree(template, tmp_path / "undisturbed")))
    killed = 0
    for moment in choose(moments):
        root = Path(shutil.copytree(template, tmp_path / f"killed-at-{moment}"))
        killed += kill(work, root, moment) == -9
        if not is_done(work, root):
            WORK[work](root)
        # A service that starts puts right what the killed process left.
        if work != "vet":
            WORK["vet"](root)
        whole(root)
        DONE[work](root)
        shutil.rmtree(root)
    return killed


def spread(moments: int) -> list[int]:
    """FEW moments from the first to the last."""
    return sorted({1 + round(k * (moments - 1) / (FEW - 1)) for k in range(FEW)})


def every(moments: int) -> list[int]:
    return list(range(1, moments + 1))


@pytest.mark.parametrize("work", DONE)
def test_work_killed_at_some_moments_is_done_in_the_end_and_done_once(
    work: str, protected_workspace: Path, tmp_path: Path
) -> None:
    # Threads make the last moments come and go, so not each of them need be met.
    assert survive(work, protected_workspace, tmp_path, spread) >= FEW - 2


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("work", DONE)
def test_work_killed_at_every_moment_is_done_in_the_end_and_done_once(
    work: str, protected_workspace: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    killed = survive(work, protected_workspace, tmp_path, every)
    record_property("killed", killed)
    print(f"{work}: killed at {killed} moments")
    assert killed > FEW
