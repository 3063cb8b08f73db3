"""Every error the service may raise comes out of the client as itself, and says nothing of the owner's machine."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from common import errors
from contributor import statuses as incoming
from owner.service import statuses as outgoing
from protos import collaboration_pb2 as wire


class FailedCall(grpc.RpcError, grpc.Call):
    """What a stub raises, made by hand, as far as it is asked."""

    initial_metadata = add_callback = cancel = is_active = time_remaining = None  # type: ignore[assignment]

    def __init__(self, error: errors.PortierError) -> None:
        self._error = error

    def code(self) -> grpc.StatusCode:
        return outgoing.status_of(self._error)

    def details(self) -> str:
        return "details"

    def trailing_metadata(self) -> Any:
        return ((outgoing.METADATA_KEY, outgoing.problem_of(self._error).SerializeToString()),)


@pytest.mark.parametrize(
    "error",
    [
        errors.ConnectionLostError("stopping", hint="wait"),
        errors.IdentityError("who", hint="join"),
        errors.InvitationError("used"),
        errors.ManifestError("FIELD_INVALID", "spec"),
        errors.QuotaError("too many", hint="wait"),
        errors.RevokedError("gone"),
        errors.SignatureError("bad"),
        errors.WeightsError("DIGEST_MISMATCH", "other"),
        errors.WireError("REPLAY", "nonce", hint="fresh"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_arrives_as_the_same_class_with_message_hint_and_code(error: errors.PortierError) -> None:
    arrived = incoming.exception_of(FailedCall(error), "owner:1")
    assert (type(arrived), arrived.message, arrived.hint) == (type(error), error.message, error.hint)
    assert getattr(arrived, "code", "") == getattr(error, "code", "")


def test_both_sides_name_the_metadata_alike() -> None:
    assert outgoing.METADATA_KEY == incoming.METADATA_KEY


def test_paths_of_the_owners_machine_are_not_told() -> None:
    told = outgoing.problem_of(errors.StorageError("cannot write /home/owner/secret: No space left on device"))
    assert "secret" not in told.message + told.hint


def test_an_unforeseen_error_is_told_without_its_words() -> None:
    told = outgoing.problem_of(errors.LedgerError("row 17 of table submissions"))
    assert (told.kind, "table" in told.message) == ("ProtocolError", False)


def test_a_wrong_offset_tells_where_to_go_on() -> None:
    problem = outgoing.problem_of(outgoing.OffsetError("wrong", 42))
    assert (problem.kind, problem.code, problem.committed_bytes) == ("WireError", "WRONG_OFFSET", 42)
    assert outgoing.status_of(outgoing.OffsetError("wrong", 42)).name == "OUT_OF_RANGE"


def test_long_messages_are_cut_to_what_trailing_metadata_may_hold() -> None:
    problem = outgoing.problem_of(errors.QuotaError("x" * 100_000, hint="y" * 100_000))
    assert len(problem.SerializeToString()) < 8192


def test_only_what_time_may_mend_is_worth_another_attempt() -> None:
    assert incoming.retryable(errors.ConnectionLostError("cut"))
    assert incoming.retryable(errors.WireError("UPLOAD_IN_PROGRESS", "busy"))
    for error in (errors.QuotaError("full"), errors.RevokedError("gone"), errors.WireError("REPLAY", "again")):
        assert not incoming.retryable(error)


def test_a_kind_nobody_knows_is_a_protocol_error() -> None:
    class Odd(FailedCall):
        def code(self) -> grpc.StatusCode:
            return grpc.StatusCode.FAILED_PRECONDITION

        def trailing_metadata(self) -> Any:
            return ((incoming.METADATA_KEY, wire.Problem(kind="SystemExit", message="boo").SerializeToString()),)

    assert type(incoming.exception_of(Odd(errors.PortierError("")), "owner:1")) is errors.ProtocolError


def test_what_an_owner_writes_cannot_drive_a_terminal() -> None:
    error = incoming.exception_of(
        FailedCall(errors.QuotaError("\x1b]0;owned\x07 no room", hint="\x1b[2Jlater")), "owner:1"
    )
    assert "\x1b" not in error.diagnostics()
    assert "no room" in error.message
    coded = incoming.exception_of(FailedCall(errors.WireError("\x1b[2J", "again")), "owner:1")
    assert isinstance(coded, errors.WireError)
    assert coded.code.isprintable()


def test_what_a_network_between_writes_cannot_drive_a_terminal() -> None:
    class Bare(FailedCall):
        def details(self) -> str:
            return "\x1b[2Jgone"

        def trailing_metadata(self) -> Any:
            return ()

    error = incoming.exception_of(Bare(errors.ConnectionLostError("")), "owner:1")
    assert "\x1b" not in error.diagnostics()
    assert "gone" in error.message
