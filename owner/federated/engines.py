"""Where the clients of a simulated federation run: on Flower's simulation engine, or in this process."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar, cast

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from common.errors import PortierError
from owner.federated.client_modules import OWN_CLIENTS
from owner.federated.config import FederationConfig
from owner.federated.inline import InlineGrid

Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)


class OwnersSide(Protocol[Result_co]):
    """What is fitted before the clients are there, and then run with them; see `Server`, `Incremental`."""

    def run(self, grid: Grid) -> Result_co: ...


def run_inline(
    config: FederationConfig, client_app: ClientApp, make: Callable[[], OwnersSide[Result]], *, quiet: bool
) -> Result:
    """make: fits the owner's side."""
    # Of a client app of somebody's own nobody knows what else its answers follow from: every one is asked for.
    follows_from = config.client_key if config.client_app == OWN_CLIENTS else None
    with _log_level(quiet), _little_garbage():
        return make().run(InlineGrid(client_app, config.clients, follows_from=follows_from))


def run_on_ray(
    config: FederationConfig, client_app: ClientApp, make: Callable[[], OwnersSide[Result]], *, quiet: bool
) -> Result:
    """Raises PortierError where the engine breaks down; what the server raises comes through as it is."""
    # Ray warns at every start of a coming change in how it hides accelerators, which a client that asks for none does not mind.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    from flwr.simulation import run_simulation  # noqa: PLC0415 - loads the engine

    found: list[Result] = []
    raised: list[BaseException] = []
    engine_stopped = threading.Event()
    server_app = ServerApp()
    with _log_level(quiet), warnings.catch_warnings():
        # Fitted before the engine starts: an error then ends a function call and not a cluster.
        server = make()

        @server_app.main()
        def main(grid: Grid, context: Context) -> None:
            try:
                found.append(server.run(cast(Grid, _Watched(grid, engine_stopped))))
            except BaseException as error:
                raised.append(error)
                raise

        arguments: dict[str, Any] = {"log_to_driver": not quiet, "logging_level": logging.ERROR}
        if config.ray_address:
            arguments["address"] = config.ray_address
        else:
            # A ClientApp that asks for more than the machine has would wait for ever.
            arguments["num_cpus"] = max(os.cpu_count() or 1, round(config.client_cpus))
        # All of these reach Ray as options of the processes that clients run in. One that dies (out of memory) is started again, and its client
        # tried twice more: Flower itself counts the dead one among those at hand, where it would fail nearly every other client at once.
        resources: dict[str, Any] = {
            "num_cpus": config.client_cpus,
            "num_gpus": 0.0,
            "max_restarts": -1,
            "max_task_retries": 2,
        }
        warnings.simplefilter("ignore")  # what Ray and Flower warn each other of is no caller's business
        try:
            run_simulation(
                server_app=server_app,
                client_app=client_app,
                num_supernodes=config.clients,
                backend_config={"init_args": arguments, "client_resources": resources},
            )
        except Exception as error:
            if raised:
                raise raised[0] from None
            raise PortierError(
                f"Flower's simulation engine broke down: {error.__cause__ or error}",
                hint='run it with quiet=False to see its log, or with engine="inline"',
            ) from error
        finally:
            engine_stopped.set()
    return found[0]


class _Watched:
    """A grid whose server stops waiting when the engine is gone; Flower's own would wait until the round's timeout."""

    def __init__(self, grid: Grid, engine_stopped: threading.Event) -> None:
        self._grid, self._stopped = grid, engine_stopped

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        waiting = set(self._grid.push_messages(messages))
        deadline = None if timeout is None else time.monotonic() + timeout
        found: list[Message] = []
        while waiting and (deadline is None or time.monotonic() < deadline):
            if self._stopped.is_set():
                raise PortierError("Flower's simulation engine is gone")
            replies = list(self._grid.pull_messages(waiting))
            waiting -= {reply.metadata.reply_to_message_id for reply in replies}
            found += replies
            time.sleep(0.02 if waiting else 0)
        return found


@contextlib.contextmanager
def _log_level(quiet: bool) -> Iterator[None]:
    logger = logging.getLogger("flwr")
    before = logger.level
    if quiet:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextlib.contextmanager
def _little_garbage() -> Iterator[None]:
    # Flower's Bulyan collects garbage once a client and round: what is there before need not be gone through each time.
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
