"""The vetting loop: what is received is decided, once, by everything that must be asked."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import shutil
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from common import canonical, timestamps
from common.config import load as load_settings
from common.errors import GuardError, StorageError
from common.files import storage_errors
from common.identity.keys import SigningKey
from common.weights import load, save
from owner import assessment, releases
from owner.gatekeeper.fitting import work_path
from owner.gatekeeper.guard import Guard
from owner.gatekeeper.jobs import VettingJob
from owner.gatekeeper.supervisor import VettingInterruptedError, VettingUnavailableError
from owner.gatekeeper.verdict import Check, Decision, Verdict
from owner.guards import GuardKeeper, guard_defect, needed_guards
from owner.ledger.records import GuardState, Release, Submission, SubmissionState
from owner.ledger.store import Store
from owner.operations import looking
from owner.operations.opening import Office
from owner.settings import OwnerSettings
from owner.vetting import VettingLoop
from tests.owner.people import QUICK, Contributor, InProcess, negated, slightly_changed


class Says(InProcess):
    """A worker that has made up its mind."""

    def __init__(self, decision: Decision, code: str) -> None:
        super().__init__()
        self.verdict = Verdict(decision, (Check("said", decision, code=code),), (code,))

    def vet(self, job: VettingJob) -> Verdict:
        return self.verdict


def settings(office: Office, **changes: Any) -> OwnerSettings:
    overrides = {**QUICK, **{name.replace("__", "."): value for name, value in changes.items()}}
    return load_settings(OwnerSettings, None, overrides, environment={})


def run(
    office: Office,
    *,
    worker: InProcess | None = None,
    until: Callable[[], bool] | None = None,
    clock: Callable[[], Any] = timestamps.now,
    seconds: float = 90.0,
    **changes: Any,
) -> None:
    """Run the loop until nothing is left to decide, or until `until`."""
    undecided = {SubmissionState.RECEIVED, SubmissionState.AWAITING_GUARD, SubmissionState.VETTING}

    def settled() -> bool:
        return not any(one.state in undecided for one in office.store.submissions())

    async def main() -> None:
        stop = asyncio.Event()
        loop = VettingLoop(
            office.workspace,
            settings(office, **{"guard__fit": "on-demand", **changes}),
            office.store,
            worker=worker or InProcess(),  # type: ignore[arg-type]
            clock=clock,
        )
        running = asyncio.create_task(loop.run(stop))
        async with asyncio.timeout(seconds):
            while not (until or settled)():
                assert not running.done(), running.exception()
                await asyncio.sleep(0.02)
        stop.set()
        await running

    asyncio.run(main())


def decided(office: Office, submission: Submission) -> tuple[SubmissionState, tuple[str, ...]]:
    found = office.store.submission(submission.id)
    return found.state, tuple((found.verdict or {}).get("codes", ()))


def test_an_honest_submission_becomes_the_next_release(office: Office, ada: Contributor) -> None:
    base = office.store.current()
    submission = ada.hand_in(slightly_changed)
    run(office)
    assert decided(office, submission) == (SubmissionState.ACCEPTED, ())
    release = office.store.current()
    assert (release.parent, release.submission_id) == (base.id, submission.id)
    assert office.store.submission(submission.id).release_id == release.id
    before, returned, after = (
        load(path)
        for path in (
            office.workspace.release(base.id).weights,
            office.workspace.submission(submission.id).weights,
            office.workspace.release(release.id).weights,
        )
    )
    for name in before:
        torch.testing.assert_close(after[name], (before[name] + returned[name]) / 2)
    assert not office.workspace.submission(submission.id).would_be.exists()
    assert office.store.verify().ok


def test_a_wrecked_model_is_rejected_and_changes_nothing(office: Office, ada: Contributor) -> None:
    base = office.store.current()
    submission = ada.hand_in(negated)
    run(office)
    state, codes = decided(office, submission)
    assert state is SubmissionState.REJECTED
    assert "UTILITY_ACCURACY" in codes
    assert office.store.current().id == base.id
    assert {path.name for path in office.workspace.releases.iterdir()} == {base.id}


def test_the_verdict_holds_admission_and_gatekeeper_checks_with_durations(office: Office, ada: Contributor) -> None:
    submission = ada.hand_in(slightly_changed)
    run(office)
    verdict = Verdict.from_json(office.store.submission(submission.id).verdict or {})
    names = [check.name for check in verdict.checks]
    assert names[:6] == ["signature", "enrolment", "base", "model", "digest", "layout"]
    assert {"gate", "utility-accuracy", "root-gate"} <= set(names)
    assert all(check.seconds >= 0 for check in verdict.checks)
    assert verdict.resolution == pytest.approx(1 / 5)


def test_submissions_are_decided_in_the_order_they_came(office: Office, ada: Contributor) -> None:
    bob = Contributor(office, "bob")
    order = [bob.hand_in(slightly_changed).id, ada.hand_in(negated).id, bob.hand_in(slightly_changed).id]
    run(office)
    assert [one.body["submission"] for one in office.store.entries(kind="verdict")] == order


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda w: {n: torch.full_like(t, torch.nan) for n, t in w.items()}, "NON_FINITE"),
        (lambda w: dict(list(w.items())[1:]), "TENSOR_MISSING"),
        (lambda w: {**w, "extra": torch.zeros(1)}, "TENSOR_EXTRA"),
        (lambda w: {n: t.reshape(-1) for n, t in w.items()}, "SHAPE_MISMATCH"),
        (lambda w: {n: t.double() for n, t in w.items()}, "DTYPE_MISMATCH"),
    ],
    ids=["NaN", "missing", "extra", "reshaped", "double"],
)
def test_weights_that_are_no_such_model_are_rejected_as_malformed(
    office: Office, ada: Contributor, spoil: Callable[[Any], Any], code: str
) -> None:
    submission = ada.hand_in(spoil)
    run(office)
    assert decided(office, submission) == (SubmissionState.REJECTED, (code,))
    assert (office.store.submission(submission.id).verdict or {})["public_code"] == "format"


def test_a_contributor_revoked_while_waiting_is_rejected(office: Office, ada: Contributor) -> None:
    submission = ada.hand_in(slightly_changed)
    office.store.revoke("ada", "left")
    run(office)
    assert decided(office, submission) == (SubmissionState.REJECTED, ("REVOKED",))


def test_a_contributor_revoked_while_being_vetted_gets_no_release(office: Office, ada: Contributor) -> None:
    class Meanwhile(InProcess):
        def vet(self, job: VettingJob) -> Verdict:
            verdict = super().vet(job)
            assert verdict.accepted
            office.store.revoke("ada", "left")
            return verdict

    base = office.store.current()
    submission = ada.hand_in(slightly_changed)
    run(office, worker=Meanwhile())
    assert decided(office, submission) == (SubmissionState.REJECTED, ("REVOKED",))
    assert office.store.current() == base
    assert {path.name for path in office.workspace.releases.iterdir()} == {base.id}
    assert not office.workspace.submission(submission.id).would_be.exists()


def test_a_manifest_signed_by_somebody_else_is_rejected(office: Office, ada: Contributor) -> None:
    submission = ada.hand_in(slightly_changed, sign_as=SigningKey.generate())
    run(office)
    assert decided(office, submission) == (SubmissionState.REJECTED, ("SIGNATURE_INVALID",))


def test_weights_altered_on_disk_are_rejected(office: Office, ada: Contributor) -> None:
    submission = ada.hand_in(slightly_changed)
    path = office.workspace.submission(submission.id).weights
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    run(office)
    assert decided(office, submission) == (SubmissionState.REJECTED, ("DIGEST_MISMATCH",))


def test_weights_that_vanished_wait_for_a_person(office: Office, ada: Contributor) -> None:
    submission = ada.hand_in(slightly_changed)
    office.workspace.submission(submission.id).weights.unlink()
    run(office)
    assert decided(office, submission) == (SubmissionState.QUARANTINED, ("WEIGHTS_UNREADABLE",))


def test_a_base_that_was_rolled_back_is_rejected_without_a_guard(office: Office, ada: Contributor) -> None:
    first = office.store.current()
    ada.hand_in(slightly_changed)
    run(office)
    submission = ada.hand_in(slightly_changed, base=office.store.current())
    office.store.rollback(first.id, "taken back")
    run(office)
    assert decided(office, submission) == (SubmissionState.REJECTED, ("BASE_ROLLED_BACK",))


def test_a_base_further_back_than_allowed_is_rejected(office: Office, ada: Contributor) -> None:
    first = office.store.current()
    ada.hand_in(slightly_changed)
    run(office)
    submission = ada.hand_in(slightly_changed, base=first)
    run(office, merge__bases_allowed=1)
    assert decided(office, submission) == (SubmissionState.REJECTED, ("BASE_NOT_ALLOWED",))


def test_the_policy_replace_takes_submissions_on_the_current_release_only(office: Office, ada: Contributor) -> None:
    first = office.store.current()
    ada.hand_in(slightly_changed)
    run(office, merge__policy="replace")
    submission = ada.hand_in(slightly_changed, base=first)
    run(office, merge__policy="replace")
    assert decided(office, submission) == (SubmissionState.REJECTED, ("BASE_NOT_CURRENT",))


def test_an_older_base_that_is_still_allowed_is_merged_onto_the_current_release(
    office: Office, ada: Contributor
) -> None:
    first = office.store.current()
    ada.hand_in(slightly_changed)
    run(office)
    second = office.store.current()
    submission = ada.hand_in(slightly_changed, base=first)
    run(office)
    assert decided(office, submission)[0] is SubmissionState.ACCEPTED
    assert office.store.current().parent == second.id


def test_a_release_published_meanwhile_makes_it_merge_again(office: Office, ada: Contributor) -> None:
    class Overtaken(InProcess):
        def vet(self, job: VettingJob) -> Verdict:
            verdict = super().vet(job)
            if len(self.jobs) == 1:
                current = office.store.current()
                manifest = releases.read_manifest(current)
                draft = office.workspace.work / "other.safetensors"
                save(draft, slightly_changed(load(office.workspace.release(current.id).weights)))
                prepared = releases.prepare(
                    office.workspace,
                    office.store,
                    office.signing_key,
                    draft,
                    parent=current.id,
                    spec=manifest.spec,
                    class_names=manifest.class_names,
                    finetuning=manifest.finetuning,
                )
                releases.publish(office.workspace, office.store, prepared)
            return verdict

    worker = Overtaken()
    submission = ada.hand_in(slightly_changed)
    run(office, worker=worker)
    assert len(worker.jobs) == 2
    current = office.store.current()
    assert (current.number, current.submission_id) == (2, submission.id)
    assert {path.name for path in office.workspace.releases.iterdir()} == {one.id for one in office.store.releases()}


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


@pytest.fixture
def fitted_at_once(monkeypatch: pytest.MonkeyPatch, protected_workspace: Path) -> None:
    """Guards are not fitted but copied, from the root of the workspace all these are copies of."""
    (guard,) = protected_workspace.glob("releases/*/guard")
    code = (
        "import json, shutil, sys; directory = json.load(open(sys.argv[1]))['directory']; "
        f"shutil.rmtree(directory, ignore_errors=True); shutil.copytree({str(guard)!r}, directory)"
    )
    monkeypatch.setattr("owner.guards.FITTING", (sys.executable, "-S", "-c", code))


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


@pytest.mark.usefixtures("fitted_at_once")
@pytest.mark.parametrize("harm", ["altered", "of another release", "gone"])
def test_a_guard_found_damaged_at_the_start_is_fitted_again_and_holds_up_nobody_else(
    office: Office, ada: Contributor, harm: str
) -> None:
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
    run(office)
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


def test_refusals_of_an_hour_that_is_over_reach_the_chain_while_the_service_runs(office: Office) -> None:
    def an_hour_ago() -> datetime:
        return timestamps.now() - timedelta(hours=1)

    with Store.open(office.workspace.ledger_file, office.signing_key, clock=an_hour_ago) as earlier:
        for _ in range(3):
            earlier.record_refusal(None, "REPLAY", "again")
    run(office, until=lambda: bool(office.store.entries(kind="refusals")))
    assert [one.body["count"] for one in office.store.entries(kind="refusals")] == [3]


def test_quarantine_holds_so_many_and_no_more(office: Office, ada: Contributor) -> None:
    first, second = ada.hand_in(slightly_changed), ada.hand_in(slightly_changed)
    run(office, worker=Says(Decision.QUARANTINED, "VETTING_TIMEOUT"), quotas__quarantine=1)
    assert decided(office, first) == (SubmissionState.QUARANTINED, ("VETTING_TIMEOUT",))
    assert decided(office, second) == (SubmissionState.REJECTED, ("VETTING_TIMEOUT", "QUARANTINE_FULL"))


def test_one_contributor_cannot_fill_the_quarantine(office: Office, ada: Contributor) -> None:
    bob = Contributor(office, "bob")
    first, second = ada.hand_in(slightly_changed), ada.hand_in(slightly_changed)
    third = bob.hand_in(slightly_changed)
    run(
        office,
        worker=Says(Decision.QUARANTINED, "VETTING_TIMEOUT"),
        quotas__quarantine=2,
        quotas__quarantine_per_contributor=1,
    )
    assert decided(office, first)[0] is SubmissionState.QUARANTINED
    assert decided(office, second) == (SubmissionState.REJECTED, ("VETTING_TIMEOUT", "QUARANTINE_SHARE_FULL"))
    assert decided(office, third)[0] is SubmissionState.QUARANTINED
    verdict = Verdict.from_json(office.store.submission(second.id).verdict or {})
    assert (
        "1 submissions of ada wait for a person already (quotas.quarantine_per_contributor)"
        in verdict.checks[-1].detail
    )


def test_a_quarantined_submission_nobody_promotes_is_rejected_in_time(office: Office, ada: Contributor) -> None:
    submission = ada.hand_in(slightly_changed)
    run(office, worker=Says(Decision.QUARANTINED, "ACTIVATION_AUTOENCODER"))
    later = timestamps.now() + timedelta(days=31)
    run(
        office,
        clock=lambda: later,
        until=lambda: office.store.submission(submission.id).state is SubmissionState.REJECTED,
    )
    assert decided(office, submission)[1][-1] == "QUARANTINE_EXPIRED"


def test_stopping_in_the_middle_of_a_vetting_puts_the_submission_back(office: Office, ada: Contributor) -> None:
    class Endless(InProcess):
        def __init__(self) -> None:
            super().__init__()
            self.closed = threading.Event()
            self.begun = threading.Event()

        def vet(self, job: VettingJob) -> Verdict:
            self.begun.set()
            self.closed.wait()
            raise VettingInterruptedError("closed")

        def close(self) -> None:
            self.closed.set()

    worker = Endless()
    submission = ada.hand_in(slightly_changed)
    run(office, worker=worker, until=worker.begun.is_set)
    assert decided(office, submission) == (SubmissionState.RECEIVED, ())
    run(office)
    assert decided(office, submission)[0] is SubmissionState.ACCEPTED


def test_trouble_on_the_owners_side_loses_no_submission(
    office: Office, ada: Contributor, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = iter([StorageError("the disk is full"), None])
    original = assessment.releases.prepare

    def prepare(*arguments: Any, **options: Any) -> Any:
        failure = next(failures)
        if failure is not None:
            raise failure
        return original(*arguments, **options)

    monkeypatch.setattr("owner.vetting.FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(assessment.releases, "prepare", prepare)
    submission = ada.hand_in(slightly_changed)
    run(office)
    assert decided(office, submission)[0] is SubmissionState.ACCEPTED
    assert len(office.store.entries(kind="verdict")) == 1


def test_a_submission_cannot_be_vetted_without_the_guard_of_its_base(office: Office, ada: Contributor) -> None:
    submission = ada.hand_in(slightly_changed)
    office.store.set_guard_state(office.store.root().id, GuardState.FAILED)
    current = office.store.current()
    with pytest.raises(Exception, match="guard of release 0"):
        assessment.vetting_job(office.workspace, office.store, office.settings, replace(submission), current)


def test_several_detectors_judge_submissions_and_what_they_would_become_by_one_score(
    office: Office, ada: Contributor
) -> None:
    """The second submission is based on another release than the root, whose guard needs the root's weights."""
    chosen = {"guard__detectors": "update-norm,cka,probe-bank", "guard__fitting_references": 3}
    for release in office.store.releases():
        office.store.set_guard_state(release.id, GuardState.MISSING)
        shutil.rmtree(office.workspace.release(release.id).guard)
    worker = InProcess()
    for _ in range(2):
        submission = ada.hand_in(slightly_changed)
        run(office, worker=worker, **chosen)
        found = office.store.submission(submission.id)
        assert found.state in {SubmissionState.ACCEPTED, SubmissionState.QUARANTINED}
        checks = {check["name"]: check for check in (found.verdict or {})["checks"]}
        assert {"gate", "root-gate", "utility-accuracy"} <= set(checks)
        assert checks["root-gate"]["p_value"] is not None
    assert worker.jobs[-1].root_weights != worker.jobs[-1].base_weights


