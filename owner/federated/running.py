"""The Python door: one federation, simulated on this machine or on a Ray cluster, from a configuration to its result."""

from __future__ import annotations

import importlib.util
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from common.errors import ConfigurationError, MissingExtraError
from owner.federated.client_modules import load_clients
from owner.federated.config import FederationConfig

if TYPE_CHECKING:
    from owner.federated.engines import OwnersSide
    from owner.federated.incremental_results import IncrementalResult
    from owner.federated.results import FederationResult

Result = TypeVar("Result")


def run_federation(config: FederationConfig, *, progress: bool | None = False, quiet: bool = True) -> FederationResult:
    """Run `config`: the same configuration gives the same `FederationResult.table()`, whatever order replies come in.

    progress: bars while the owner trains and fits; None shows them on a terminal. quiet: silence Flower's log; what it would tell stands in the records.

    Mistakes are found before anything starts. Raises ConfigurationError (UnknownNameError for a strategy, attack or data set
    that does not exist; MissingExtraError where the engine is not installed), DataError, ModelError, GuardError.
    """
    clients = _checked(config, "federated", "run_submissions")
    from owner.federated.server_app import Server  # noqa: PLC0415 - Flower, once nothing is wrong

    return _run(config, clients, lambda: Server(config, progress=progress), quiet=quiet)


def run_submissions(
    config: FederationConfig, *, progress: bool | None = False, quiet: bool = True
) -> IncrementalResult:
    """Run `config` in the incremental setting: each client's one submission is judged as if it had come alone. See `run_federation`."""
    clients = _checked(config, "incremental", "run_federation")
    from owner.federated.incremental import Incremental  # noqa: PLC0415

    return _run(config, clients, lambda: Incremental(config, progress=progress), quiet=quiet)


def check_config(config: FederationConfig) -> None:
    """What can be told to be wrong before anything starts: names, the attack's options, classes, a missing engine.

    Reads the data set, for its shape and classes. Raises as `run_federation` does.
    """
    if config.engine == "ray":
        check_ray(config.ray_address)
    load_clients(config.client_app, attacked=config.attackers > 0).check(config)
    config.spec()
    if config.strategy == "gated":
        from owner.federated.choosing import guard_options  # noqa: PLC0415 - loads Flower

        guard_options(config, pool=len(config.shares().references))


def _checked(config: FederationConfig, setting: str, other: str) -> Any:
    if config.setting != setting:
        raise ConfigurationError(
            f"this configuration is of the {config.setting} setting, not the {setting} one",
            hint=f"call {other}(config), or set setting={setting!r}",
        )
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    if config.engine == "ray":
        check_ray(config.ray_address)
    clients = load_clients(config.client_app, attacked=config.attackers > 0)
    clients.check(config)
    return clients


def _run(config: FederationConfig, clients: Any, make: Callable[[], OwnersSide[Result]], *, quiet: bool) -> Result:
    from owner.federated.engines import run_inline, run_on_ray  # noqa: PLC0415 - Flower, once nothing is wrong

    run = run_on_ray if config.engine == "ray" else run_inline
    return run(config, clients.client_app(config.task()), make, quiet=quiet)


def check_ray(address: str = "") -> None:
    """address: of a running cluster, `HOST:PORT`, `ray://HOST:PORT`, or `auto` for what $RAY_ADDRESS names, else for one that was started on
    this machine; "" is none.

    Raises MissingExtraError where Flower's simulation engine is not installed, ConfigurationError where nobody answers there: Ray
    itself tries for minutes, and would for every cell.
    """
    if importlib.util.find_spec("ray") is None:
        raise MissingExtraError(
            "Flower's simulation engine (Ray) is not installed",
            hint='pip install "portier[simulation]", or run this federation with engine="inline"',
        )

    named = os.environ.get("RAY_ADDRESS", "") or _of_this_machine() if address == "auto" else address
    if named in ("", "auto", "local"):
        return
    host, _, port = named.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, ValueError, OverflowError) as error:
        raise ConfigurationError(
            f"no Ray cluster answers at {named}: {error}",
            hint="start one with `ray start --head`, and name it as HOST:PORT (its port is 6379 unless told otherwise)",
        ) from None


def _of_this_machine() -> str:
    """Where `ray start --head` noted the address of its cluster. Raises ConfigurationError where it never did."""
    note = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"  # noqa: S108 - Ray's own place
    try:
        return note.read_text("utf-8").strip()
    except OSError:
        raise ConfigurationError(
            "no Ray cluster was started on this machine, and $RAY_ADDRESS names none",
            hint="start one with `ray start --head`, or name one as HOST:PORT",
        ) from None
