"""Downloads of release weights: in order from any offset."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from pathlib import Path

from common.errors import WireError
from common.files import storage_errors
from owner.service.authentication import Caller, off_loop
from owner.service.limits import CHUNK_BYTES
from owner.service.statuses import OffsetError
from protos import collaboration_pb2 as wire


async def chunks(caller: Caller, path: Path, offset: int, disk: Executor) -> AsyncIterator[wire.DownloadChunk]:
    """The file's chunks from `offset` on. Raises OffsetError past its end, WireError UNKNOWN_RELEASE, StorageError."""
    handle, size = await off_loop(disk, _open, path)
    try:
        if offset > size:
            raise OffsetError(f"offset {offset} is past the end of the weights, which have {size} bytes", size)
        while offset < size:
            caller.call.check()
            data = await off_loop(disk, os.pread, handle, CHUNK_BYTES, offset)
            if not data:
                raise WireError("RELEASE_DAMAGED", "the owner's file of this release ends early", hint="tell the owner")
            yield wire.DownloadChunk(offset=offset, data=data)
            offset += len(data)
    finally:
        os.close(handle)


def _open(path: Path) -> tuple[int, int]:
    with storage_errors("read", path):
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return handle, os.fstat(handle).st_size
