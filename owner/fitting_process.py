"""The process that fits a guard or calibrates an escalation tier, followed until it ends or is to stop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
from collections.abc import Sequence

from common.errors import GuardError
from owner.gatekeeper.own_processes import environment

log = logging.getLogger("portier.guards")

_KEPT_BYTES = 8192
_TOLD = 400


async def run_to_its_end(command: Sequence[str], stop: asyncio.Event, *, about: str) -> bool:
    """Whether it did its work; False where `stop` was set before. about: what it fits, for the log.

    Raises GuardError where it ends otherwise, with the end of what it complained about.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        # Ctrl-C is for the service, which then ends this process itself.
        start_new_session=True,
        env=environment(),
    )
    ending = asyncio.create_task(_follow(process, about))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({ending, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not ending.done():
            return False
        complaint = ending.result()
    finally:
        stopping.cancel()
        await _end(process, ending)
    if process.returncode == 0:
        return True
    # Of a traceback, the end tells most.
    words = " ".join(complaint.split())[-_TOLD:] or "the process said nothing"
    raise GuardError(f"exit code {process.returncode}: {words}")


async def _follow(process: asyncio.subprocess.Process, about: str) -> str:
    """Log the process's progress until it ends; returns the end of what it complained about."""
    assert process.stdout is not None  # noqa: S101 - both are pipes
    assert process.stderr is not None  # noqa: S101
    errors = asyncio.create_task(_last_words(process.stderr))
    while line := await process.stdout.readline():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            done = json.loads(line)
            log.debug("%s: %d of %d honest fine-tunes", about, done["done"], done["total"])
    await process.wait()
    return await errors


async def _last_words(stream: asyncio.StreamReader) -> str:
    kept = b""
    while chunk := await stream.read(4096):
        kept = (kept + chunk)[-_KEPT_BYTES:]
    return kept.decode("utf-8", "replace").strip()


async def _end(process: asyncio.subprocess.Process, ending: asyncio.Task[str]) -> None:
    """Nothing is lost by killing it: finished references are on disk, and it writes the guard as a whole or not."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    await asyncio.wait({ending})
