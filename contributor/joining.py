"""Joining: an invitation becomes an enrolled identity in this contributor's home, or renews the one that is there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import grpc

from common.errors import InvitationError, ProtocolError, WorkspaceError
from common.files import ensure_directory, write_atomically
from common.identity.certificates import load_certificate, spki_sha256
from common.identity.invitation import ADDRESSES, Invitation
from common.identity.requests import enrolment_request
from common.identity.tls_keys import TlsKey
from contributor.connection import CALL_SECONDS, Connection
from contributor.membership import Membership
from contributor.patience import Patience
from contributor.settings import write_template
from contributor.workspace import ContributorWorkspace
from protos import collaboration_pb2 as wire
from protos.collaboration_pb2_grpc import EnrolmentStub


def join(
    invitation: Invitation,
    home: Path,
    *,
    patience: float | None = 60.0,
    on_try: Callable[[str], None] = lambda _address: None,
) -> Membership:
    """Redeem `invitation` and keep keys (mode 0600), certificates and a settings file to edit below `home`.

    A home that has joined the same owner as the same name gets a certificate for the signing key it has, and the addresses of the
    invitation; all else stays. Any other home that has joined is left alone.

    The owner is told from a stranger by the authority's certificate that the invitation carries. May be repeated
    after a failure: the signing key is made once.
    patience: seconds to go on trying while the owner cannot be reached; None for ever. on_try: told each address once, before it
        is called.
    Raises InvitationError (expired, used, unknown, for another key), IdentityError (somebody else answers at the address),
    WorkspaceError (this home has joined another owner, or as another name), ConnectionLostError, StorageError.
    """
    renewing = (home / "membership.json").exists()
    addresses = invitation.addresses
    if renewing:
        joined = Membership.open(home)
        _check_same(joined, invitation)
        # Those it had stay: TLS tells a stranger at a new one, and an owner that has not moved is still found.
        addresses = tuple(dict.fromkeys((*addresses, *joined.addresses)))[:ADDRESSES]
    invitation.check()
    membership = Membership(home, invitation.name, addresses, invitation.owner_key)
    if membership.authority_file.exists():
        _check_authority(membership, invitation)
    fresh = not home.exists()
    ensure_directory(home, 0o700)
    write_template(ContributorWorkspace(home))
    signing_key = membership.signing_key() if renewing else membership.signing_key_or_new()
    tls_key = TlsKey.generate()
    request = enrolment_request(invitation.token, invitation.name, tls_key, signing_key)
    message = wire.EnrolRequest(
        token=request.token,
        certificate_request=request.certificate_request,
        signing_key=request.signing_key,
        proof=request.proof,
    )
    root = invitation.ca_certificate_pem
    connection = Connection(invitation.enrolment_addresses, grpc.ssl_channel_credentials(root), EnrolmentStub)

    tried: set[str] = set()

    def enrol() -> wire.Certificate:
        if connection.address not in tried:
            tried.add(connection.address)
            on_try(connection.address)
        with connection.stub() as stub:
            answer = stub.Enrol(message, timeout=CALL_SECONDS)
        if not isinstance(answer, wire.Certificate):
            raise ProtocolError("the owner did not answer with a certificate")
        return answer

    try:
        answer = Patience(patience).persist(enrol)
    except InvitationError:
        # Refused, so nothing here is of use. After a cut line the key stays: the owner may have enrolled it already.
        if fresh:
            shutil.rmtree(home, ignore_errors=True)
        raise
    finally:
        connection.close()
    if not renewing:
        write_atomically(membership.authority_file, root)
    membership.save_identity(tls_key, answer.certificate)
    membership.save()
    return membership


def _check_same(joined: Membership, invitation: Invitation) -> None:
    """Raises WorkspaceError where the home belongs to another owner or name than the invitation, so that no key is replaced."""
    if joined.name != invitation.name or joined.owner_key != invitation.owner_key:
        whose = "" if joined.owner_key == invitation.owner_key else " with another owner"
        raise WorkspaceError(
            f"{joined.home} has joined as {joined.name}{whose} already; the invitation is for {invitation.name}",
            hint="use another --home for another owner or name",
        )


def _check_authority(joined: Membership, invitation: Invitation) -> None:
    """Raises WorkspaceError where the home has the authority of another owner, whatever has become of its membership."""
    if spki_sha256(load_certificate(joined.authority())) != invitation.ca_spki_sha256:
        raise WorkspaceError(
            f"the invitation names another authority than the one that {joined.home} has joined",
            hint="ask the owner whether it is theirs; a new authority is joined from another --home, as another name",
        )
