"""The owner's service: two TLS listeners on one event loop, and what runs beside them until it is told to stop."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import stat
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health

from common.errors import ConfigurationError, ConnectionLostError, PortierError, PortInUseError
from common.identity.authority import Authority
from owner.addresses import hosts
from owner.ledger.store import Store
from owner.service import reconciliation
from owner.service.authentication import Context, Door, off_loop
from owner.service.calls import LiveCalls
from owner.service.changes import Changes
from owner.service.collaboration import Collaboration, Service
from owner.service.descriptors import connections, raise_limit
from owner.service.enrolment import Enrolment
from owner.service.limits import STOP_GRACE_SECONDS, enrolment_options, options
from owner.service.memory import return_freed_chunks
from owner.service.tls import ServerCertificate
from owner.service.uploads import Uploads
from owner.settings import OwnerSettings
from owner.workspace import Workspace
from protos.collaboration_pb2_grpc import add_CollaborationServicer_to_server, add_EnrolmentServicer_to_server

Background = Callable[[asyncio.Event], Awaitable[None]]
SERVICE_NAME: Final = "portier.v1.Collaboration"
ENROLMENT_NAME: Final = "portier.v1.Enrolment"
HOUSEKEEPING_SECONDS: Final = 300.0

_log = logging.getLogger(__name__)


async def serve(
    workspace: Workspace,
    settings: OwnerSettings,
    store: Store,
    *,
    background: Sequence[Background] = (),
    on_ready: Callable[[int, int], None] = lambda service_port, enrolment_port: None,
    stop: asyncio.Event | None = None,
) -> None:
    """Serve until SIGTERM, SIGINT or `stop`, then end open calls in order and return.

    background: run beside the service; each is given an event that is set when it should end. One that raises stops
    the service, and its error is raised here. on_ready: called with both ports once calls are taken.
    Raises PortInUseError, ConfigurationError (an address that cannot be listened on), IdentityError, StorageError.
    """
    stopping = stop or asyncio.Event()
    return_freed_chunks()
    contributors, strangers = connections(raise_limit(), _addresses(settings.service.host))
    _warn_of_readers(workspace)
    async with AsyncExitStack() as stack:
        ledger = stack.enter_context(ThreadPoolExecutor(4, "ledger"))
        # What strangers ask for must not queue before what contributors do.
        strangers_ledger = stack.enter_context(ThreadPoolExecutor(1, "strangers"))
        disk = stack.enter_context(ThreadPoolExecutor(min(8, 2 + (os.cpu_count() or 1)), "disk"))
        authority = Authority.load(workspace.authority_key, workspace.authority_certificate)
        certificate = ServerCertificate(
            workspace, authority, names=hosts(settings.service.names), days=settings.service.certificate_days
        )
        await off_loop(disk, reconciliation.reconcile, workspace, store)

        calls = LiveCalls(streams=settings.quotas.streams)
        changes = Changes(store, calls, ledger)
        door = Door(store, calls, ledger, strangers_ledger)
        uploads = Uploads(workspace, store, ledger=ledger, disk=disk)
        parts = Service(workspace, settings, store, authority, door, changes, uploads, ledger, disk)
        enrolment = Enrolment(door, store, authority, days=settings.service.certificate_days, ledger=strangers_ledger)

        service = grpc.aio.server(options=options(contributors))
        add_CollaborationServicer_to_server(Collaboration(parts), service)  # type: ignore[no-untyped-call]
        enroller = grpc.aio.server(options=enrolment_options(strangers))
        add_EnrolmentServicer_to_server(enrolment, enroller)  # type: ignore[no-untyped-call]
        host = settings.service.host
        ports = (
            _listen(
                service, host, settings.service.port, certificate.credentials(mutual=True), "service.port", "--port"
            ),
            _listen(
                enroller,
                host,
                settings.service.enrolment_port,
                certificate.credentials(mutual=False),
                "service.enrolment_port",
                "--enrolment-port",
            ),
        )
        vitals = [_add_health(server, _ChecksOnly()) for server in (service, enroller)]

        async def housekeeping(stopped: asyncio.Event) -> None:
            while not stopped.is_set():
                await off_loop(disk, _keep_house, parts, certificate)
                with suppress(TimeoutError):
                    await asyncio.wait_for(stopped.wait(), HOUSEKEEPING_SECONDS)

        async with _signals(stopping), asyncio.TaskGroup() as tasks:
            await service.start()
            await enroller.start()
            for vital, name in zip(vitals, (SERVICE_NAME, ENROLMENT_NAME), strict=True):
                await vital.set("", health_pb2.HealthCheckResponse.SERVING)
                await vital.set(name, health_pb2.HealthCheckResponse.SERVING)
            _log.info("listening on %s, ports %d (service) and %d (enrolment)", host, *ports)
            polling = tasks.create_task(changes.run())
            beside = [asyncio.ensure_future(task(stopping)) for task in (housekeeping, *background)]
            on_ready(*ports)
            failure = await _until(stopping, beside)
            stopping.set()
            _log.info("stopping")
            for vital in vitals:
                await vital.enter_graceful_shutdown()
            calls.stop(ConnectionLostError("the owner's service is stopping", hint="try again in a moment"))
            await asyncio.gather(service.stop(STOP_GRACE_SECONDS), enroller.stop(STOP_GRACE_SECONDS))
            polling.cancel()
            endings = await asyncio.gather(*beside, return_exceptions=True)
        # One that set the stop itself on its way down was taken for a stop.
        failure = failure or next((one for one in endings if isinstance(one, Exception)), None)
        if failure is not None:
            raise failure


async def _until(stopping: asyncio.Event, beside: Sequence[asyncio.Future[None]]) -> BaseException | None:
    """Wait for the stop, or for the first background task that fails; returns its error."""
    waiting: asyncio.Future[bool] = asyncio.ensure_future(stopping.wait())
    running: set[asyncio.Future[Any]] = {waiting, *beside}
    while not waiting.done():
        done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for task in done - {waiting}:
            error = None if task.cancelled() else task.exception()
            if error is not None:
                waiting.cancel()
                return error
    return None


def _addresses(host: str) -> int:
    """How many addresses a listener has under this name: `localhost` is two where there is IPv6."""
    with suppress(OSError):
        return len({found[4] for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)})
    return 1  # `_listen` says what is wrong with it


def _warn_of_readers(workspace: Workspace) -> None:
    mode = stat.S_IMODE(workspace.root.stat().st_mode)
    if mode & 0o077:
        _log.warning(
            "other users of this machine may read trigger images, guards and submissions: chmod 700 %s", workspace.root
        )


def _keep_house(parts: Service, certificate: ServerCertificate) -> None:
    try:
        certificate.refresh()
        reconciliation.expire_untouched(
            parts.workspace, parts.store, hours=parts.settings.quotas.upload_hours, hold=parts.uploads.held
        )
    except PortierError as error:
        # A full disk or a busy ledger is no reason to end the service; the next round tries again.
        _log.error("housekeeping: %s", error.diagnostics())


def _listen(
    server: grpc.aio.Server, host: str, port: int, credentials: grpc.ServerCredentials, setting: str, flag: str
) -> int:
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        bound = server.add_secure_port(address, credentials)
    except RuntimeError:
        bound = 0
    if bound:
        return bound
    reason = _why_not(host, port)
    if reason is None or reason.errno == errno.EADDRINUSE:
        raise PortInUseError(
            f"port {port} on {host} is in use by another program",
            hint=f"choose another with {flag} or {setting} in portier.toml (0 picks a free one)",
        )
    raise ConfigurationError(
        f"cannot listen on {address}: {reason.strerror}", hint=f"check service.host and {setting} ({flag})"
    )


def _why_not(host: str, port: int) -> OSError | None:
    """gRPC says only that it could not bind; the system says why."""
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
    except OSError as error:
        return error
    return None


class _ChecksOnly(health.HealthServicer):  # type: ignore[misc]
    """Health without streams: one stays open for as long as its caller likes, past every quota and revocation."""

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:  # noqa: N802
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "this listener answers Check alone")


def _add_health(server: grpc.aio.Server, vital: Any) -> Any:
    health_pb2_grpc.add_HealthServicer_to_server(vital, server)
    return vital


@asynccontextmanager
async def _signals(stopping: asyncio.Event) -> AsyncIterator[None]:
    """SIGTERM and SIGINT set `stopping`; a second one ends the process as usual."""
    loop = asyncio.get_running_loop()
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: signal.Signals) -> None:
        stopping.set()
        loop.remove_signal_handler(number)

    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
