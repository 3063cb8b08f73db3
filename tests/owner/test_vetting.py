"""The vetting loop: what is received is decided, once, by everything that must be asked."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
import torch

from common import timestamps
from common.config import load as load_settings
from common.errors import StorageError
from common.identity.keys import SigningKey
from common.weights import load, save
from owner import assessment, releases
from owner.gatekeeper.jobs import VettingJob
from owner.gatekeeper.supervisor import VettingInterruptedError, VettingUnavailableError
from owner.gatekeeper.verdict import Check, Decision, Verdict
from owner.guards import needed_guards
from owner.ledger.records import GuardState, Submission, SubmissionState
from owner.ledger.store import Store
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
    assert {"activation-autoencoder", "utility-accuracy", "root-activation-autoencoder"} <= set(names)
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


def test_a_guard_that_cannot_be_fitted_is_marked_and_the_service_lives(office: Office) -> None:
    office.store.set_guard_state(office.store.root().id, GuardState.MISSING)
    release = office.workspace.release(office.store.root().id)
    (release.guard / "guard.json").unlink()
    office.workspace.share("references").unlink()
    run(office, guard__fit="eager", until=lambda: office.store.root().guard_state is GuardState.FAILED)


def test_a_damaged_guard_holds_up_nobody_but_those_on_its_release(office: Office, ada: Contributor) -> None:
    root = office.store.root()
    ada.hand_in(slightly_changed)
    run(office)
    damaged = office.store.current()
    # The guard of another release is as good as a damaged one.
    shutil.copytree(office.workspace.release(root.id).guard, office.workspace.release(damaged.id).guard)
    office.store.set_guard_state(damaged.id, GuardState.READY)
    first, second = ada.hand_in(slightly_changed, base=damaged), ada.hand_in(slightly_changed, base=root)

    def done() -> bool:
        return office.store.submission(second.id).state is SubmissionState.ACCEPTED

    run(office, until=done)
    assert office.store.release(damaged.id).guard_state is GuardState.FAILED
    assert office.store.submission(first.id).state is SubmissionState.AWAITING_GUARD
    assert office.store.root().guard_state is GuardState.READY


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

    with Store.open(office.workspace.ledger_url, office.signing_key, clock=an_hour_ago) as earlier:
        for _ in range(3):
            earlier.record_refusal(None, "REPLAY", "again")
    run(office, until=lambda: bool(office.store.entries(kind="refusals")))
    assert [one.body["count"] for one in office.store.entries(kind="refusals")] == [3]


def test_quarantine_holds_so_many_and_no_more(office: Office, ada: Contributor) -> None:
    first, second = ada.hand_in(slightly_changed), ada.hand_in(slightly_changed)
    run(office, worker=Says(Decision.QUARANTINED, "VETTING_TIMEOUT"), quotas__quarantine=1)
    assert decided(office, first) == (SubmissionState.QUARANTINED, ("VETTING_TIMEOUT",))
    assert decided(office, second) == (SubmissionState.REJECTED, ("VETTING_TIMEOUT", "QUARANTINE_FULL"))


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
