"""Weights over the wire, in 1 MiB chunks, from wherever the last attempt stopped."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from common.errors import PortierError, ProtocolError, StorageError, WeightsError
from common.files import ensure_directory, storage_errors, sync_directory
from common.weights import check_digest
from protos import collaboration_pb2 as wire

CHUNK_BYTES: Final = 1 << 20
Progress = Callable[[int, int], None]
"""Called with the bytes done and all there are."""


def part_of(path: Path) -> Path:
    """Where a download of `path` grows: `weights.safetensors` -> `weights.part`."""
    return path.with_suffix(".part")


class Download:
    """A file that grows up to `size` bytes beside `path` and takes its name once its SHA-256 is `digest`."""

    def __init__(self, path: Path, *, size: int, digest: str, progress: Progress | None = None) -> None:
        self._path = path
        self._part = part_of(path)
        self._size = size
        self._digest = digest
        self._progress = progress

    @property
    def present(self) -> bool:
        """Whether `path` is there already, with the right digest; a wrong one is removed. Raises StorageError."""
        if not self._path.exists():
            return False
        try:
            check_digest(self._path, self._digest)
        except WeightsError:
            with storage_errors("remove", self._path):
                self._path.unlink()
            return False
        return True

    @property
    def offset(self) -> int:
        """Bytes there so far."""
        ensure_directory(self._path.parent)
        try:
            return self._part.stat().st_size
        except FileNotFoundError:
            return 0

    def take(self, chunks: Iterable[wire.DownloadChunk]) -> None:
        """Append chunks as they come. Raises ProtocolError for one that does not fit, StorageError, also before the first one where
        the disk has no room for all of them."""
        self._check_room()
        with storage_errors("write", self._part), self._part.open("ab", buffering=0) as file:
            offset = file.tell()
            for chunk in chunks:
                if chunk.offset != offset or offset + len(chunk.data) > self._size:
                    raise ProtocolError(
                        f"the owner sent bytes {chunk.offset} to {chunk.offset + len(chunk.data)} of weights that have "
                        f"{self._size} bytes, at offset {offset}"
                    )
                _write_all(file.fileno(), chunk.data)
                offset += len(chunk.data)
                if self._progress is not None:
                    self._progress(offset, self._size)
            os.fsync(file.fileno())

    def _check_room(self) -> None:
        with storage_errors("look at the disk of", self._part):
            free = shutil.disk_usage(self._part.parent).free
        missing = self._size - self.offset
        if missing > free:
            raise StorageError(
                f"the disk of {self._part} has {free} bytes free, and {missing} bytes of weights are to come",
                hint="free some space, or choose another folder with --home; what has come so far is kept",
            )

    def finish(self) -> None:
        """Give the file its name. Raises WeightsError DIGEST_MISMATCH, after removing what came; StorageError."""
        try:
            check_digest(self._part, self._digest)
        except WeightsError:
            self.discard()
            raise
        with storage_errors("write", self._path):
            self._part.replace(self._path)
            sync_directory(self._path.parent)

    def discard(self) -> None:
        with storage_errors("remove", self._part):
            self._part.unlink(missing_ok=True)


class Upload:
    """The chunks of a file from `offset` on. An error in reading is kept in `error`: gRPC would only say that iterating failed."""

    def __init__(
        self, path: Path, *, submission: str, offset: int, size: int, progress: Progress | None = None
    ) -> None:
        self._path = path
        self._submission = submission
        self._offset = offset
        self._size = size
        self._progress = progress
        self.error: PortierError | None = None

    def chunks(self) -> Iterator[wire.UploadChunk]:
        """At least one, as the first names the submission."""
        try:
            with storage_errors("read", self._path), self._path.open("rb", buffering=0) as file:
                yield from self._read(file.fileno())
        except PortierError as error:
            self.error = error
            raise

    def _read(self, handle: int) -> Iterator[wire.UploadChunk]:
        offset, name = self._offset, self._submission
        while name or offset < self._size:
            data = os.pread(handle, min(CHUNK_BYTES, self._size - offset), offset)
            if not data and offset < self._size:
                raise StorageError(f"{self._path} became shorter while it was sent", hint="make the submission anew")
            yield wire.UploadChunk(submission_id=name, offset=offset, data=data)
            offset, name = offset + len(data), ""
            if self._progress is not None:
                self._progress(offset, self._size)


def _write_all(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]
