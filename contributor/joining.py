"""Joining: an invitation becomes an enrolled identity in this contributor's home."""

from __future__ import annotations

import shutil
from pathlib import Path

import grpc

from common.errors import IdentityError, ProtocolError, WorkspaceError
from common.files import ensure_directory, write_atomically
from common.identity.invitation import Invitation
from common.identity.requests import enrolment_request
from common.identity.tls_keys import TlsKey
from contributor.connection import CALL_SECONDS, Connection
from contributor.membership import Membership
from contributor.patience import Patience
from contributor.settings import write_template
from contributor.workspace import ContributorWorkspace
from protos import collaboration_pb2 as wire
from protos.collaboration_pb2_grpc import EnrolmentStub


def join(invitation: Invitation, home: Path, *, patience: float | None = 60.0) -> Membership:
    """Redeem `invitation` and keep keys (mode 0600), certificates and a settings file to edit below `home`.

    The owner is told from a stranger by the authority's certificate that the invitation carries. May be repeated
    after a failure: the signing key is made once.
    patience: seconds to go on trying while the owner cannot be reached; None for ever.
    Raises InvitationError (expired, used, unknown), IdentityError (somebody else answers at the address),
    WorkspaceError (this home has joined already), ConnectionLostError, StorageError.
    """
    if (home / "membership.json").exists():
        raise WorkspaceError(
            f"{home} has joined as {Membership.open(home).name} already", hint="use another --home for another owner"
        )
    invitation.check()
    membership = Membership(home, invitation.name, invitation.addresses, invitation.owner_key)
    fresh = not home.exists()
    ensure_directory(home, 0o700)
    write_template(ContributorWorkspace(home))
    signing_key = membership.signing_key_or_new()
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

    def enrol() -> wire.Certificate:
        with connection.stub() as stub:
            answer = stub.Enrol(message, timeout=CALL_SECONDS)
        if not isinstance(answer, wire.Certificate):
            raise ProtocolError("the owner did not answer with a certificate")
        return answer

    try:
        answer = Patience(patience).persist(enrol)
    except IdentityError:
        # Refused, so nothing here is of use. After a cut line the key stays: the owner may have enrolled it already.
        if fresh:
            shutil.rmtree(home, ignore_errors=True)
        raise
    finally:
        connection.close()
    write_atomically(membership.authority_file, root)
    membership.save_identity(tls_key, answer.certificate)
    membership.save()
    return membership
