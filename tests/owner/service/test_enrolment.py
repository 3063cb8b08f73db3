"""Enrolment over a real socket: one token, one contributor, and no stranger on either side."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from common import timestamps
from common.errors import (
    IdentityError,
    InvitationError,
    QuotaError,
    SignatureError,
    StorageError,
    WireError,
    WorkspaceError,
)
from common.identity.authority import Authority
from common.identity.invitation import new_token
from common.identity.keys import SigningKey
from common.identity.requests import enrolment_request
from common.identity.tls_keys import TlsKey
from contributor.client import OwnerClient
from contributor.joining import join
from contributor.membership import Membership
from contributor.patience import Patience
from owner.ledger.identity_records import FRESH_CERTIFICATES
from owner.service import enrolment
from protos import collaboration_pb2 as wire
from protos.collaboration_pb2_grpc import EnrolmentStub
from tests.network import Owner, refused


def test_joining_leaves_private_keys_that_only_the_contributor_can_read(owner: Owner, tmp_path: Path) -> None:
    membership = join(owner.invite("ann"), tmp_path / "home")
    modes = {path.name: path.stat().st_mode & 0o777 for path in membership.keys.iterdir()}
    assert modes == {"signing.key": 0o600, "identity.pem": 0o600, "authority.pem": 0o644}
    assert [path.stat().st_mode & 0o777 for path in (membership.home, membership.keys)] == [0o700, 0o700]


def test_a_token_enrols_once(owner: Owner, tmp_path: Path) -> None:
    invitation = owner.invite("ann")
    join(invitation, tmp_path / "first")
    with pytest.raises(InvitationError, match="used already"):
        join(invitation, tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_a_joiner_whose_answer_was_lost_may_ask_again_with_the_same_key(owner: Owner, tmp_path: Path) -> None:
    invitation = owner.invite("ann")
    first = join(invitation, tmp_path / "home")
    (tmp_path / "home" / "membership.json").unlink()
    first.identity_file.unlink()
    join(invitation, tmp_path / "home")
    with OwnerClient(tmp_path / "home") as client:
        assert client.release().current


def test_a_home_has_joined_only_once_its_certificate_is_there(
    owner: Owner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    invitation = owner.invite("ann")

    def full(*_: object) -> None:
        raise StorageError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Membership, "save_identity", full)
        with pytest.raises(StorageError):
            join(invitation, tmp_path / "home")
    assert not (tmp_path / "home" / "membership.json").exists()
    assert join(invitation, tmp_path / "home").identity().peer.name == "ann"


def test_an_expired_invitation_is_refused_by_the_owner_too(owner: Owner, tmp_path: Path) -> None:
    invitation = owner.invite("ann")
    later = dataclasses.replace(invitation, expires=invitation.expires + timedelta(hours=1))
    owner.turn_clock_to(invitation.expires)
    with pytest.raises(InvitationError, match="expired"):
        join(later, tmp_path / "home")


def test_an_expired_invitation_is_refused_before_anybody_is_called(
    owner: Owner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Patience, "persist", lambda *_: pytest.fail("the owner was called"))
    past = timestamps.now().replace(microsecond=0) - timedelta(seconds=1)
    with pytest.raises(InvitationError, match="of ann expired at"):
        join(dataclasses.replace(owner.invite("ann"), expires=past), tmp_path / "home")
    assert not (tmp_path / "home").exists()


def test_an_unknown_token_is_refused_and_recorded(owner: Owner, tmp_path: Path) -> None:
    forged = dataclasses.replace(owner.invite("ann"), token=new_token())
    with pytest.raises(InvitationError, match="not known"):
        join(forged, tmp_path / "home")
    assert [entry.body["code"] for entry in owner.store.entries(kind="refusal")] == ["INVITATION"]


def test_a_stranger_on_the_owners_address_gets_no_token(owner: Owner, tmp_path: Path) -> None:
    elsewhere = dataclasses.replace(owner.invite("ann"), ca_certificate=Authority.create().certificate_der)
    with pytest.raises(IdentityError, match="certificate"):
        join(elsewhere, tmp_path / "home")
    # The token was not spent on the stranger.
    owner.store.check_token(elsewhere.token)


def test_an_address_the_certificate_does_not_name_is_refused(serve_owner: Callable[..., Owner], tmp_path: Path) -> None:
    owner = serve_owner(service__names=("elsewhere.example",))
    with pytest.raises(IdentityError, match="localhost"):
        join(owner.invite("ann"), tmp_path / "home", patience=0.0)


def test_a_home_joins_one_owner(owner: Owner, tmp_path: Path) -> None:
    join(owner.invite("ann"), tmp_path / "home")
    with pytest.raises(WorkspaceError, match="joined as ann already"):
        join(owner.invite("bob"), tmp_path / "home")


def files_of(home: Path) -> dict[str, bytes]:
    return {str(path.relative_to(home)): path.read_bytes() for path in home.rglob("*") if path.is_file()}


def test_a_home_whose_certificate_ran_out_joins_again_with_the_key_it_has(owner: Owner, ann: OwnerClient) -> None:
    home, before = ann.membership.home, files_of(ann.membership.home)
    owner.let_expire(ann)
    with pytest.raises(IdentityError, match="expired on") as caught:
        OwnerClient(home)
    assert "portier-owner invite ann --renew" in caught.value.hint
    dataclasses.replace(ann.membership, addresses=("old.example:7443",)).save()
    join(owner.invite("ann", renew=True), home)
    with OwnerClient(home) as client:
        assert client.release().current
    after = files_of(home)
    # Its addresses are those of the invitation, and then the one it had.
    assert {name for name in after if after[name] != before.get(name)} == {"keys/identity.pem", "membership.json"}
    assert owner.store.verify().ok


def test_a_home_whose_membership_is_damaged_joins_again_with_the_key_it_has(owner: Owner, ann: OwnerClient) -> None:
    home, key = ann.membership.home, ann.membership.signing_key().public_key
    (home / "membership.json").write_text("damaged")
    invitation = owner.invite("ann", renew=True)
    with pytest.raises(WorkspaceError, match="is damaged") as caught:
        join(invitation, home)
    assert "move it away" in caught.value.hint
    (home / "membership.json").unlink()
    assert join(invitation, home).signing_key().public_key == key


def test_a_renewal_in_a_strangers_hands_is_of_no_use(owner: Owner, ann: OwnerClient, tmp_path: Path) -> None:
    invitation = owner.invite("ann", renew=True)
    with pytest.raises(InvitationError, match="for the signing key that ann enrolled with"):
        join(invitation, tmp_path / "stranger")
    assert not (tmp_path / "stranger").exists()
    join(invitation, ann.membership.home)


@pytest.mark.parametrize("change", ["name", "owner_key", "authority"])
def test_a_home_that_joined_is_left_alone_by_any_other_invitation(owner: Owner, ann: OwnerClient, change: str) -> None:
    invitation = owner.invite("ann", renew=True)
    changed = {
        "name": {"name": "bob"},
        "owner_key": {"owner_key": SigningKey.generate().public_key},
        "authority": {"ca_certificate": Authority.create().certificate_der},
    }[change]
    before = files_of(ann.membership.home)
    with pytest.raises(WorkspaceError, match=r"another authority|joined as ann"):
        join(dataclasses.replace(invitation, **changed), ann.membership.home)
    assert files_of(ann.membership.home) == before
    assert owner.store.check_token(invitation.token) == "ann"


def test_a_refused_renewal_leaves_the_home_as_it_was(owner: Owner, ann: OwnerClient) -> None:
    before = files_of(ann.membership.home)
    forged = dataclasses.replace(owner.invite("ann", renew=True), token=new_token())
    with pytest.raises(InvitationError, match="not known"):
        join(forged, ann.membership.home)
    assert files_of(ann.membership.home) == before


def test_a_certificate_for_a_forwarded_port_holds_the_host_alone(
    serve_owner: Callable[..., Owner], tmp_path: Path
) -> None:
    owner = serve_owner(service__names=("localhost:17443/17444", "127.0.0.1"))
    with owner.contributor("ann", tmp_path / "homes") as client:
        assert client.release().current


def enrol(owner: Owner, message: wire.EnrolRequest) -> wire.Certificate:
    credentials = grpc.ssl_channel_credentials(owner.authority.certificate_pem)
    with grpc.secure_channel(f"localhost:{owner.enrolment_port}", credentials) as channel:
        stub: Any = EnrolmentStub(channel)  # type: ignore[no-untyped-call]
        answer = stub.Enrol(message, timeout=30)
    assert isinstance(answer, wire.Certificate)
    return answer


def message_of(owner: Owner, tmp_path: Path) -> wire.EnrolRequest:
    invitation = owner.invite("ann")
    key = Membership(tmp_path, "ann", invitation.addresses, invitation.owner_key).signing_key_or_new()
    request = enrolment_request(invitation.token, "ann", TlsKey.generate(), key)
    return wire.EnrolRequest(
        token=request.token,
        certificate_request=request.certificate_request,
        signing_key=request.signing_key,
        proof=request.proof,
    )


def test_a_key_without_proof_of_possession_is_not_enrolled(owner: Owner, tmp_path: Path) -> None:
    message = message_of(owner, tmp_path)
    message.proof = bytes(64)
    with refused(SignatureError, match="prove possession"):
        enrol(owner, message)


def test_a_certificate_request_for_another_key_than_the_proof_covers_is_refused(owner: Owner, tmp_path: Path) -> None:
    message, other = message_of(owner, tmp_path / "a"), message_of(owner, tmp_path / "b")
    message.certificate_request = other.certificate_request
    with refused(SignatureError):
        enrol(owner, message)


@pytest.mark.parametrize(("field", "size"), [("token", 129), ("certificate_request", 16 * 1024 + 1)])
def test_long_fields_are_refused_by_name_and_limit(owner: Owner, tmp_path: Path, field: str, size: int) -> None:
    message = message_of(owner, tmp_path)
    setattr(message, field, "x" * size if field == "token" else b"x" * size)
    with refused(WireError, code="FIELD_TOO_LONG", match=rf"{field} has {size} bytes, the limit is {size - 1}"):
        enrol(owner, message)


def test_an_enrolment_too_many_is_refused_at_once_and_those_under_way_go_on(
    owner: Owner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enrolment, "ENROLMENTS_AT_ONCE", 1)
    begun, go_on, check_token = threading.Event(), threading.Event(), owner.store.check_token

    def slowly(*arguments: Any, **named: Any) -> str:
        begun.set()
        go_on.wait(20)
        return check_token(*arguments, **named)

    monkeypatch.setattr(owner.store, "check_token", slowly)
    message = message_of(owner, tmp_path)
    credentials = grpc.ssl_channel_credentials(owner.authority.certificate_pem)
    with grpc.secure_channel(f"localhost:{owner.enrolment_port}", credentials) as channel:
        stub: Any = EnrolmentStub(channel)  # type: ignore[no-untyped-call]
        first = stub.Enrol.future(message, timeout=20)
        assert begun.wait(60)
        with refused(QuotaError, match="1 enrolments are under way, which is the limit"):
            stub.Enrol(message, timeout=30)
        go_on.set()
        assert first.result().name == "ann"
    enrol(owner, message)


def test_renewals_end_where_there_are_enough_fresh_certificates(owner: Owner, ann: OwnerClient) -> None:
    for _ in range(FRESH_CERTIFICATES - 1):
        ann.renew()
    with pytest.raises(QuotaError, match="need no renewal yet"):
        ann.renew()
    assert len(owner.store.certificates("ann")) == FRESH_CERTIFICATES


def test_the_enrolment_listener_offers_no_collaboration(owner: Owner) -> None:
    credentials = grpc.ssl_channel_credentials(owner.authority.certificate_pem)
    with grpc.secure_channel(f"localhost:{owner.enrolment_port}", credentials) as channel:
        call: Any = channel.unary_unary("/portier.v1.Collaboration/GetRelease")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", timeout=30)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_home_that_lost_its_membership_is_not_joined_with_another_owner(owner: Owner, ann: OwnerClient) -> None:
    other = Authority.create()
    theirs = dataclasses.replace(owner.invite("bob"), name="ann", ca_certificate=other.certificate_der)
    before = files_of(ann.membership.home)
    (ann.membership.home / "membership.json").rename(ann.membership.home / "aside.json")
    with pytest.raises(WorkspaceError, match="another authority"):
        join(theirs, ann.membership.home)
    (ann.membership.home / "aside.json").rename(ann.membership.home / "membership.json")
    assert files_of(ann.membership.home) == before


def test_a_renewal_keeps_the_addresses_that_the_home_had(owner: Owner, ann: OwnerClient) -> None:
    had = ann.membership.addresses
    renewed = join(
        dataclasses.replace(owner.invite("ann", renew=True), addresses=("elsewhere.example:1",)), ann.membership.home
    )
    assert renewed.addresses == ("elsewhere.example:1", *had)


def test_a_stranger_who_answers_after_a_cut_line_does_not_cost_the_key(owner: Owner, tmp_path: Path) -> None:
    """The owner may have enrolled it before the line was cut."""
    invitation, home = owner.invite("ann"), tmp_path / "home"

    def stranger(*_: object) -> None:
        raise IdentityError("somebody else answers")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Patience, "persist", stranger)
        with pytest.raises(IdentityError, match="somebody else"):
            join(invitation, home)
    key = SigningKey.load(Membership(home, "ann", (), b"").signing_key_file).public_key
    assert SigningKey.load(join(invitation, home).signing_key_file).public_key == key
