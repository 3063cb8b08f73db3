"""Commands that run: serve, simulate, reproduce, compare."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from owner.cli.options import HERE, SetOption, WorkspaceOption
from owner.cli.rendering import errors
from owner.compare.cli import compare
from owner.reproduce.cli import reproduce
from owner.simulate.cli import simulate

if TYPE_CHECKING:
    from owner.operations.opening import Office

PANEL = "Run"


def register(app: typer.Typer) -> None:
    for command in (serve, simulate, reproduce, compare):
        app.command(rich_help_panel=PANEL)(command)


def serve(
    workspace: WorkspaceOption = HERE,
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="service.host")] = None,
    port: Annotated[
        int | None, typer.Option(help="Of the service; 0 picks a free one.", show_default="service.port")
    ] = None,
    enrolment_port: Annotated[
        int | None, typer.Option(help="Of the enrolment listener.", show_default="service.enrolment_port")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Report errors only.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Report progress of guards too.")] = False,
    set_: SetOption = None,
) -> None:
    """Take submissions, vet them, publish what is accepted, fit the guards of new releases. Ctrl-C or SIGTERM stops it.

    One service per workspace. It may be stopped or killed at any moment: uploads go on where they were, a vetting that was
    interrupted is done again, and a release is published as a whole or not. All other commands work beside it.
    """
    from owner.operations.opening import open_office, parse_overrides  # noqa: PLC0415

    _log_to_stderr(logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO)
    overrides = {
        "service.host": host,
        "service.port": port,
        "service.enrolment_port": enrolment_port,
        **parse_overrides(set_),
    }
    with open_office(workspace, overrides) as office, office.workspace.lock("serve"):
        office.store.current()  # says what to do where there is no release yet
        try:
            asyncio.run(_run(office))
        finally:
            office.workspace.ports_file.unlink(missing_ok=True)


async def _run(office: Office) -> None:
    from owner.service import serve as serve_calls  # noqa: PLC0415
    from owner.vetting import VettingLoop  # noqa: PLC0415

    loop = VettingLoop(office.workspace, office.settings, office.store)
    await serve_calls(
        office.workspace, office.settings, office.store, background=[loop.run], on_ready=_remember_ports(office)
    )


def _remember_ports(office: Office) -> Callable[[int, int], None]:
    from common.files import write_atomically  # noqa: PLC0415

    def remember(port: int, enrolment_port: int) -> None:
        found = {"port": port, "enrolment_port": enrolment_port}
        write_atomically(office.workspace.ports_file, json.dumps(found).encode())

    return remember


def _log_to_stderr(level: int) -> None:
    if errors.is_terminal:
        from rich.logging import RichHandler  # noqa: PLC0415

        handler: logging.Handler = RichHandler(console=errors, show_path=False, rich_tracebacks=False)
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name in ("portier", "owner"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)
