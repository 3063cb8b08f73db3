"""The vetting loop: what is received is decided, once, by everything that must be asked."""

from __future__ import annotations

import asyncio
import errno
import shutil
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from common import timestamps
from common.errors import StorageError
from common.files import storage_errors
from common.identity.keys import SigningKey
from common.weights import load, save
from owner import assessment, releases
from owner.gatekeeper.guard import Guard
from owner.gatekeeper.jobs import VettingJob
from owner.gatekeeper.supervisor import VettingInterruptedError
from owner.gatekeeper.verdict import Check, Decision, Verdict
from owner.guards import GuardKeeper
from owner.ledger.records import GuardState, SubmissionState
from owner.ledger.store import Store
from owner.operations.opening import Office
from owner.vetting import VettingLoop
from tests.owner.people import Contributor, InProcess, negated, slightly_changed
from tests.owner.vetting_runs import decided, run


class Says(InProcess):
    """A worker that has made up its mind."""

    def __init__(self, decision: Decision, code: str) -> None:
        super().__init__()
        self.verdict = Verdict(decision, (Check("said", decision, code=code),), (code,))

    def vet(self, job: VettingJob) -> Verdict:
        return self.verdict


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


def test_refusals_of_an_hour_that_is_over_reach_the_chain_while_the_service_runs(office: Office) -> None:
    an_hour_ago = timestamps.now() - timedelta(
        hours=1
    )  # one moment: they are counted by the hour, and one may be ending

    with Store.open(office.workspace.ledger_file, office.signing_key, clock=lambda: an_hour_ago) as earlier:
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
