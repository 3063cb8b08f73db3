"""Errors on their way out: which gRPC status each branch of the exception tree becomes, and what of it is told.

The status is for programs that know gRPC alone; Portier's client rebuilds the exception from the Problem in the
trailing metadata (`contributor/statuses.py`).
"""

from __future__ import annotations

import errno
from typing import Any, Final, NoReturn

import grpc

from common.errors import (
    ConfigurationError,
    ConnectionLostError,
    IdentityError,
    InvitationError,
    PortierError,
    ProtocolError,
    QuotaError,
    RevokedError,
    SignatureError,
    StorageError,
    WireError,
)
from owner.service.limits import PROBLEM_CHARACTERS
from protos import collaboration_pb2 as wire

METADATA_KEY: Final = "portier-problem-bin"

# The first class that fits, so a subclass stands before its base.
_BY_CLASS: Final[tuple[tuple[type[PortierError], grpc.StatusCode], ...]] = (
    (RevokedError, grpc.StatusCode.PERMISSION_DENIED),
    (InvitationError, grpc.StatusCode.PERMISSION_DENIED),
    (SignatureError, grpc.StatusCode.INVALID_ARGUMENT),
    (IdentityError, grpc.StatusCode.UNAUTHENTICATED),
    (QuotaError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (StorageError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (ConnectionLostError, grpc.StatusCode.UNAVAILABLE),
    (ProtocolError, grpc.StatusCode.FAILED_PRECONDITION),
    (ConfigurationError, grpc.StatusCode.INVALID_ARGUMENT),
    (WireError, grpc.StatusCode.INVALID_ARGUMENT),
)
_BY_CODE: Final = {
    "WRONG_OFFSET": grpc.StatusCode.OUT_OF_RANGE,
    "UPLOAD_IN_PROGRESS": grpc.StatusCode.ABORTED,
    "UPLOAD_STALLED": grpc.StatusCode.ABORTED,
    "UNKNOWN_RELEASE": grpc.StatusCode.NOT_FOUND,
    "UNKNOWN_SUBMISSION": grpc.StatusCode.NOT_FOUND,
    "BASE_NOT_ALLOWED": grpc.StatusCode.FAILED_PRECONDITION,
    "NOT_UPLOADING": grpc.StatusCode.FAILED_PRECONDITION,
    "REPLAY": grpc.StatusCode.ALREADY_EXISTS,
}


class OffsetError(WireError):
    """A chunk does not begin where the data on disk end; `committed_bytes` says where that is."""

    def __init__(self, message: str, committed_bytes: int) -> None:
        super().__init__("WRONG_OFFSET", message, hint=f"resume at offset {committed_bytes}")
        self.committed_bytes = committed_bytes


def status_of(error: PortierError) -> grpc.StatusCode:
    """
    >>> status_of(QuotaError("too many")).name
    'RESOURCE_EXHAUSTED'
    """
    if isinstance(error, WireError) and error.code in _BY_CODE:
        return _BY_CODE[error.code]
    return next((status for kind, status in _BY_CLASS if isinstance(error, kind)), grpc.StatusCode.INTERNAL)


def problem_of(error: PortierError) -> wire.Problem:
    """What the other side is told. Paths and ledger internals of the owner's machine are not."""
    if isinstance(error, StorageError):
        return wire.Problem(kind="StorageError", code="OWNER_STORAGE", message=_storage(error), hint=_STORAGE_HINT)
    if status_of(error) == grpc.StatusCode.INTERNAL:
        return wire.Problem(
            kind="ProtocolError", message="the owner's service failed", hint="ask the owner for the log"
        )
    kind = next(name for name in (cls.__name__ for cls in type(error).__mro__) if name not in _OWN_CLASSES)
    return wire.Problem(
        kind=kind,
        code=error.code if isinstance(error, WireError) else "",
        message=error.message[:PROBLEM_CHARACTERS],
        hint=error.hint[:PROBLEM_CHARACTERS],
        committed_bytes=error.committed_bytes if isinstance(error, OffsetError) else 0,
    )


async def refuse(context: grpc.aio.ServicerContext[Any, Any], error: PortierError) -> NoReturn:
    """End the call with the error."""
    problem = problem_of(error)
    # Header values are ASCII; the Problem carries the message as it was.
    details = problem.message.encode("ascii", "backslashreplace").decode("ascii")
    await context.abort(status_of(error), details[:500], ((METADATA_KEY, problem.SerializeToString()),))
    raise AssertionError("abort always raises")


_OWN_CLASSES = {OffsetError.__name__}
_STORAGE_HINT = "what was sent is kept; try again later, the upload continues where it stopped"


def _storage(error: StorageError) -> str:
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "the owner's disk is full"
    return "the owner cannot write to its disk"
