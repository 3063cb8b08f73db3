"""Downloads whose caller goes away leave nothing open."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from owner.ledger.records import Contributor
from owner.service import downloads
from owner.service.authentication import Caller
from owner.service.calls import LiveCalls
from tests.network import until


class Disk(ThreadPoolExecutor):
    """begun: set once its first piece of work has left the queue."""

    def __init__(self) -> None:
        super().__init__(1)
        self.begun = threading.Event()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        def run() -> Any:
            self.begun.set()
            return fn(*args, **kwargs)

        return super().submit(run)


def test_a_download_cancelled_while_its_file_is_opened_closes_it(tmp_path: Path) -> None:
    # Opening a FIFO waits for its other end, and writing to it fails once nobody has it open for reading.
    fifo = tmp_path / "weights"
    os.mkfifo(fifo)

    async def cancelled() -> None:
        with LiveCalls(streams=1).open("ann") as call, Disk() as disk:
            caller = Caller(Contributor("ann", bytes(32), ""), call)
            task = asyncio.ensure_future(anext(downloads.chunks(caller, fifo, 0, disk)))
            await asyncio.to_thread(disk.begun.wait, 10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            writer = await asyncio.to_thread(os.open, fifo, os.O_WRONLY)
            try:
                await asyncio.to_thread(until, lambda: nobody_reads(writer))
            finally:
                os.close(writer)

    asyncio.run(cancelled())


def nobody_reads(writer: int) -> bool:
    try:
        os.write(writer, b"x")
    except BrokenPipeError:
        return True
    return False
