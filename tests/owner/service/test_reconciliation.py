"""What a killed owner may leave of an upload, state by state."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from common import timestamps
from common.errors import WireError
from common.identity.invitation import new_token, token_digest
from common.identity.keys import Domain, SigningKey
from common.manifest import SubmissionManifest, new_nonce
from owner.ledger.records import GuardState, Submission, SubmissionState
from owner.service.authentication import Caller
from owner.service.calls import LiveCall
from owner.service.reconciliation import expire_untouched, reconcile
from owner.service.uploads import Uploads
from owner.workspace import SubmissionFiles
from protos import collaboration_pb2 as wire
from tests.network import OPTIONS, SPEC, Owner


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Owner]:
    owner = Owner.found(tmp_path / "owner")
    yield owner
    owner.store.close()


@pytest.fixture
def begun(owner: Owner) -> Submission:
    """A submission announced by an enrolled contributor; its weights are those of the release."""
    key = SigningKey.generate()
    later = timestamps.now() + timedelta(days=1)
    token = new_token()
    owner.store.invite("bob", token_digest(token), later)
    owner.store.redeem(token, signing_key=key.public_key, serial="1", not_after=later)
    release = owner.store.current()
    manifest = SubmissionManifest(
        contributor="bob",
        base_release=release.id,
        spec=SPEC,
        weights_sha256=release.weights_sha256,
        weights_bytes=owner.workspace.release(release.id).weights.stat().st_size,
        samples=1,
        training=OPTIONS,
        nonce=new_nonce(),
        created=timestamps.to_text(timestamps.now()),
    )
    data = manifest.to_bytes()
    return owner.store.begin(data, key.sign(Domain.SUBMISSION, data), "bob")


def files_of(owner: Owner, submission: Submission) -> SubmissionFiles:
    files = owner.workspace.submission(submission.id)
    files.directory.mkdir()
    return files


def test_killed_after_the_rename_and_before_the_commit_is_committed(owner: Owner, begun: Submission) -> None:
    files = files_of(owner, begun)
    weights = owner.workspace.release(begun.base_release).weights.read_bytes()
    files.weights.write_bytes(weights)
    reconcile(owner.workspace, owner.store)
    found = owner.store.submission(begun.id)
    assert found.state is SubmissionState.RECEIVED
    assert found.commit_receipt is not None
    assert files.weights.read_bytes() == weights


def test_weights_that_are_not_whole_become_an_upload_again(owner: Owner, begun: Submission) -> None:
    files = files_of(owner, begun)
    files.weights.write_bytes(b"not whole")
    reconcile(owner.workspace, owner.store)
    assert owner.store.submission(begun.id).state is SubmissionState.UPLOADING
    assert files.part.read_bytes() == b"not whole"


def test_a_part_of_an_open_upload_is_kept(owner: Owner, begun: Submission) -> None:
    files = files_of(owner, begun)
    files.part.write_bytes(b"some")
    reconcile(owner.workspace, owner.store)
    assert files.part.read_bytes() == b"some"


def test_a_part_without_a_row_is_removed(owner: Owner) -> None:
    files = owner.workspace.submission("0" * 64)
    files.directory.mkdir()
    files.part.write_bytes(b"some")
    reconcile(owner.workspace, owner.store)
    assert not files.directory.exists()


def test_what_is_no_submissions_folder_is_left_alone(owner: Owner) -> None:
    other = owner.workspace.submissions / "notes"
    other.mkdir()
    reconcile(owner.workspace, owner.store)
    assert other.is_dir()


def test_what_a_killed_writer_left_in_the_folder_of_an_upload_is_removed(owner: Owner, begun: Submission) -> None:
    files = files_of(owner, begun)
    unfinished = files.directory / ".0123456789abcdef.portier-unfinished"
    unfinished.write_bytes(b"half of it")
    reconcile(owner.workspace, owner.store)
    assert list(files.directory.iterdir()) == []


def test_committed_weights_the_ledger_does_not_know_are_left_to_a_person(
    owner: Owner, caplog: pytest.LogCaptureFixture
) -> None:
    files = owner.workspace.submission("0" * 64)
    files.directory.mkdir()
    files.weights.write_bytes(b"weights")
    reconcile(owner.workspace, owner.store)
    assert files.weights.exists()
    assert "does not know" in caplog.text


def test_a_submission_whose_weights_are_gone_is_told_of(
    owner: Owner, begun: Submission, caplog: pytest.LogCaptureFixture
) -> None:
    owner.store.committed(begun.id)
    reconcile(owner.workspace, owner.store)
    assert f"submission {begun.id[:12]} (received) has lost its weights" in caplog.text


def test_what_is_left_of_an_expired_upload_is_removed(owner: Owner, begun: Submission) -> None:
    files = files_of(owner, begun)
    files.part.write_bytes(b"some")
    owner.store.expire_upload(begun.id, "UPLOAD_ABANDONED", "")
    reconcile(owner.workspace, owner.store)
    assert not files.directory.exists()


def test_an_upload_nobody_goes_on_with_is_dropped_and_one_that_grows_is_not(owner: Owner, begun: Submission) -> None:
    files = files_of(owner, begun)
    files.part.write_bytes(b"some")

    def drop(*, hours_later: float, active: bool = False) -> list[str]:
        return expire_untouched(
            owner.workspace,
            owner.store,
            hours=24.0,
            hold=lambda _: nullcontext(not active),
            clock=lambda: timestamps.now() + timedelta(hours=hours_later),
        )

    assert drop(hours_later=23) == []
    assert drop(hours_later=25, active=True) == []
    assert drop(hours_later=25) == [begun.id]
    dropped = owner.store.submission(begun.id)
    assert dropped.state is SubmissionState.EXPIRED
    assert dropped.expiry is not None
    assert dropped.expiry.code == "UPLOAD_ABANDONED"
    assert "24 hours (quotas.upload_hours)" in dropped.expiry.detail
    assert not files.directory.exists()


def test_a_fitting_job_that_was_never_whole_is_removed(owner: Owner) -> None:
    owner.workspace.work.mkdir(exist_ok=True)
    killed = owner.workspace.work / ".ab12.portier-unfinished"
    kept = owner.workspace.work / "guard-ab12.json"
    for file in (killed, kept):
        file.write_bytes(b"{")
    reconcile(owner.workspace, owner.store)
    assert [file.exists() for file in (killed, kept)] == [False, True]


def test_an_upload_does_not_resume_while_it_is_being_dropped(
    owner: Owner, begun: Submission, monkeypatch: pytest.MonkeyPatch
) -> None:
    files_of(owner, begun).part.write_bytes(b"some")
    told: list[object] = []

    async def chunks() -> AsyncIterator[wire.UploadChunk]:
        yield wire.UploadChunk(submission_id=begun.id, offset=4, data=b"more")

    async def resume() -> None:
        task = asyncio.current_task()
        assert task is not None
        await uploads.receive(Caller(owner.store.contributor("bob"), LiveCall("bob", task)), chunks())

    def resumed() -> str:
        with pytest.raises(WireError) as refused:
            asyncio.run(resume())
        return refused.value.code

    def expire(*arguments: str) -> Submission:
        told.append(resumed())  # in the middle of the dropping
        return expire_upload(*arguments)

    expire_upload = owner.store.expire_upload
    monkeypatch.setattr(owner.store, "expire_upload", expire)
    with ThreadPoolExecutor(1) as pool:
        uploads = Uploads(owner.workspace, owner.store, ledger=pool, disk=pool)
        assert expire_untouched(owner.workspace, owner.store, hours=-1.0, hold=uploads.held) == [begun.id]
        told.append(resumed())
    # The first is worth another try, which is then told the truth.
    assert told == ["UPLOAD_IN_PROGRESS", "NOT_UPLOADING"]
    assert not owner.workspace.submission(begun.id).directory.exists()


def test_a_whole_upload_that_waits_for_its_commit_is_as_old_as_its_file(owner: Owner, begun: Submission) -> None:
    files_of(owner, begun).weights.write_bytes(b"some")
    moment = timestamps.now() + timedelta(hours=20)
    os.utime(owner.workspace.submission(begun.id).weights, (moment.timestamp(), moment.timestamp()))

    def drop(hours_later: float) -> list[str]:
        def clock() -> datetime:
            return timestamps.now() + timedelta(hours=hours_later)

        return expire_untouched(owner.workspace, owner.store, hours=24.0, hold=lambda _: nullcontext(True), clock=clock)

    assert drop(30) == []
    assert drop(50) == [begun.id]


def test_what_a_promote_is_writing_for_a_quarantined_submission_is_left_alone(owner: Owner, begun: Submission) -> None:
    files = files_of(owner, begun)
    files.weights.write_bytes(owner.workspace.release(begun.base_release).weights.read_bytes())
    reconcile(owner.workspace, owner.store)
    owner.store.set_guard_state(begun.base_release, GuardState.READY)
    owner.store.claim()
    owner.store.decide(begun.id, SubmissionState.QUARANTINED, {"decision": "quarantined", "codes": []})
    writing = files.directory / ".0123456789abcdef.portier-unfinished"
    writing.write_bytes(b"half of it")
    reconcile(owner.workspace, owner.store)
    assert writing.exists()
