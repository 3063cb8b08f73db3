"""Guards as the vetting loop keeps them: fitted when they are waited for, found damaged, given up, fitted again."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from common import canonical
from common.errors import GuardError
from owner import assessment
from owner.gatekeeper.fitting import work_path
from owner.gatekeeper.jobs import VettingJob
from owner.gatekeeper.supervisor import VettingUnavailableError
from owner.gatekeeper.verdict import Verdict
from owner.guards import GuardKeeper, guard_defect, needed_guards
from owner.ledger.records import GuardState, Release, SubmissionState
from owner.operations import looking
from owner.operations.opening import Office
from tests.owner.people import Contributor, InProcess, slightly_changed
from tests.owner.vetting_runs import decided, run, settings


def test_submissions_on_a_release_without_guard_wait_until_it_is_fitted(office: Office, ada: Contributor) -> None:
    ada.hand_in(slightly_changed)
    run(office)
    release = office.store.current()
    assert release.guard_state is GuardState.MISSING
    submission = ada.hand_in(slightly_changed)
    states: set[SubmissionState] = set()

    def done() -> bool:
        states.add(office.store.submission(submission.id).state)
        return office.store.submission(submission.id).state in {SubmissionState.ACCEPTED, SubmissionState.REJECTED}

    run(office, until=done)
    assert SubmissionState.AWAITING_GUARD in states
    assert office.store.release(release.id).guard_state is GuardState.READY
    assert (office.workspace.release(release.id).guard / "guard.json").is_file()


def test_the_root_guard_comes_first_then_those_waited_for_then_an_eager_owners_next(
    office: Office, ada: Contributor
) -> None:
    for _ in range(2):
        ada.hand_in(slightly_changed)
        run(office)
        office.store.set_guard_state(office.store.current().id, GuardState.READY)
    root, second, third = office.store.releases()
    for release in (root, second, third):
        office.store.set_guard_state(release.id, GuardState.MISSING)

    def needed(fit: str) -> list[str]:
        return [one.id for one in needed_guards(office.store, settings(office, guard__fit=fit))]

    assert needed("on-demand") == []
    assert needed("eager") == [root.id, third.id]
    ada.hand_in(slightly_changed, base=second)
    assert needed("on-demand") == [root.id, second.id]
    assert needed("eager") == [root.id, second.id, third.id]
    office.store.set_guard_state(second.id, GuardState.FAILED)
    assert needed("on-demand") == [root.id]


def guard_history(office: Office, release: Release) -> list[str]:
    return [one.body["state"] for one in office.store.entries(kind="guard") if one.body["release"] == release.id]


def copying(protected_workspace: Path, *, once_there: Path = Path("/")) -> tuple[str, ...]:
    """The command of a process that copies a guard instead of fitting one, as soon as the file `once_there` exists."""
    (guard,) = protected_workspace.glob("releases/*/guard")
    code = f"""if True:
        import json, os, shutil, sys, time
        while not os.path.exists({str(once_there)!r}):
            time.sleep(0.01)
        directory = json.load(open(sys.argv[1]))["directory"]
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree({str(guard)!r}, directory)
    """
    return sys.executable, "-S", "-c", code


@pytest.fixture
def fitted_at_once(monkeypatch: pytest.MonkeyPatch, protected_workspace: Path) -> None:
    """Guards are not fitted but copied, from the root of the workspace all these are copies of."""
    monkeypatch.setattr("owner.guards.FITTING", copying(protected_workspace))


def with_second_release(office: Office, ada: Contributor) -> tuple[Release, Release]:
    """The root, and a release after it with the same weights (nothing was changed), both with a guard."""
    ada.hand_in()
    run(office)
    root, second = office.store.root(), office.store.current()
    assert (second.number, second.weights_sha256) == (1, root.weights_sha256)
    shutil.copytree(office.workspace.release(root.id).guard, office.workspace.release(second.id).guard)
    office.store.set_guard_state(second.id, GuardState.READY)
    return root, second


@pytest.mark.parametrize(
    ("device", "error"),
    [("auto", "it cannot be fitted: exit code 1: the disk is full"), ("cuda:99", "cuda:99")],
    ids=["its process fails", "it has no process"],
)
def test_a_guard_that_cannot_be_fitted_is_given_up_after_some_tries_and_status_says_why(
    office: Office, monkeypatch: pytest.MonkeyPatch, device: str, error: str
) -> None:
    monkeypatch.setattr("owner.guards.RETRY_SECONDS", 0.0)
    monkeypatch.setattr(
        "owner.guards.FITTING", (sys.executable, "-S", "-c", "import sys; sys.exit('the disk is full')")
    )
    root = office.store.root()
    (office.workspace.release(root.id).guard / "guard.json").unlink()
    before = len(guard_history(office, root))
    run(
        office,
        guard__fit="eager",
        model__device=device,
        until=lambda: office.store.root().guard_state is GuardState.FAILED,
    )
    # What was found at the start, then each fitting that failed.
    assert guard_history(office, root)[before:] == ["missing", "missing", "missing", "failed"]
    (told,) = looking.status(office)["guard_errors"]
    assert (told["release"], told["number"], told["guard"]) == (root.id, 0, "failed")
    assert error in told["error"]


@pytest.mark.parametrize("harm", ["altered", "of another release", "gone"])
def test_a_guard_found_damaged_at_the_start_is_fitted_again_and_holds_up_nobody_else(
    office: Office,
    ada: Contributor,
    harm: str,
    protected_workspace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("owner.guards.FITTING", copying(protected_workspace, once_there=tmp_path / "fit"))
    root, damaged = with_second_release(office, ada)
    guard = office.workspace.release(damaged.id).guard
    if harm == "gone":
        shutil.rmtree(guard)
    elif harm == "altered":
        (guard / "triggers.safetensors").write_bytes(b"nothing of the kind")
    else:
        description = json.loads((guard / "guard.json").read_bytes())
        del description["sha256"]
        description["release_sha256"] = "ab" * 32
        description["sha256"] = hashlib.sha256(canonical.encode(description)).hexdigest()
        (guard / "guard.json").write_bytes(canonical.encode(description))
    first, second = ada.hand_in(slightly_changed, base=damaged), ada.hand_in(slightly_changed, base=root)

    def both_decided() -> bool:
        if decided(office, second)[0] is SubmissionState.ACCEPTED:
            (tmp_path / "fit").touch()
        return decided(office, first)[0] is SubmissionState.ACCEPTED

    run(office, until=both_decided)
    assert [one.body["submission"] for one in office.store.entries(kind="verdict")][1:] == [second.id, first.id]
    assert guard_history(office, damaged) == ["ready", "missing", "ready"]
    assert guard_defect(office.workspace, damaged) is None
    assert office.store.release(damaged.id).guard_error is None
    assert office.store.verify().ok


def test_files_without_their_guard_state_make_a_guard_ready_only_where_they_read(office: Office) -> None:
    root = office.store.root()
    guard = office.workspace.release(root.id).guard
    whole = (guard / "release.safetensors").read_bytes()

    def found_at_the_start() -> GuardState:
        office.store.set_guard_state(root.id, GuardState.FITTING)
        GuardKeeper(office.workspace, office.settings, office.store).recover()
        return office.store.root().guard_state

    assert found_at_the_start() is GuardState.READY
    guard.replace(guard.with_name(f".{guard.name}-put_aside"))
    assert found_at_the_start() is GuardState.READY
    work_path(guard).mkdir()
    assert found_at_the_start() is GuardState.MISSING
    assert office.store.root().guard_error is None
    (guard / "release.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert found_at_the_start() is GuardState.MISSING
    assert "damaged" in (office.store.root().guard_error or "")


@pytest.mark.usefixtures("fitted_at_once")
@pytest.mark.parametrize("whose", ["base", "root"])
def test_a_guard_that_vanishes_while_the_service_runs_is_fitted_again(
    office: Office, ada: Contributor, whose: str
) -> None:
    root, second = with_second_release(office, ada)
    lost = second if whose == "base" else root

    class Losing(InProcess):
        def vet(self, job: VettingJob) -> Verdict:
            if not self.jobs:
                shutil.rmtree(office.workspace.release(lost.id).guard)
            return super().vet(job)

    submission = ada.hand_in(slightly_changed, base=second)
    run(office, worker=Losing())
    assert decided(office, submission)[0] is SubmissionState.ACCEPTED
    assert guard_history(office, lost)[-2:] == ["missing", "ready"]


@pytest.mark.usefixtures("fitted_at_once")
def test_a_guard_that_reads_and_yet_never_serves_is_given_up_and_others_are_vetted(
    office: Office, ada: Contributor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("owner.guards.RETRY_SECONDS", 0.0)
    monkeypatch.setattr("owner.guards.TRIES", 2)
    root, second = with_second_release(office, ada)

    class Refusing(InProcess):
        def vet(self, job: VettingJob) -> Verdict:
            if job.guard == office.workspace.release(second.id).guard:
                self.jobs.append(job)
                raise GuardError("this guard will not do")
            return super().vet(job)

    stuck, other = ada.hand_in(slightly_changed, base=second), ada.hand_in(slightly_changed, base=root)

    def settled() -> bool:
        return (
            office.store.release(second.id).guard_state is GuardState.FAILED
            and office.store.submission(other.id).state is SubmissionState.ACCEPTED
        )

    run(office, worker=Refusing(), until=settled)
    assert office.store.submission(stuck.id).state in {SubmissionState.RECEIVED, SubmissionState.AWAITING_GUARD}
    assert office.store.release(second.id).guard_error == "this guard will not do"
    assert office.store.root().guard_state is GuardState.READY


@pytest.mark.usefixtures("fitted_at_once")
def test_trouble_with_the_root_guard_is_laid_to_the_root_and_not_to_the_base(
    office: Office, ada: Contributor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("owner.guards.RETRY_SECONDS", 0.0)
    monkeypatch.setattr("owner.guards.TRIES", 1)
    _, second = with_second_release(office, ada)

    def refuse(*_: object) -> None:
        raise GuardError("the root's detector is not registered here")

    monkeypatch.setattr("owner.gatekeeper.examination.Vetting._compare_with_root", refuse)
    ada.hand_in(slightly_changed, base=second)
    run(office, until=lambda: office.store.root().guard_state is GuardState.FAILED)
    assert office.store.root().guard_error == "the root's detector is not registered here"
    assert office.store.release(second.id).guard_state is GuardState.READY


def test_a_worker_that_does_not_start_discredits_no_guard(
    office: Office, ada: Contributor, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Late(InProcess):
        def vet(self, job: VettingJob) -> Verdict:
            if not self.jobs:
                self.jobs.append(job)
                raise VettingUnavailableError("the vetting process does not start")
            return super().vet(job)

    monkeypatch.setattr("owner.vetting.FIRST_PAUSE_SECONDS", 0.01)
    submission = ada.hand_in(slightly_changed)
    run(office, worker=Late())
    assert decided(office, submission)[0] is SubmissionState.ACCEPTED
    assert office.store.root().guard_state is GuardState.READY


def test_a_submission_cannot_be_vetted_without_the_guard_of_its_base(office: Office, ada: Contributor) -> None:
    submission = ada.hand_in(slightly_changed)
    office.store.set_guard_state(office.store.root().id, GuardState.FAILED)
    current = office.store.current()
    with pytest.raises(Exception, match="guard of release 0"):
        assessment.vetting_job(office.workspace, office.store, office.settings, replace(submission), current)
