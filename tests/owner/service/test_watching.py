"""Watching: every change is seen, in whatever process it was made, nothing is told that should not be, and idle
watchers cost nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from contributor.client import OwnerClient, State, SubmissionStatus
from owner.ledger.records import Submission, SubmissionState
from owner.ledger.store import Store
from protos import collaboration_pb2 as wire
from tests.network import Owner, begin, raw, submission
from tests.waiting import until


@pytest.fixture
def pending(owner: Owner, ann: OwnerClient, tmp_path: Path) -> SubmissionStatus:
    signed = submission(ann, ann.release().id, tmp_path / "s.safetensors")
    return ann.submit(signed.manifest, signed.signature, signed.path)


def test_a_verdict_given_by_another_process_is_seen_with_its_receipt(
    owner: Owner, ann: OwnerClient, pending: SubmissionStatus
) -> None:
    watch = ann.watch(pending.id)
    assert next(watch).state is State.PENDING
    with Store.open(owner.workspace.ledger_file, owner.key) as other:
        other.claim()
        _, _, receipt = other.decide(pending.id, SubmissionState.REJECTED, {"public_code": "utility"})
    (last,) = list(watch)
    assert (last.state, last.code, last.verdict_receipt) == (State.DECLINED, "utility", receipt)


def test_a_quarantined_submission_looks_like_one_that_waits(
    owner: Owner, ann: OwnerClient, pending: SubmissionStatus
) -> None:
    owner.store.claim()
    owner.store.decide(pending.id, SubmissionState.QUARANTINED, {"public_code": "review"})
    assert ann.status(pending.id) == pending


def test_a_quarantined_submission_shows_no_change_to_who_watches(
    owner: Owner, ann: OwnerClient, pending: SubmissionStatus, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, look = [], owner.store.submission

    def noted(identifier: str) -> Submission:
        found = look(identifier)
        looked.append(found.state)
        return found

    monkeypatch.setattr(owner.store, "submission", noted)
    request = wire.WatchVerdictRequest(submission_id=pending.id)
    with raw(ann, owner.port) as stub:
        watch = stub.WatchVerdict(request, timeout=120)
        next(watch)
        owner.store.claim()
        owner.store.decide(pending.id, SubmissionState.QUARANTINED, {"public_code": "review"})
        until(lambda: SubmissionState.QUARANTINED in looked)
        owner.store.decide(pending.id, SubmissionState.REJECTED, {"public_code": "review"})
        assert next(watch).state == wire.Submission.DECLINED


@pytest.mark.parametrize(("told", "seen"), [("format", "format"), ("p=0.013", "review"), ("", "review")])
def test_only_coarse_codes_are_told(
    owner: Owner, ann: OwnerClient, pending: SubmissionStatus, told: str, seen: str
) -> None:
    owner.store.claim()
    owner.store.decide(pending.id, SubmissionState.REJECTED, {"public_code": told, "p_value": 0.013})
    assert ann.status(pending.id).code == seen


def test_an_expired_upload_is_seen_as_declined(owner: Owner, ann: OwnerClient, tmp_path: Path) -> None:
    with raw(ann, owner.port) as stub:
        identifier = begin(stub, submission(ann, ann.release().id, tmp_path / "s.safetensors")).submission_id
    owner.store.expire_upload(identifier, "UPLOAD_ABANDONED", "")
    status = ann.status(identifier)
    assert (status.state, status.code, status.verdict_receipt) == (State.DECLINED, "expired", None)


def test_two_hundred_idle_watchers_do_not_keep_an_upload_from_finishing(
    serve_owner: Callable[..., Owner], tmp_path: Path
) -> None:
    owner = serve_owner(quotas__streams=300)
    with owner.contributor("ann", tmp_path / "homes") as ann, ExitStack() as stack:
        first = submission(ann, ann.release().id, tmp_path / "1.safetensors", seed=1)
        status = ann.submit(first.manifest, first.signature, first.path)
        request = wire.WatchVerdictRequest(submission_id=status.id)
        watches = []
        # A connection carries 64 calls at a time.
        for _ in range(4):
            stub = stack.enter_context(raw(ann, owner.port))
            watches += [stub.WatchVerdict(request, timeout=240) for _ in range(50)]
        for watch in watches:
            assert next(watch).state == wire.Submission.PENDING

        second = submission(ann, first.manifest.base_release, tmp_path / "2.safetensors", seed=2, bytes_=400_000)
        started = time.monotonic()
        assert ann.submit(second.manifest, second.signature, second.path).state is State.PENDING
        assert time.monotonic() - started < 60  # it does not wait until they end

        owner.store.claim()
        owner.store.decide(status.id, SubmissionState.REJECTED, {"public_code": "utility"})
        for watch in watches:
            assert next(watch).state == wire.Submission.DECLINED


def test_a_watch_that_is_given_up_ends_at_once(ann: OwnerClient, pending: SubmissionStatus) -> None:
    watch = ann.watch(pending.id)
    next(watch)
    closed = threading.Thread(target=watch.close)
    closed.start()
    closed.join(60)
    assert not closed.is_alive()
