"""The door every call goes through: who calls, may they still, and how an error leaves.

Identity is what the TLS session's client certificate says and nothing in a message. The certificate's serial must be one the
ledger issued to that name, and the name must not be revoked; both are asked at each call, and again while it lasts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Final, ParamSpec, TypeVar

import grpc

from common.errors import (
    IdentityError,
    InvitationError,
    PortierError,
    QuotaError,
    RevokedError,
    SignatureError,
    StorageError,
    WireError,
)
from common.identity.certificates import Peer, read_peer
from owner.ledger.records import Contributor
from owner.ledger.store import Store
from owner.service.calls import LiveCall, LiveCalls
from owner.service.statuses import refuse

_log = logging.getLogger(__name__)
_Value = TypeVar("_Value")
_Arguments = ParamSpec("_Arguments")
Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True)
class Caller:
    """An enrolled contributor on the other end of a TLS session, and the call that is open."""

    contributor: Contributor
    call: LiveCall

    @property
    def name(self) -> str:
        return self.contributor.name


async def off_loop(
    executor: Executor, function: Callable[_Arguments, _Value], *args: _Arguments.args, **kwargs: _Arguments.kwargs
) -> _Value:
    """Run a blocking function in `executor`."""
    return await asyncio.get_running_loop().run_in_executor(executor, partial(function, *args, **kwargs))


class Door:
    """ledger, strangers: executors for calls of the store, the second for callers without a certificate."""

    def __init__(self, store: Store, calls: LiveCalls, ledger: Executor, strangers: Executor) -> None:
        self._store = store
        self._calls = calls
        self._ledger = ledger
        self._strangers = strangers

    async def admit(self, context: Context, work: Callable[[Caller], Awaitable[_Value]]) -> _Value:
        """Run `work` for the caller. Whatever it raises ends the call with a status and a Problem."""
        call: LiveCall | None = None
        name: str | None = None
        error: PortierError
        try:
            peer = peer_of(context)
            name = peer.name
            with self._calls.open(peer.name) as call:
                contributor = await off_loop(self._ledger, self._store.identify, peer.serial, peer.name)
                return await work(Caller(contributor, call))
        except asyncio.CancelledError:
            # A client that went away cancels the task as well; then there is nobody to answer.
            task = asyncio.current_task()
            if call is None or call.ended_by is None or task is None:
                raise
            task.uncancel()
            error = call.ended_by
        except PortierError as raised:
            error = raised
        except Exception:  # noqa: BLE001 - logged, and told to nobody
            _log.exception("a call of %s failed", name or "somebody unknown")
            error = PortierError("internal")
        await self._note(name, error, None if call is None else call.submission)
        return await refuse(context, error)

    async def admit_stranger(self, context: Context, work: Callable[[], Awaitable[_Value]]) -> _Value:
        """As `admit`, for calls on the enrolment listener, whose callers have no certificate yet."""
        error: PortierError
        try:
            return await work()
        except PortierError as raised:
            error = raised
        except Exception:  # noqa: BLE001 - logged, and told to nobody
            _log.exception("an enrolment failed")
            error = PortierError("internal")
        await self._note(None, error)
        return await refuse(context, error)

    async def _note(self, name: str | None, error: PortierError, submission: str | None = None) -> None:
        """What was refused goes into the ledger, which counts repetitions instead of listing them."""
        if isinstance(error, StorageError):
            _log.error("%s: %s", name or "enrolment", error.diagnostics())
        if isinstance(error, QuotaError) and error.setting:
            _log.warning("refused %s: %s (%s)", name or "a stranger", error.message, error.setting)
        if not isinstance(error, WireError | IdentityError):
            return
        code = error.code if isinstance(error, WireError) else _CODES.get(type(error), "IDENTITY")
        if code in _ROUTINE:
            return
        _log.warning("refused %s: %s (%s)", name or "a stranger", error.message, code)
        try:
            executor = self._strangers if name is None else self._ledger
            await off_loop(executor, self._store.record_refusal, name, code, error.message, submission=submission)
        except PortierError as failure:
            _log.error("a refusal could not be recorded: %s", failure.message)


def peer_of(context: Context) -> Peer:
    """What the certificate of the call's TLS session says. Raises IdentityError."""
    found = context.auth_context().get("x509_pem_cert", ())
    certificates = list(found)
    if len(certificates) != 1:
        raise IdentityError("the connection shows no client certificate", hint="join with an invitation first")
    return _read_peer(bytes(certificates[0]))


# What a cut line brings about by itself says nothing about the contributor.
_ROUTINE = frozenset({"WRONG_OFFSET", "UPLOAD_IN_PROGRESS", "UPLOAD_STALLED", "UNKNOWN_RELEASE", "UNKNOWN_SUBMISSION"})
_CODES: Final[dict[type[IdentityError], str]] = {
    InvitationError: "INVITATION",
    RevokedError: "REVOKED",
    SignatureError: "SIGNATURE_INVALID",
}
_read_peer = lru_cache(maxsize=1024)(read_peer)
