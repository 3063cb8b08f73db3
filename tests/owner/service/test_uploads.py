"""Uploads over a real socket: in order, as declared, one at a time, from where the last one stopped."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from common.errors import StorageError, WeightsError, WireError
from common.receipts import Receipt, verify_receipt
from contributor.client import OwnerClient
from owner.ledger.records import SubmissionState
from owner.service.limits import CHUNK_TIMEOUT_SECONDS
from owner.service.part_file import PartFile
from owner.service.uploads import Uploads
from protos import collaboration_pb2 as wire
from tests.network import Owner, Signed, begin, chunks_of, raw, refused, sign, submission
from tests.waiting import until


@pytest.fixture
def signed(ann: OwnerClient, tmp_path: Path) -> Signed:
    return submission(ann, ann.release().id, tmp_path / "s.safetensors")


def test_a_whole_upload_is_on_disk_under_its_name_and_receipted(owner: Owner, ann: OwnerClient, signed: Signed) -> None:
    with raw(ann, owner.port) as stub:
        identifier = begin(stub, signed).submission_id
        answer = stub.Upload(iter(chunks_of(signed.path.read_bytes(), identifier, size=30_000)), timeout=20)
    files = owner.workspace.submission(identifier)
    assert files.weights.read_bytes() == signed.path.read_bytes()
    assert (files.manifest.read_bytes(), files.signature.read_bytes()) == (signed.manifest.to_bytes(), signed.signature)
    assert not files.part.exists()
    receipt = Receipt.from_bytes(answer.commit_receipt)
    verify_receipt(receipt, owner.key.public_key)
    assert receipt.subject == identifier
    assert answer.state == wire.Submission.PENDING


def test_a_chunk_at_a_wrong_offset_is_refused_with_the_right_one(
    owner: Owner, ann: OwnerClient, signed: Signed
) -> None:
    data = signed.path.read_bytes()
    with raw(ann, owner.port) as stub:
        identifier = begin(stub, signed).submission_id
        first, *_, last = chunks_of(data, identifier, size=50_000)
        with refused(WireError, code="WRONG_OFFSET", match="50000 bytes are on the owner's disk"):
            stub.Upload(iter([first, last]), timeout=20)
        assert begin(stub, signed).committed_bytes == 50_000
        assert stub.Upload(iter(chunks_of(data, identifier, start=50_000)), timeout=20).state == wire.Submission.PENDING
    # A cut line brings it about; it is not held against the contributor.
    assert owner.store.entries(kind="refusal") == []


def test_a_short_upload_stays_open_at_what_it_sent(owner: Owner, ann: OwnerClient, signed: Signed) -> None:
    data = signed.path.read_bytes()
    with raw(ann, owner.port) as stub:
        identifier = begin(stub, signed).submission_id
        answer = stub.Upload(iter(chunks_of(data[:-1], identifier)), timeout=20)
        assert (answer.state, answer.committed_bytes) == (wire.Submission.UPLOADING, len(data) - 1)
        assert answer.commit_receipt == b""
    assert not owner.workspace.submission(identifier).weights.exists()


def test_a_byte_more_than_declared_ends_the_submission(owner: Owner, ann: OwnerClient, signed: Signed) -> None:
    data = signed.path.read_bytes()
    with raw(ann, owner.port) as stub:
        identifier = begin(stub, signed).submission_id
        with refused(WeightsError, code="FILE_TOO_LONG", match=f"weights_bytes declares {len(data)}"):
            stub.Upload(iter(chunks_of(data + b"x", identifier)), timeout=20)
    assert owner.store.submission(identifier).state is SubmissionState.EXPIRED
    assert not owner.workspace.submission(identifier).directory.exists()


def test_other_bytes_than_the_digest_declares_end_the_submission(
    owner: Owner, ann: OwnerClient, signed: Signed
) -> None:
    data = signed.path.read_bytes()
    with raw(ann, owner.port) as stub:
        identifier = begin(stub, signed).submission_id
        with refused(WeightsError, code="DIGEST_MISMATCH"):
            stub.Upload(iter(chunks_of(data[:-1] + bytes([data[-1] ^ 1]), identifier)), timeout=20)
    assert owner.store.submission(identifier).state is SubmissionState.EXPIRED
    assert not owner.workspace.submission(identifier).directory.exists()
    (entry,) = owner.store.entries(submission=identifier)
    assert (entry.kind, entry.body["code"]) == ("refusal", "DIGEST_MISMATCH")
    expiry = owner.store.submission(identifier).expiry
    assert expiry is not None
    assert (expiry.code, expiry.detail) == ("DIGEST_MISMATCH", entry.body["detail"])


def header(entries: dict[str, object], data: int, *, length: int | None = None) -> bytes:
    text = json.dumps(entries).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + bytes(data)


def tensor(begin_: int, end: int) -> dict[str, object]:
    return {"dtype": "F32", "shape": [(end - begin_) // 4], "data_offsets": [begin_, end]}


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (header({}, 100_000, length=1 << 19), "FILE_TOO_SHORT"),
        (header({"a": tensor(0, 4)}, 2 << 20, length=(1 << 20) + 1), "HEADER_TOO_LONG"),
        (header({"a": tensor(0, 8), "b": tensor(4, 12)}, 12), "OFFSETS_INVALID"),
        (header({"a": tensor(0, 400)}, 12), "FILE_TOO_SHORT"),
        (header({"a": tensor(0, 8)}, 12), "FILE_TOO_LONG"),
        (b"\xff" * 200, "HEADER_TOO_LONG"),
        (header({"a": "no tensor"}, 12), "HEADER_MALFORMED"),
        (bytes(9), "HEADER_MALFORMED"),
    ],
    ids=[
        "header-past-the-end",
        "header-too-long",
        "overlapping",
        "tensor-past-the-end",
        "bytes-of-no-tensor",
        "absurd-length",
        "malformed",
        "empty",
    ],
)
def test_a_bad_header_is_refused_before_the_rest_is_sent(
    owner: Owner, ann: OwnerClient, tmp_path: Path, content: bytes, code: str
) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    signed = sign(ann, ann.release().id, path)
    rest = threading.Event()
    with raw(ann, owner.port) as stub:
        identifier = begin(stub, signed).submission_id

        def all_but_one_byte() -> Iterator[wire.UploadChunk]:
            yield from chunks_of(content[:-1], identifier)
            rest.wait(20)

        call = stub.Upload.future(all_but_one_byte(), timeout=20)
        with refused(WeightsError, code=code):
            call.result()
        rest.set()
    assert owner.store.submission(identifier).state is SubmissionState.EXPIRED


def test_a_chunk_over_a_mebibyte_is_refused(owner: Owner, ann: OwnerClient, tmp_path: Path) -> None:
    signed = submission(ann, ann.release().id, tmp_path / "s.safetensors", bytes_=1_300_000)
    with raw(ann, owner.port) as stub:
        identifier = begin(stub, signed).submission_id
        with refused(WireError, code="CHUNK_TOO_LONG", match="limit is 1048576"):
            stub.Upload(iter(chunks_of(signed.path.read_bytes(), identifier, size=(1 << 20) + 1)), timeout=20)


def test_one_call_uploads_one_submission(owner: Owner, ann: OwnerClient, signed: Signed) -> None:
    with raw(ann, owner.port) as stub:
        identifier = begin(stub, signed).submission_id
        mixed = [
            wire.UploadChunk(submission_id=identifier, data=b"\x10"),
            wire.UploadChunk(submission_id="0" * 64, offset=1, data=b"x"),
        ]
        with refused(WireError, code="WRONG_SUBMISSION"):
            stub.Upload(iter(mixed), timeout=20)


def test_an_upload_without_a_chunk_is_refused(owner: Owner, ann: OwnerClient) -> None:
    with raw(ann, owner.port) as stub, refused(WireError, code="EMPTY_UPLOAD"):
        stub.Upload(iter([]), timeout=20)


def test_of_two_uploads_of_one_submission_the_second_is_refused_and_the_first_goes_on(
    owner: Owner, ann: OwnerClient, signed: Signed
) -> None:
    data = signed.path.read_bytes()
    go_on = threading.Event()
    with raw(ann, owner.port) as stub:
        identifier = begin(stub, signed).submission_id
        first, *rest = chunks_of(data, identifier, size=100_000)

        def slowly() -> Iterator[wire.UploadChunk]:
            yield first
            go_on.wait(20)
            yield from rest

        call = stub.Upload.future(slowly(), timeout=20)
        part = owner.workspace.submission(identifier).part
        until(lambda: part.exists() and part.stat().st_size == 100_000)
        with refused(WireError, code="UPLOAD_IN_PROGRESS"):
            stub.Upload(iter(chunks_of(data, identifier, start=100_000)), timeout=20)
        go_on.set()
        assert call.result().state == wire.Submission.PENDING


def test_an_upload_that_sends_nothing_gives_its_place_back(
    serve_owner: Callable[..., Owner], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Uploads] = []

    class Kept(Uploads):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            made.append(self)

    monkeypatch.setattr("owner.service.server.Uploads", Kept)
    owner = serve_owner()
    with owner.contributor("ann", tmp_path / "homes") as ann, raw(ann, owner.port) as stub:
        signed = submission(ann, ann.release().id, tmp_path / "s.safetensors")
        data = signed.path.read_bytes()
        identifier = begin(stub, signed).submission_id
        part = owner.workspace.submission(identifier).part
        never = threading.Event()

        def stalling() -> Iterator[wire.UploadChunk]:
            yield wire.UploadChunk(submission_id=identifier, data=data[:1000])
            until(lambda: part.exists() and part.stat().st_size == 1000)
            made[0]._chunk_timeout = 0.05  # from the next chunk on: an upload that gets on may take its time to
            yield wire.UploadChunk(submission_id=identifier, offset=1000, data=data[1000:2000])
            never.wait(60)

        call = stub.Upload.future(stalling(), timeout=60)
        with refused(WireError, code="UPLOAD_STALLED"):
            call.result()
        never.set()
        made[0]._chunk_timeout = CHUNK_TIMEOUT_SECONDS
        there = begin(stub, signed).committed_bytes
        assert there in (1000, 2000)
        assert stub.Upload(iter(chunks_of(data, identifier, start=there)), timeout=20).state == wire.Submission.PENDING


def test_the_time_that_the_owner_takes_to_hash_what_is_there_is_not_held_against_the_contributor(
    serve_owner: Callable[..., Owner], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each attempt hashes all of it again: one that is ended for it would be ended for ever."""
    limits: list[asyncio.Timeout] = []
    ends: list[float | None] = []
    limited, resume = asyncio.timeout, PartFile._resume

    def kept(seconds: float | None) -> asyncio.Timeout:
        limits.append(limited(seconds))
        return limits[-1]

    def looked_at(self: PartFile) -> None:
        ends.append(limits[-1].when())
        resume(self)

    monkeypatch.setattr(asyncio, "timeout", kept)
    monkeypatch.setattr(PartFile, "_resume", looked_at)
    owner = serve_owner()
    with owner.contributor("ann", tmp_path / "homes") as ann, raw(ann, owner.port) as stub:
        signed = submission(ann, ann.release().id, tmp_path / "s.safetensors")
        identifier = begin(stub, signed).submission_id
        sent = chunks_of(signed.path.read_bytes(), identifier)
        assert stub.Upload(iter(sent), timeout=20).state == wire.Submission.PENDING
    assert ends == [None]


