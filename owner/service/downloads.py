"""Downloads of release weights: in order from any offset."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator
from concurrent.futures import Executor
from pathlib import Path

from common.errors import WireError
from common.files import storage_errors
from owner.service.authentication import Caller, off_loop
from owner.service.limits import CHUNK_BYTES
from owner.service.statuses import OffsetError
from protos import collaboration_pb2 as wire


async def chunks(caller: Caller, path: Path, offset: int, disk: Executor) -> AsyncGenerator[wire.DownloadChunk, None]:
    """The file's chunks from `offset` on. Raises OffsetError past its end, WireError UNKNOWN_RELEASE, StorageError."""
    weights = await _open(path, disk)
    size = weights.size
    try:
        if offset > size:
            raise OffsetError(f"offset {offset} is past the end of the weights, which have {size} bytes", size)
        while offset < size:
            caller.call.check()
            data = await off_loop(disk, weights.read, offset)
            if not data:
                raise WireError("RELEASE_DAMAGED", "the owner's file of this release ends early", hint="tell the owner")
            yield wire.DownloadChunk(offset=offset, data=data)
            offset += len(data)
    finally:
        await asyncio.shield(_close(weights, disk))


class _Weights:
    """A release's file, opened at once; `close` it. Raises StorageError."""

    def __init__(self, path: Path) -> None:
        # `close` may come while a cancelled call's last `read` still runs.
        self._lock = threading.Lock()
        self._path = path
        with storage_errors("read", path):
            self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                self.size = os.fstat(self._handle).st_size
            except BaseException:
                os.close(self._handle)
                raise

    def read(self, offset: int) -> bytes:
        """A chunk, b"" at the end of the file. Raises StorageError, also once it is closed."""
        with self._lock, storage_errors("read", self._path):
            return os.pread(self._handle, CHUNK_BYTES, offset)

    def close(self) -> None:
        with self._lock:
            # Never the number alone: once closed, the next file to be opened has it.
            handle, self._handle = self._handle, -1
            os.close(handle)


async def _open(path: Path, disk: Executor) -> _Weights:
    """A call that is cancelled meanwhile leaves no file open."""
    opening = asyncio.get_running_loop().run_in_executor(disk, _Weights, path)

    def close_opened(done: asyncio.Future[_Weights]) -> None:
        if not done.cancelled() and done.exception() is None:
            _close(done.result(), disk)

    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(close_opened)
        raise


def _close(weights: _Weights, disk: Executor) -> asyncio.Future[None]:
    return asyncio.get_running_loop().run_in_executor(disk, weights.close)
