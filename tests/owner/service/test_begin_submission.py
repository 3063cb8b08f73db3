"""What is refused when a submission is announced, each by name and limit, and what it leaves: nothing."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import ManifestError, PortierError, QuotaError, SignatureError, WeightsError, WireError
from common.identity.keys import Domain
from common.model_spec import ModelSpec
from contributor.client import OwnerClient
from contributor.statuses import exception_of
from owner.ledger.records import SubmissionState
from owner.service import quotas
from protos import collaboration_pb2 as wire
from tests.network import Owner, Signed, begin, chunks_of, raw, refused, sign, submission, weights_of
from tests.waiting import until


@pytest.fixture
def signed(ann: OwnerClient, tmp_path: Path) -> Signed:
    return submission(ann, ann.release().id, tmp_path / "s.safetensors")


def announce(owner: Owner, client: OwnerClient, manifest: bytes, signature: bytes) -> PortierError:
    """The error the announcement ends with."""
    with raw(client, owner.port) as stub, pytest.raises(grpc.RpcError) as caught:
        stub.BeginSubmission(wire.BeginSubmissionRequest(manifest=manifest, signature=signature), timeout=30)
    return exception_of(caught.value, "the owner")


def test_announcing_twice_is_announcing_once(owner: Owner, ann: OwnerClient, signed: Signed) -> None:
    with raw(ann, owner.port) as stub:
        assert begin(stub, signed) == begin(stub, signed)
    assert len(owner.store.submissions()) == 1


def test_an_altered_manifest_is_refused(owner: Owner, ann: OwnerClient, signed: Signed) -> None:
    altered = signed.manifest.to_bytes().replace(b'"samples":10', b'"samples":99')
    assert altered != signed.manifest.to_bytes()
    assert isinstance(announce(owner, ann, altered, signed.signature), SignatureError)
    assert owner.store.submissions() == []


@pytest.mark.parametrize("length", [0, 63, 65])
def test_a_signature_of_the_wrong_length_is_refused(
    owner: Owner, ann: OwnerClient, signed: Signed, length: int
) -> None:
    error = announce(owner, ann, signed.manifest.to_bytes(), bytes(length))
    assert re.search(f"signature has {length} bytes, it must have 64", error.message)


def test_a_manifest_over_64_kib_is_refused_before_it_is_read(owner: Owner, ann: OwnerClient) -> None:
    error = announce(owner, ann, b" " * (64 * 1024 + 1), bytes(64))
    assert isinstance(error, WireError)
    assert (error.code, "65537" in error.message) == ("FIELD_TOO_LONG", True)


def test_a_signed_manifest_that_is_none_is_refused(owner: Owner, ann: OwnerClient) -> None:
    data = b'{"format":1}'
    error = announce(owner, ann, data, ann.membership.signing_key().sign(Domain.SUBMISSION, data))
    assert isinstance(error, ManifestError)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(data=st.binary(max_size=300))
def test_no_bytes_as_manifest_make_the_service_fail(owner: Owner, ann: OwnerClient, data: bytes) -> None:
    error = announce(owner, ann, data, ann.membership.signing_key().sign(Domain.SUBMISSION, data))
    assert isinstance(error, ManifestError)


def test_a_submission_of_another_model_is_refused(owner: Owner, ann: OwnerClient, signed: Signed) -> None:
    other = sign(ann, signed.manifest.base_release, signed.path, spec=ModelSpec("mlp", (1, 8, 8), 10))
    with raw(ann, owner.port) as stub, refused(WireError, code="SPEC_MISMATCH", match="'spec'"):
        begin(stub, other)


def test_a_base_that_does_not_exist_is_refused(owner: Owner, ann: OwnerClient, signed: Signed) -> None:
    with raw(ann, owner.port) as stub, refused(WireError, code="UNKNOWN_RELEASE", match="base_release"):
        begin(stub, sign(ann, "0" * 64, signed.path))


def test_a_base_too_far_back_is_refused_and_one_within_reach_taken(
    serve_owner: Callable[..., Owner], tmp_path: Path
) -> None:
    owner = serve_owner(merge__bases_allowed=2)
    with owner.contributor("ann", tmp_path / "homes") as ann:
        first = submission(ann, ann.release().id, tmp_path / "1.safetensors")
        second = owner.publish(weights_of(100_000, 5))
        owner.publish(weights_of(100_000, 6))
        with raw(ann, owner.port) as stub:
            with refused(WireError, code="BASE_NOT_ALLOWED", match="the last 2"):
                begin(stub, first)
            assert begin(stub, sign(ann, second.id, first.path)).state == wire.Submission.UPLOADING


def test_where_submissions_replace_the_model_none_on_an_older_release_is_taken(
    serve_owner: Callable[..., Owner], tmp_path: Path
) -> None:
    owner = serve_owner(merge__policy="replace", merge__bases_allowed=2)
    with owner.contributor("ann", tmp_path / "homes") as ann:
        first = submission(ann, ann.release().id, tmp_path / "1.safetensors")
        second = owner.publish(weights_of(100_000, 5))
        with raw(ann, owner.port) as stub:
            with refused(WireError, code="BASE_NOT_ALLOWED", match="the last 1"):
                begin(stub, first)
            assert begin(stub, sign(ann, second.id, first.path)).state == wire.Submission.UPLOADING


def test_who_asks_for_a_release_is_told_how_many_tries_are_left(
    serve_owner: Callable[..., Owner], tmp_path: Path
) -> None:
    owner = serve_owner(quotas__tries_per_release=2)
    with owner.contributor("ann", tmp_path / "homes") as ann, raw(ann, owner.port) as stub:
        left = [ann.release().tries_left]
        for seed in (1, 2):
            begin(stub, submission(ann, ann.release().id, tmp_path / f"{seed}.safetensors", seed=seed))
            left.append(ann.release().tries_left)
    assert left == [2, 1, 0]


def test_an_upload_begun_before_its_base_went_out_of_reach_may_be_finished(
    serve_owner: Callable[..., Owner], tmp_path: Path
) -> None:
    owner = serve_owner(merge__bases_allowed=1)
    with owner.contributor("ann", tmp_path / "homes") as ann:
        signed = submission(ann, ann.release().id, tmp_path / "1.safetensors")
        with raw(ann, owner.port) as stub:
            begin(stub, signed)
        owner.publish(weights_of(100_000, 5))
        assert ann.submit(signed.manifest, signed.signature, signed.path).state == "pending"


def test_a_nonce_serves_once(owner: Owner, ann: OwnerClient, signed: Signed) -> None:
    replay = sign(ann, signed.manifest.base_release, signed.path, nonce=signed.manifest.nonce, samples=11)
    with raw(ann, owner.port) as stub:
        begin(stub, signed)
        with refused(WireError, code="REPLAY", match="nonce"):
            begin(stub, replay)
    (entry,) = owner.store.entries(kind="refusal")
    assert (entry.body["code"], entry.body["submission"]) == ("REPLAY", replay.manifest.id)


def test_a_decided_submission_handed_in_again_is_not_vetted_again(
    owner: Owner, ann: OwnerClient, signed: Signed
) -> None:
    status = ann.submit(signed.manifest, signed.signature, signed.path)
    owner.store.claim()
    owner.store.decide(status.id, SubmissionState.REJECTED, {"public_code": "utility"})
    again = ann.submit(signed.manifest, signed.signature, signed.path)
    assert (again.state, again.code) == ("declined", "utility")
    assert owner.store.claim() is None


def test_a_declared_size_no_such_model_can_have_is_refused(owner: Owner, ann: OwnerClient, signed: Signed) -> None:
    huge = sign(ann, signed.manifest.base_release, signed.path, weights_bytes=1 << 40)
    with raw(ann, owner.port) as stub, refused(WeightsError, code="FILE_TOO_LONG", match="weights_bytes declares"):
        begin(stub, huge)


def test_without_room_on_the_disk_nothing_is_begun(
    owner: Owner, ann: OwnerClient, signed: Signed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quotas, "DISK_RESERVE_BYTES", 1 << 62)
    with raw(ann, owner.port) as stub, refused(QuotaError, match="no room"):
        begin(stub, signed)
    assert owner.store.submissions() == []


def test_room_is_kept_for_what_is_missing_of_the_uploads_under_way(
    owner: Owner, ann: OwnerClient, signed: Signed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = quotas.DISK_RESERVE_BYTES + signed.manifest.weights_bytes + 10
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    other = submission(ann, signed.manifest.base_release, tmp_path / "other.safetensors", seed=2)
    data = signed.path.read_bytes()
    with raw(ann, owner.port) as stub:
        identifier = begin(stub, signed).submission_id
        with refused(QuotaError, match="no room"):
            begin(stub, other)
        stub.Upload(iter(chunks_of(data[:-11], identifier)), timeout=20)
        with refused(QuotaError, match="no room"):
            begin(stub, other)
        stub.Upload(iter([wire.UploadChunk(submission_id=identifier, offset=len(data) - 11, data=b"x")]), timeout=20)
        assert begin(stub, other).state == wire.Submission.UPLOADING


@pytest.mark.parametrize(
    ("setting", "limit", "match"),
    [
        ("quotas.open_submissions", 1, "at most 1"),
        ("quotas.upload_bytes", 300_000, "300000 bytes"),
        ("quotas.tries_per_release", 1, "1 tries"),
    ],
)
def test_the_second_submission_over_a_quota_is_refused_naming_the_limit(
    serve_owner: Callable[..., Owner],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    setting: str,
    limit: int,
    match: str,
) -> None:
    owner = serve_owner(**{setting.replace(".", "__"): limit})
    with owner.contributor("ann", tmp_path / "homes") as ann, raw(ann, owner.port) as stub:
        begin(stub, submission(ann, ann.release().id, tmp_path / "1.safetensors", seed=1))
        second = submission(ann, ann.release().id, tmp_path / "2.safetensors", seed=2)
        error = announce(owner, ann, second.manifest.to_bytes(), second.signature)
    assert isinstance(error, QuotaError)
    assert re.search(match, error.message)
    # The contributor cannot change the owner's settings; the owner reads in the log which one it is.
    assert setting not in error.message + error.hint
    assert f"refused ann: {error.message} ({setting})" in caplog.text


def test_quotas_are_each_contributors_own(serve_owner: Callable[..., Owner], tmp_path: Path) -> None:
    owner = serve_owner(quotas__open_submissions=1)
    for name in ("ann", "bob"):
        with owner.contributor(name, tmp_path / "homes") as client, raw(client, owner.port) as stub:
            begin(stub, submission(client, client.release().id, tmp_path / f"{name}.safetensors"))


def test_open_calls_are_limited_per_contributor(serve_owner: Callable[..., Owner], tmp_path: Path) -> None:
    owner = serve_owner(quotas__streams=2)
    with owner.contributor("ann", tmp_path / "homes") as ann, raw(ann, owner.port) as stub:
        identifier = begin(stub, submission(ann, ann.release().id, tmp_path / "1.safetensors")).submission_id
        request = wire.WatchVerdictRequest(submission_id=identifier)
        watches = [stub.WatchVerdict(request, timeout=20) for _ in range(2)]
        for watch in watches:
            next(watch)
        with refused(QuotaError, match="2 calls open, the limit is 2$"):
            next(stub.WatchVerdict(request, timeout=20))
        watches[0].cancel()
        until(lambda: lets_in(stub))  # the owner may learn of it after the next call has come


def lets_in(stub: Any) -> bool:
    """Whether another call is taken; where it is not, for nothing but the quota."""
    try:
        return bool(stub.GetRelease(wire.GetReleaseRequest(), timeout=30).current)
    except grpc.RpcError as error:
        if not isinstance(exception_of(error, "the owner"), QuotaError):
            raise
        return False
