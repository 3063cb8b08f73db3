"""Who may call: only the TLS session says who calls, and a revocation ends what is open."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from common import timestamps
from common.errors import ConnectionLostError, IdentityError, PortierError, RevokedError, WireError
from common.identity.authority import Authority
from common.identity.keys import Domain
from common.identity.requests import certificate_request
from common.identity.tls_keys import TlsKey
from contributor.client import OwnerClient
from contributor.statuses import exception_of
from owner.ledger.store import Store
from owner.service import changes
from owner.service.authentication import peer_of
from owner.service.calls import LiveCall
from protos import collaboration_pb2 as wire
from protos.collaboration_pb2_grpc import CollaborationStub
from tests.network import Owner, begin, raw, refused, sign, submission
from tests.waiting import until


def issued_by(authority: Authority, name: str) -> tuple[bytes, bytes]:
    key = TlsKey.generate()
    return key.pem, authority.sign_request(certificate_request(key, name), name, days=1).certificate_pem


def test_without_a_client_certificate_there_is_no_connection(owner: Owner) -> None:
    credentials = grpc.ssl_channel_credentials(owner.authority.certificate_pem)
    with grpc.secure_channel(f"localhost:{owner.port}", credentials) as channel:
        stub: Any = CollaborationStub(channel)  # type: ignore[no-untyped-call]
        with pytest.raises(grpc.RpcError) as caught:
            stub.GetRelease(wire.GetReleaseRequest(), timeout=30)
    assert isinstance(exception_of(caught.value, ""), ConnectionLostError)


@pytest.mark.parametrize("shown", [0, 2])
def test_without_exactly_one_certificate_there_is_no_identity(owner: Owner, shown: int) -> None:
    """gRPC lets nobody in without one; should it ever, nobody is taken for somebody."""
    certificates = [issued_by(owner.authority, name)[1] for name in ("ann", "bob")][:shown]
    context = SimpleNamespace(auth_context=lambda: {"x509_pem_cert": certificates})
    with pytest.raises(IdentityError, match="no client certificate"):
        peer_of(context)  # type: ignore[arg-type]


def test_a_certificate_of_another_authority_is_no_identity(owner: Owner, ann: OwnerClient) -> None:
    stranger = issued_by(Authority.create(), "ann")
    with raw(ann, owner.port, identity=stranger) as stub, pytest.raises(grpc.RpcError) as caught:
        stub.GetRelease(wire.GetReleaseRequest(), timeout=30)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_certificate_the_ledger_does_not_know_is_no_identity(owner: Owner, ann: OwnerClient) -> None:
    unknown = issued_by(owner.authority, "ann")
    with raw(ann, owner.port, identity=unknown) as stub, refused(IdentityError, match="not known"):
        stub.GetRelease(wire.GetReleaseRequest(), timeout=30)


def test_the_servers_own_certificate_is_no_contributor(owner: Owner, ann: OwnerClient) -> None:
    own = owner.authority.issue_server(["localhost"], days=1)
    with raw(ann, owner.port, identity=(own.key.pem, own.certificate_chain_pem)) as stub, pytest.raises(grpc.RpcError):
        stub.GetRelease(wire.GetReleaseRequest(), timeout=30)


def test_a_manifest_in_somebody_elses_name_is_refused(owner: Owner, ann: OwnerClient, tmp_path: Path) -> None:
    with owner.contributor("bob", tmp_path / "homes") as bob:
        bobs = submission(bob, bob.release().id, tmp_path / "s.safetensors")
        by_ann = sign(ann, bob.release().id, bobs.path, contributor="bob")
        with raw(ann, owner.port) as stub, refused(IdentityError, match="'contributor' says bob, .* ann's"):
            begin(stub, by_ann)


def test_somebody_elses_submission_cannot_be_seen_or_continued(owner: Owner, ann: OwnerClient, tmp_path: Path) -> None:
    with owner.contributor("bob", tmp_path / "homes") as bob, raw(bob, owner.port) as stub:
        bobs = begin(stub, submission(bob, bob.release().id, tmp_path / "s.safetensors")).submission_id
    with raw(ann, owner.port) as stub:
        with refused(WireError, code="UNKNOWN_SUBMISSION"):
            next(stub.WatchVerdict(wire.WatchVerdictRequest(submission_id=bobs), timeout=30))
        with refused(WireError, code="UNKNOWN_SUBMISSION"):
            stub.Upload(iter([wire.UploadChunk(submission_id=bobs, data=b"x")]), timeout=30)
    assert ann.submissions() == []


def test_a_submission_is_named_by_all_of_its_id(owner: Owner, ann: OwnerClient, tmp_path: Path) -> None:
    """People shorten ids; a program that does may mean another one tomorrow."""
    with raw(ann, owner.port) as stub:
        own = begin(stub, submission(ann, ann.release().id, tmp_path / "s.safetensors")).submission_id
        for named in (own[:12], own.upper(), ""):
            with refused(WireError, code="UNKNOWN_SUBMISSION"):
                next(stub.WatchVerdict(wire.WatchVerdictRequest(submission_id=named), timeout=30))


def test_a_revoked_contributor_is_refused_at_the_next_call(owner: Owner, ann: OwnerClient) -> None:
    owner.store.revoke("ann")
    with pytest.raises(RevokedError):
        ann.release()


@pytest.fixture
def other_process(owner: Owner) -> Iterator[Store]:
    """The ledger as another process sees it, `portier-owner revoke` for example."""
    store = Store.open(owner.workspace.ledger_file, owner.key)
    yield store
    store.close()


def test_a_revocation_by_another_process_ends_an_open_watch_with_the_next_look_at_the_ledger(
    owner: Owner, ann: OwnerClient, other_process: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In looks and not in seconds, of which a busy machine makes more.
    assert changes.POLL_SECONDS <= 0.25
    looks, ended, look, end = itertools.count(1), [], owner.store.change_counter, LiveCall.end
    begun = 0

    def counted() -> int:
        nonlocal begun
        begun = next(looks)
        return look()

    def noted(self: LiveCall, error: PortierError) -> None:
        ended.append(begun)
        end(self, error)

    monkeypatch.setattr(owner.store, "change_counter", counted)
    monkeypatch.setattr(LiveCall, "end", noted)
    with raw(ann, owner.port) as stub:
        identifier = begin(stub, submission(ann, ann.release().id, tmp_path / "s.safetensors")).submission_id
        watch = stub.WatchVerdict(wire.WatchVerdictRequest(submission_id=identifier), timeout=20)
        next(watch)
        other_process.revoke("ann")
        begun_before = begun
        with refused(RevokedError):
            next(watch)
    assert ended[0] <= begun_before + 1


def test_a_revocation_ends_an_open_upload(owner: Owner, ann: OwnerClient, other_process: Store, tmp_path: Path) -> None:
    signed = submission(ann, ann.release().id, tmp_path / "s.safetensors")
    data = signed.path.read_bytes()
    ended = threading.Event()
    with raw(ann, owner.port) as stub:
        identifier = begin(stub, signed).submission_id

        def slowly() -> Iterator[wire.UploadChunk]:
            yield wire.UploadChunk(submission_id=identifier, data=data[:1000])
            ended.wait(20)

        call = stub.Upload.future(slowly(), timeout=20)
        part = owner.workspace.submission(identifier).part
        until(lambda: part.exists() and part.stat().st_size == 1000)
        other_process.revoke("ann")
        with refused(RevokedError):
            call.result()
        ended.set()
    assert owner.store.submission(identifier).state == "uploading"


def test_an_expired_certificate_is_refused_on_a_connection_that_is_still_open(
    serve_owner: Callable[..., Owner], tmp_path: Path
) -> None:
    owner = serve_owner()
    with owner.contributor("ann", tmp_path / "homes") as ann:
        identity = ann.membership.identity()
        ann.release()
        owner.turn_clock_to(identity.peer.not_after)
        with raw(ann, owner.port) as stub, refused(IdentityError, match="expired"):
            stub.GetRelease(wire.GetReleaseRequest(), timeout=30)


def test_refusals_are_recorded_once_and_counted(owner: Owner, ann: OwnerClient, tmp_path: Path) -> None:
    signed = submission(ann, ann.release().id, tmp_path / "s.safetensors")
    owner.turn_clock_to(timestamps.now())  # they are counted by the hour, and one may be ending
    with raw(ann, owner.port) as stub:
        for _ in range(5):
            with pytest.raises(grpc.RpcError):
                begin(stub, type(signed)(signed.manifest, bytes(64), signed.path))
    codes = [entry.body["code"] for entry in owner.store.entries(kind="refusal")]
    assert codes == ["SIGNATURE_INVALID"]


def test_a_submission_signature_of_another_domain_is_refused(owner: Owner, ann: OwnerClient, tmp_path: Path) -> None:
    signed = submission(ann, ann.release().id, tmp_path / "s.safetensors")
    other = ann.membership.signing_key().sign(Domain.ENROLMENT, signed.manifest.to_bytes())
    with raw(ann, owner.port) as stub, pytest.raises(grpc.RpcError) as caught:
        begin(stub, type(signed)(signed.manifest, other, signed.path))
    assert type(exception_of(caught.value, "")).__name__ == "SignatureError"