def test_a_cancelled_upload_keeps_what_came_and_frees_its_place(owner: Owner, ann: OwnerClient, signed: Signed) -> None:
    data = signed.path.read_bytes()
    with raw(ann, owner.port) as stub:
        identifier = begin(stub, signed).submission_id
        never = threading.Event()

        def cut() -> Iterator[wire.UploadChunk]:
            yield wire.UploadChunk(submission_id=identifier, data=data[:1000])
            never.wait(20)

        call = stub.Upload.future(cut(), timeout=20)
        part = owner.workspace.submission(identifier).part
        until(lambda: part.exists() and part.stat().st_size == 1000)
        call.cancel()
        never.set()
    status = ann.submit(signed.manifest, signed.signature, signed.path)
    assert status.commit_receipt is not None
    assert hashlib.sha256(owner.workspace.submission(identifier).weights.read_bytes()).hexdigest() == (
        signed.manifest.weights_sha256
    )


def test_a_header_on_disk_that_breaks_a_rule_ends_the_submission_when_it_is_resumed(
    owner: Owner, ann: OwnerClient, signed: Signed
) -> None:
    with raw(ann, owner.port) as stub:
        identifier = begin(stub, signed).submission_id
        files = owner.workspace.submission(identifier)
        files.directory.mkdir(parents=True)
        # As a kill leaves it that comes between a write and the check of what was written.
        files.part.write_bytes(b"\xff" * 200)
        with refused(WeightsError, code="HEADER_TOO_LONG"):
            stub.Upload(iter([wire.UploadChunk(submission_id=identifier, offset=200, data=b"x")]), timeout=20)
        assert owner.store.submission(identifier).state is SubmissionState.EXPIRED
        assert not files.directory.exists()
        with refused(WireError, code="NOT_UPLOADING"):
            stub.Upload(iter([wire.UploadChunk(submission_id=identifier, data=b"x")]), timeout=20)


