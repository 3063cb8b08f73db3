"""Second looks in the service: what p alone quarantined is decided by the escalation tier, and nothing else is."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.errors import GuardError, GuardNotReadyError
from common.weights import Weights
from owner import housekeeping
from owner.assessment import accept, vet
from owner.e_process import HistoryFinding
from owner.escalations import leave_to_person
from owner.gatekeeper.decision import interrupted
from owner.gatekeeper.jobs import VettingJob
from owner.gatekeeper.verdict import Check, Decision, Verdict
from owner.guards import GuardKeeper
from owner.ledger.records import GuardState, Release, Submission, SubmissionState
from owner.operations.deciding import promote, vet_file
from owner.operations.founding import init, train_first
from owner.operations.guarding import calibrate, protect
from owner.operations.opening import Office, open_office
from owner.suspicions import is_awaiting
from tests.owner import vetting_runs
from tests.owner.people import QUICK, Contributor, InProcess, negated, slightly_changed

TIER = {
    "guard.detectors": "paper",
    "guard.quarantine_level": 0.95,
    "guard.escalation": "maximum-margin",
    "guard.escalation_references": 4,
    "guard.escalation_reject_level": 0.2,
    "guard.escalation_quarantine_level": 0.2,
    "guard.fit": "on-demand",
    "utility.accuracy_drop": 1.0,
    "utility.recall_drop": 1.0,
}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("owner.guards.POLL_SECONDS", 0.02)
    monkeypatch.setattr("owner.vetting.POLL_SECONDS", 0.02)


@pytest.fixture(scope="session")
def tiered_workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a guard that has a tier, not calibrated. Never change it: `office` is a copy."""
    root = tmp_path_factory.mktemp("tiered") / "workspace"
    init(root, QUICK | TIER)
    with open_office(root) as office:
        train_first(office, progress=False)
        protect(office, progress=False)
    return root


@pytest.fixture
def office(tiered_workspace: Path, tmp_path: Path) -> Iterator[Office]:
    with open_office(Path(shutil.copytree(tiered_workspace, tmp_path / "workspace"))) as opened:
        yield opened


