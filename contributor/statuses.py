"""Errors on their way in: a failed call becomes the exception the owner's service raised.

The owner puts a Problem into the trailing metadata (`owner/service/statuses.py`). A failure without one comes from gRPC
or the network between: the line was cut, nobody listens, TLS refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import grpc
from google.protobuf.message import DecodeError

from common import errors
from common.errors import ConnectionLostError, IdentityError, PortierError, ProtocolError, WireError
from common.words import shown
from protos import collaboration_pb2 as wire

METADATA_KEY: Final = "portier-problem-bin"
_KINDS: Final[dict[str, type[PortierError]]] = {
    name: getattr(errors, name)
    for name in (
        "ConfigurationError",
        "ConnectionLostError",
        "IdentityError",
        "InvitationError",
        "ManifestError",
        "ProtocolError",
        "QuotaError",
        "RevokedError",
        "SignatureError",
        "StorageError",
        "TriesUsedUpError",
        "WeightsError",
        "WireError",
    )
}
# Where no Problem came along: the connection broke, or the owner's process went while it answered.
_LOST: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
    }
)
# The owner may take some time to notice that an earlier call of ours is dead.
_WORTH_WAITING_FOR: Final = frozenset({"UPLOAD_IN_PROGRESS", "UPLOAD_STALLED"})
_TLS_SIGNS: Final = ("CERTIFICATE_VERIFY_FAILED", "certificate verify failed", "Hostname Verification", "Peer name")


def problem_in(error: grpc.RpcError) -> wire.Problem | None:
    """The owner's own words about why the call failed, None where there are none."""
    metadata: Iterable[tuple[str, str | bytes]] = ()
    if isinstance(error, grpc.Call):
        metadata = error.trailing_metadata() or ()
    for key, value in metadata:
        if key == METADATA_KEY and isinstance(value, bytes):
            try:
                return wire.Problem.FromString(value)
            except DecodeError:
                return None
    return None


def exception_of(error: grpc.RpcError, address: str) -> PortierError:
    """The exception a failed call is raised as. ConnectionLostError is what a retry may mend."""
    problem = problem_in(error)
    if problem is not None and problem.kind in _KINDS:
        kind, message, hint = _KINDS[problem.kind], shown(problem.message), shown(problem.hint)
        if issubclass(kind, WireError):
            return kind(shown(problem.code), message, hint=hint)
        return kind(message, hint=hint)
    code = error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN
    details = shown((error.details() if isinstance(error, grpc.Call) else str(error)) or "")
    if any(sign in details for sign in _TLS_SIGNS):
        return IdentityError(
            f"{address} did not show a certificate of the owner's authority for that name: {details}",
            hint="check the address: if it is right, somebody else answers there; where the owner has moved, "
            "`portier-contributor address HOST:PORT` says where to",
        )
    if code in _LOST:
        return ConnectionLostError(
            f"no connection to the owner at {address} ({code.name.lower()}: {details})",
            hint="check that the owner's service runs and the address is right; where the owner has moved, "
            "`portier-contributor address HOST:PORT` says where to",
        )
    return ProtocolError(f"the owner at {address} answered {code.name}: {details}")


def retryable(error: PortierError) -> bool:
    """Whether the same call may succeed later without anybody doing anything."""
    if isinstance(error, WireError):
        return error.code in _WORTH_WAITING_FOR
    return isinstance(error, ConnectionLostError)