def test_a_machine_short_of_open_files_makes_vetting_wait_and_says_nothing_of_the_guard(
    office: Office, ada: Contributor, monkeypatch: pytest.MonkeyPatch
) -> None:
    short, load_guard = [2], Guard.load

    def exhausted(directory: Path) -> Guard:
        if short[0]:
            short[0] -= 1
            with storage_errors("read", directory):
                raise OSError(errno.EMFILE, "Too many open files")
        return load_guard(directory)

    root = office.store.root()
    submission = ada.hand_in(slightly_changed)
    monkeypatch.setattr("owner.vetting.FIRST_PAUSE_SECONDS", 0.01)
    office.store.set_guard_state(root.id, GuardState.READY)
    keeper = GuardKeeper(office.workspace, office.settings, office.store)
    monkeypatch.setattr(Guard, "load", exhausted)
    with pytest.raises(StorageError, match="Too many open files"):
        keeper.defect(root)
    monkeypatch.setattr(VettingLoop, "_recover", lambda _: None)
    run(office)
    assert short == [0]
    assert decided(office, submission) == (SubmissionState.ACCEPTED, ())
    assert office.store.release(root.id).guard_error is None


def test_an_error_of_the_system_holds_vetting_up_and_ends_nothing(
    office: Office, ada: Contributor, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing, vet = [3], InProcess.vet

    def exhausted(self: InProcess, job: VettingJob) -> Verdict:
        if failing[0]:
            failing[0] -= 1
            raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
        return vet(self, job)

    monkeypatch.setattr("owner.vetting.FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(InProcess, "vet", exhausted)
    submission = ada.hand_in(slightly_changed)
    run(office)
    assert decided(office, submission) == (SubmissionState.ACCEPTED, ())


def test_a_defect_in_the_loop_leaves_the_stop_alone_and_is_raised(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the service would take it for an ordinary end, and exit with 0."""

    def defect(_: VettingLoop) -> None:
        raise RuntimeError("a defect")

    async def main() -> bool:
        stop = asyncio.Event()
        loop = VettingLoop(office.workspace, office.settings, office.store, worker=InProcess())  # type: ignore[arg-type]
        with pytest.raises(RuntimeError, match="a defect"):
            await loop.run(stop)
        return stop.is_set()

    monkeypatch.setattr(VettingLoop, "_next", defect)
    assert not asyncio.run(main())