@pytest.fixture(scope="session")
def tier(tiered_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Of its release, calibrated."""
    copy = shutil.copytree(tiered_workspace, tmp_path_factory.mktemp("calibrated") / "workspace")
    with open_office(Path(copy)) as office:
        release = office.store.current()
        calibrate(office, release, progress=False)
        return office.workspace.release(release.id).escalation.read_bytes()


@pytest.fixture
def calibrated(office: Office, tier: bytes) -> Office:
    office.workspace.release(office.store.current().id).escalation.write_bytes(tier)
    return office


@pytest.fixture
def ada(office: Office) -> Contributor:
    return Contributor(office, "ada")


class Second(InProcess):
    """A worker whose second looks find what they are told."""

    def __init__(self, answer: Callable[[Verdict], Verdict] = lambda found: found) -> None:
        super().__init__()
        self.answer = answer

    @property
    def looks(self) -> int:
        return sum(job.escalation is not None for job in self.jobs)

    def vet(self, job: VettingJob) -> Verdict:
        found = super().vet(job)
        return found if job.escalation is None else self.answer(found)


def shouting(weights: Weights) -> Weights:
    """The head alone is changed, which the activations do not show: class 3 reaches margins that no class of the release does."""
    head = max(name for name in weights if name.endswith("weight"))
    louder = weights[head].clone()
    louder[3] *= 3
    return weights | {head: louder}


def run(
    office: Office,
    worker: InProcess,
    until: Callable[[], bool] | None = None,
    seconds: float = 240.0,
    **changes: object,
) -> None:
    """Run the vetting loop until nothing waits, or until `until`."""
    moving = {SubmissionState.RECEIVED, SubmissionState.AWAITING_GUARD, SubmissionState.VETTING}

    def settled() -> bool:
        return not any(
            one.state in moving or (one.state is SubmissionState.QUARANTINED and is_awaiting(one.verdict))
            for one in office.store.submissions()
        )

    vetting_runs.run(office, worker=worker, until=until or settled, seconds=seconds, **{**TIER, **changes})


def decisions(office: Office, submission: Submission) -> list[str]:
    """Of every verdict the ledger holds on it."""
    entries = office.store.entries(kind="verdict")
    return [str(one.body["decision"]) for one in entries if one.body["submission"] == submission.id]


def tier_check(office: Office, submission: Submission) -> Check:
    verdict = Verdict.from_json(office.store.submission(submission.id).verdict or {})
    (found,) = [check for check in verdict.checks if check.name == "escalation"]
    return found


def test_a_submission_in_quarantine_has_the_tier_calibrated_and_is_accepted(office: Office, ada: Contributor) -> None:
    """The calibration is a process of its own, as in the service."""
    submission, worker = ada.hand_in(slightly_changed), Second()
    run(office, worker)
    assert decisions(office, submission) == ["quarantined", "accepted"]
    assert (len(worker.jobs), worker.looks) == (2, 1)
    assert office.store.current().submission_id == submission.id
    assert office.workspace.release(submission.base_release).escalation.is_file()
    assert list(office.workspace.work.glob("*")) == []
    assert office.store.verify().ok


def test_what_the_tier_finds_inconsistent_is_rejected_by_it(calibrated: Office, ada: Contributor) -> None:
    submission = ada.hand_in(shouting)
    tier = calibrated.workspace.release(submission.base_release).escalation
    before = tier.stat().st_mtime_ns
    run(calibrated, Second())
    assert decisions(calibrated, submission) == ["quarantined", "rejected"]
    assert tier_check(calibrated, submission).code == "ESCALATION"
    assert tier_check(calibrated, submission).p_value == pytest.approx(0.2)
    assert tier.stat().st_mtime_ns == before
    assert calibrated.store.verify().ok


def test_what_is_rejected_at_once_asks_for_no_tier(office: Office, ada: Contributor) -> None:
    submission, worker = ada.hand_in(lambda w: {n: t * 50 for n, t in negated(w).items()}), Second()
    run(office, worker)
    assert decisions(office, submission) == ["rejected"]
    assert worker.looks == 0
    assert not office.workspace.release(submission.base_release).escalation.exists()


def test_what_the_tier_leaves_open_stays_with_its_verdict_and_is_not_looked_at_again(
    calibrated: Office, ada: Contributor
) -> None:
    def undecided(found: Verdict) -> Verdict:
        check = Check("escalation", Decision.QUARANTINED, score=1.0, p_value=0.4, code="ESCALATION")
        return Verdict(Decision.QUARANTINED, (*found.checks[:-1], check), (*found.codes, "ESCALATION"), p_value=0.6)

    submission, worker = ada.hand_in(slightly_changed), Second(undecided)
    run(calibrated, worker)
    run(calibrated, worker)
    assert worker.looks == 1
    assert decisions(calibrated, submission) == ["quarantined", "quarantined"]
    assert tier_check(calibrated, submission).p_value == 0.4
    assert calibrated.store.verify().ok


def test_a_second_look_that_takes_too_long_leaves_the_first_verdict_to_a_person(
    calibrated: Office, ada: Contributor
) -> None:
    submission = ada.hand_in(slightly_changed)
    run(calibrated, Second(lambda _: interrupted("VETTING_TIMEOUT", "too long", seconds=600.0)))
    found = calibrated.store.submission(submission.id)
    assert found.state is SubmissionState.QUARANTINED
    assert tier_check(calibrated, submission).code == "ESCALATION_NOT_RUN"
    assert "VETTING_TIMEOUT" in tier_check(calibrated, submission).detail
    assert Verdict.from_json(found.verdict or {}).p_value == pytest.approx(0.6)
    assert "AWAITING_ESCALATION" not in (found.verdict or {})["codes"]


def test_what_a_second_vetting_would_decide_without_the_tier_is_left_to_a_person(
    calibrated: Office, ada: Contributor
) -> None:
    """The tier moves what it has looked at; whatever else has changed since is for a person to weigh."""
    submission = ada.hand_in(slightly_changed)
    useless = Check("utility-recall", Decision.REJECTED, code="UTILITY_RECALL")
    run(calibrated, Second(lambda _: Verdict(Decision.REJECTED, (useless,), ("UTILITY_RECALL",))))
    assert decisions(calibrated, submission) == ["quarantined", "quarantined"]
    assert "UTILITY_RECALL" in tier_check(calibrated, submission).detail


def test_what_a_person_decides_during_a_second_look_stands(calibrated: Office, ada: Contributor) -> None:
    submission = ada.hand_in(slightly_changed)

    def meanwhile(found: Verdict) -> Verdict:
        calibrated.store.decide(submission.id, SubmissionState.REJECTED, {"decision": "rejected", "codes": []})
        return found

    current = calibrated.store.current()
    run(calibrated, Second(meanwhile))
    assert decisions(calibrated, submission) == ["quarantined", "rejected"]
    assert calibrated.store.current().id == current.id
    assert {path.name for path in calibrated.workspace.releases.iterdir()} == {current.id}


@pytest.mark.parametrize("accepted", [True, False])
def test_what_is_left_to_a_person_during_a_second_look_stays_left(
    calibrated: Office, ada: Contributor, accepted: bool
) -> None:
    submission = waiting(ada)

    def meanwhile(found: Verdict) -> Verdict:
        leave_to_person(calibrated.store, submission, "its base was rolled back")
        return found if accepted else Verdict(Decision.REJECTED, found.checks, ("ESCALATION",))

    run(calibrated, Second(meanwhile))
    assert decisions(calibrated, submission) == ["quarantined", "quarantined"]
    assert tier_check(calibrated, submission).detail == "its base was rolled back"
    assert list(calibrated.workspace.work.glob("*")) == []


def test_of_two_who_leave_it_to_a_person_at_once_one_writes(office: Office, ada: Contributor) -> None:
    submission = waiting(ada)
    both = threading.Barrier(2)

    def leave(why: str) -> None:
        both.wait()
        leave_to_person(office.store, submission, why)

    threads = [threading.Thread(target=leave, args=(why,)) for why in ("the tier was given up", "the base is too old")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert decisions(office, submission) == ["quarantined", "quarantined"]
    assert office.store.verify().ok


def test_a_guard_that_is_waited_for_comes_before_a_calibration_that_runs(
    office: Office, ada: Contributor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started = tmp_path / "started"
    started.touch()
    code = (
        "import json, sys, time; what = json.load(open(sys.argv[1]))['what']; "
        f"open({str(started)!r}, 'a').write(what + ' '); what == 'escalation' and time.sleep(600)"
    )
    monkeypatch.setattr("owner.guards.FITTING", (sys.executable, "-S", "-c", code))
    ada.hand_in(slightly_changed)
    waiting: list[Submission] = []

    def third_begun() -> bool:
        if not waiting and started.read_text():
            office.store.set_guard_state(office.store.root().id, GuardState.MISSING)
            waiting.append(ada.hand_in(slightly_changed))
        return len(started.read_text().split()) == 3

    run(office, Second(), third_begun)
    assert started.read_text().split() == ["escalation", "guard", "escalation"]


def waiting(contributor: Contributor, base: Release | None = None) -> Submission:
    """A submission that was found in need of the tier."""
    store, submission = contributor._office.store, contributor.hand_in(slightly_changed, base=base)
    store.claim()
    check = Check("escalation", Decision.QUARANTINED, code="AWAITING_ESCALATION")
    verdict = Verdict(Decision.QUARANTINED, (check,), ("AWAITING_ESCALATION",))
    return store.decide(submission.id, SubmissionState.QUARANTINED, verdict.to_json())[0]


def published(office: Office, contributor: Contributor) -> Release:
    """A release after the current one, with the same weights and guard."""
    submission, root = contributor.hand_in(), office.store.current()
    office.store.claim()
    merged = office.workspace.work / "merged.safetensors"
    shutil.copy(office.workspace.submission(submission.id).weights, merged)
    passed = Verdict(Decision.ACCEPTED)
    made = accept(
        office.workspace, office.store, office.signing_key, office.settings, submission, root, passed, merged=merged
    )
    shutil.copytree(office.workspace.release(root.id).guard, office.workspace.release(made.id).guard)
    office.store.set_guard_state(made.id, GuardState.READY)
    return made


def test_a_tier_that_cannot_be_calibrated_is_given_up_and_the_submission_can_be_promoted(
    office: Office, ada: Contributor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("owner.guards.TRIES", 1)
    monkeypatch.setattr(
        "owner.guards.FITTING", (sys.executable, "-S", "-c", "import sys; sys.exit('the disk is full')")
    )
    failed: list[str] = []
    monkeypatch.setattr("owner.guards.log.error", lambda *told: failed.append(str(told)))
    submission = ada.hand_in(slightly_changed)
    later: list[Submission] = []

    def settled() -> bool:
        if not later and decisions(office, submission) == ["quarantined", "quarantined"]:
            later.append(waiting(ada))
        return bool(later) and decisions(office, later[0]) == ["quarantined", "quarantined"]

    run(office, Second(), settled)
    assert "the disk is full" in failed[0]
    assert "the disk is full" in tier_check(office, later[0]).detail
    assert decisions(office, submission) == ["quarantined", "quarantined"]
    assert tier_check(office, submission).code == "ESCALATION_NOT_RUN"
    assert "the disk is full" in tier_check(office, submission).detail
    worker = InProcess()
    monkeypatch.setattr("owner.operations.deciding.VettingWorker", lambda **_: Entered(worker))
    assert promote(office, submission.id).release.submission_id == submission.id


class Entered:
    """A worker as a context."""

    def __init__(self, worker: InProcess) -> None:
        self.worker = worker

    def __enter__(self) -> InProcess:
        return self.worker

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("happened", "why"),
    [
        ("rolled back", "release 1 has been rolled back"),
        ("failed", "the guard of release 0 was given up: the disk is full"),
        ("too old", "release 0 is further back than the last 1 (merge.bases_allowed)"),
    ],
)
def test_what_waits_for_a_tier_that_no_submission_could_use_is_left_to_a_person(
    office: Office, ada: Contributor, monkeypatch: pytest.MonkeyPatch, happened: str, why: str
) -> None:
    monkeypatch.setattr("owner.guards.FITTING", (sys.executable, "-S", "-c", "import sys; sys.exit('was asked for')"))
    root = office.store.root()
    base = root if happened == "failed" else published(office, ada)
    submission = waiting(ada, root if happened == "too old" else base)
    if happened == "rolled back":
        office.store.rollback(root.id, "a mistake")
    elif happened == "failed":
        office.store.set_guard_state(root.id, GuardState.FAILED, error="the disk is full")
        # The service itself gives a failed guard another chance when it starts.
        monkeypatch.setattr("owner.guards.GuardKeeper.recover", lambda _: None)
    run(office, Second(), **{"merge.bases_allowed": 1 if happened == "too old" else 3})
    assert decisions(office, submission) == ["quarantined", "quarantined"]
    assert tier_check(office, submission).code == "ESCALATION_NOT_RUN"
    assert tier_check(office, submission).detail == why
    assert office.store.verify().ok


def test_a_guard_that_was_lost_is_fitted_again_for_what_waits_for_its_tier(office: Office, ada: Contributor) -> None:
    made = published(office, ada)
    waiting(ada, made)
    shutil.rmtree(office.workspace.release(made.id).guard)
    keeper = GuardKeeper(office.workspace, office.settings, office.store)
    keeper.recover()
    assert [one.id for one in keeper._needed()] == [made.id]


def test_only_an_error_of_the_tier_costs_the_tier(
    calibrated: Office, ada: Contributor, tier: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Both guards stand whole, so that fitting them again is reading them again.
    monkeypatch.setattr("owner.guards.FITTING", (sys.executable, "-S", "-c", ""))
    monkeypatch.setattr("owner.guards.RETRY_SECONDS", 0.0)
    files = calibrated.workspace.release(calibrated.store.current().id)
    troubles: list[GuardError] = [GuardNotReadyError("not yet"), GuardError("of the base"), GuardError("of the root")]
    troubles[2].of = "root"
    stood: list[bool] = []

    def troubled(found: Verdict) -> Verdict:
        stood.append(files.escalation.exists())
        if troubles:
            raise troubles.pop(0)
        return found

    submission = waiting(ada)
    run(calibrated, Second(troubled))
    assert stood == [True] * 4
    assert files.escalation.read_bytes() == tier
    assert calibrated.store.submission(submission.id).state is SubmissionState.ACCEPTED


def test_a_damaged_tier_is_calibrated_again(
    calibrated: Office, ada: Contributor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("owner.guards.RETRY_SECONDS", 0.0)
    submission = ada.hand_in(slightly_changed)
    tier = calibrated.workspace.release(submission.base_release).escalation
    whole = tier.read_bytes()
    (tmp_path / "whole").write_bytes(whole)
    tier.write_bytes(whole[:-20])
    code = f"import shutil; shutil.copy({str(tmp_path / 'whole')!r}, {str(tier)!r})"
    monkeypatch.setattr("owner.guards.FITTING", (sys.executable, "-S", "-c", code))
    run(calibrated, Second())
    assert decisions(calibrated, submission) == ["quarantined", "accepted"]
    assert tier.read_bytes() == whole


def test_a_tier_too_long_to_be_read_is_an_error_of_the_tier_and_of_nothing_else(
    calibrated: Office, ada: Contributor, tmp_path: Path
) -> None:
    submission, current = ada.hand_in(slightly_changed), calibrated.store.current()
    os.truncate(calibrated.workspace.release(current.id).escalation, 1 << 25)
    place, store, settings = calibrated.workspace, calibrated.store, calibrated.settings
    with pytest.raises(GuardError, match="longer than") as raised:
        vet(place, store, settings, InProcess(), submission, current, second_look=tmp_path / "merged")  # type: ignore[arg-type]
    assert raised.value.of == "escalation"


def test_a_file_that_came_by_other_ways_is_looked_at_too_and_calibrates_the_tier(
    office: Office, ada: Contributor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("owner.operations.deciding.VettingWorker", lambda **_: Entered(InProcess()))
    weights = office.workspace.submission(ada.hand_in(slightly_changed).id).weights
    entries = office.store.head().index
    verdict = vet_file(office, weights)
    assert verdict.decision is Decision.ACCEPTED
    assert verdict.measurements["escalation"]["p_value"] > 0.2
    assert office.store.head().index == entries
    assert office.workspace.release(office.store.current().id).escalation.is_file()


def test_what_the_contributors_history_holds_too_is_left_to_a_person(
    calibrated: Office, ada: Contributor, monkeypatch: pytest.MonkeyPatch
) -> None:
    alarm = HistoryFinding(50.0, 20.0, submissions=3, references=4)
    monkeypatch.setattr("owner.assessment.judge_history", lambda *_: alarm)
    submission, worker = ada.hand_in(slightly_changed), Second()
    run(calibrated, worker)
    assert decisions(calibrated, submission) == ["quarantined"]
    assert worker.looks == 0
    assert tier_check(calibrated, submission).code == "ESCALATION_NOT_RUN"


def test_an_acceptance_by_the_tier_does_not_overrule_an_alarm_of_the_history(
    calibrated: Office, ada: Contributor, monkeypatch: pytest.MonkeyPatch
) -> None:
    alarm = HistoryFinding(50.0, 20.0, submissions=3, references=4)

    def from_now_on(found: Verdict) -> Verdict:
        monkeypatch.setattr("owner.assessment.judge_history", lambda *_: alarm)
        return found

    submission = ada.hand_in(slightly_changed)
    run(calibrated, Second(from_now_on))
    assert decisions(calibrated, submission) == ["quarantined", "quarantined"]
    assert tier_check(calibrated, submission).decision is Decision.ACCEPTED
    assert "HISTORY" in (calibrated.store.submission(submission.id).verdict or {})["codes"]


def test_pruning_a_guard_takes_its_tier_with_it(calibrated: Office) -> None:
    release = calibrated.store.current()
    housekeeping._remove_guard(calibrated.workspace, calibrated.store, release.id)
    assert not calibrated.workspace.release(release.id).escalation.exists()
