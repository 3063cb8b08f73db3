"""Enrolment and renewal: a certificate for whoever holds a token, or an enrolled certificate, and proves to hold its keys."""

from __future__ import annotations

import logging
from concurrent.futures import Executor

from common.errors import QuotaError, WireError
from common.identity.authority import Authority, Issued
from common.identity.certificates import LIMIT
from common.identity.requests import EnrolmentRequest, verify_enrolment_request
from owner.ledger.store import Store
from owner.service.authentication import Context, Door, off_loop
from owner.service.limits import ENROLMENTS_AT_ONCE, TOKEN_BYTES
from protos import collaboration_pb2 as wire
from protos.collaboration_pb2_grpc import EnrolmentServicer

_log = logging.getLogger(__name__)


class Enrolment(EnrolmentServicer):
    """days: lifetime of the certificates. ledger: executor for calls of the store."""

    def __init__(self, door: Door, store: Store, authority: Authority, *, days: float, ledger: Executor) -> None:
        self._door = door
        self._store = store
        self._authority = authority
        self._days = days
        self._ledger = ledger
        self._under_way = 0

    async def Enrol(self, request: wire.EnrolRequest, context: Context) -> wire.Certificate:  # noqa: N802 - gRPC's name
        async def work() -> wire.Certificate:
            if self._under_way > ENROLMENTS_AT_ONCE:
                raise QuotaError(
                    f"{ENROLMENTS_AT_ONCE} enrolments are under way, which is the limit", hint="try again in a moment"
                )
            return await off_loop(self._ledger, self._enrol, request)

        # A refusal is written down, and belongs to what is under way until it is.
        self._under_way += 1
        try:
            return await self._door.admit_stranger(context, work)
        finally:
            self._under_way -= 1

    def _enrol(self, request: wire.EnrolRequest) -> wire.Certificate:
        _bounded(request.token, "token", TOKEN_BYTES)
        _bounded(request.certificate_request, "certificate_request", LIMIT)
        enrolment = EnrolmentRequest(request.token, request.certificate_request, request.signing_key, request.proof)
        verify_enrolment_request(enrolment)
        # Whoever used the token may use it again with the same signing key: its holder's answer was lost on the way.
        name = self._store.check_token(request.token, signing_key=request.signing_key)
        issued = self._authority.sign_request(request.certificate_request, name, days=self._days)
        self._store.redeem(
            request.token,
            name=name,
            signing_key=request.signing_key,
            serial=issued.serial,
            not_after=issued.not_after,
            allow_retry=True,
        )
        _log.info("%s has joined", name)
        return wire.Certificate(certificate=issued.certificate_pem, name=name)


def renew(store: Store, authority: Authority, request: bytes, name: str, *, days: float) -> wire.Certificate:
    """A further certificate for an enrolled contributor; the one it has stays good until it expires. Blocking.

    Raises WireError FIELD_TOO_LONG, IdentityError, QuotaError where it has enough fresh ones.
    """
    _bounded(request, "certificate_request", LIMIT)
    issued: Issued = authority.sign_request(request, name, days=days)
    store.add_certificate(name, issued.serial, issued.not_after)
    _log.info("%s has renewed its certificate", name)
    return wire.Certificate(certificate=issued.certificate_pem, name=name)


def _bounded(value: bytes | str, field: str, limit: int) -> None:
    if len(value) > limit:
        raise WireError("FIELD_TOO_LONG", f"{field} has {len(value)} bytes, the limit is {limit}")