def test_an_upload_of_a_received_submission_answers_with_its_receipt(
    owner: Owner, ann: OwnerClient, signed: Signed
) -> None:
    data = signed.path.read_bytes()
    with raw(ann, owner.port) as stub:
        identifier = begin(stub, signed).submission_id
        first = stub.Upload(iter(chunks_of(data, identifier)), timeout=20)
        again = stub.Upload(iter(chunks_of(data, identifier)), timeout=20)
    assert again == first


def test_an_upload_that_could_not_be_committed_is_not_sent_again(
    owner: Owner, ann: OwnerClient, signed: Signed, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed = owner.store.committed

    def full(_: str) -> None:
        raise StorageError("cannot write the ledger: No space left on device")

    monkeypatch.setattr(owner.store, "committed", full)
    data = signed.path.read_bytes()
    with raw(ann, owner.port) as stub:
        identifier = begin(stub, signed).submission_id
        with refused(StorageError):
            stub.Upload(iter(chunks_of(data, identifier)), timeout=20)
        monkeypatch.setattr(owner.store, "committed", committed)
        again = begin(stub, signed)
        assert (again.state, again.committed_bytes) == (wire.Submission.UPLOADING, len(data))
        nothing_more = [wire.UploadChunk(submission_id=identifier, offset=len(data))]
        assert stub.Upload(iter(nothing_more), timeout=20).state == wire.Submission.PENDING
    assert owner.workspace.submission(identifier).weights.read_bytes() == data
    assert owner.store.submission(identifier).state is SubmissionState.RECEIVED
