"""Where the clients of a simulated federation run: on Flower's simulation engine, or in this process."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from owner.federated.config import FederationConfig
from owner.federated.inline import InlineGrid
from owner.federated.results import FederationResult
from owner.federated.server_app import Server


def run_inline(
    config: FederationConfig, client_app: ClientApp, *, progress: bool | None, quiet: bool
) -> FederationResult:
    with _log_level(quiet):
        return Server(config, progress=progress).run(InlineGrid(client_app, config.clients))


def run_on_ray(
    config: FederationConfig, client_app: ClientApp, *, progress: bool | None, quiet: bool
) -> FederationResult:
    from flwr.simulation import run_simulation  # noqa: PLC0415 - loads the engine

    found: list[FederationResult] = []
    server_app = ServerApp()
    with _log_level(quiet):
        # Fitted before the engine starts: an error then ends a function call and not a cluster.
        server = Server(config, progress=progress)

        @server_app.main()
        def main(grid: Grid, context: Context) -> None:
            found.append(server.run(grid))

        arguments: dict[str, Any] = {"log_to_driver": not quiet, "logging_level": logging.ERROR}
        if config.ray_address:
            arguments["address"] = config.ray_address
        else:
            # A ClientApp that asks for more than the machine has would wait for ever.
            arguments["num_cpus"] = max(os.cpu_count() or 1, round(config.client_cpus))
        run_simulation(
            server_app=server_app,
            client_app=client_app,
            num_supernodes=config.clients,
            backend_config={
                "init_args": arguments,
                "client_resources": {"num_cpus": config.client_cpus, "num_gpus": 0.0},
            },
        )
    return found[0]


@contextlib.contextmanager
def _log_level(quiet: bool) -> Iterator[None]:
    logger = logging.getLogger("flwr")
    before = logger.level
    if quiet:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
