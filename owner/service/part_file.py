"""One upload on disk: `weights.part`, appended to and hashed chunk by chunk, renamed once it is whole and its digest right.

Blocking; runs in an executor. What is on disk is all the state there is: after a kill, the next attempt hashes the file
anew and goes on from its end.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from typing import Final

from common.errors import WeightsError
from common.files import ensure_directory, storage_errors, sync_directory, write_atomically
from common.weights import LIMITS, Limits, read_header
from owner.ledger.records import Submission
from owner.service.limits import MIB
from owner.service.statuses import OffsetError
from owner.workspace import SubmissionFiles

_LENGTH_BYTES: Final = 8


class PartFile:
    """files: where it lies. submission: what was announced. Opened at once; `close` it.

    Raises StorageError; WeightsError FILE_TOO_LONG where the file holds more than was announced.
    """

    def __init__(self, files: SubmissionFiles, submission: Submission, *, limits: Limits = LIMITS) -> None:
        self._files = files
        self._submission = submission
        self._limits = limits
        # `close` may come while a cancelled call's last `append` still runs.
        self._lock = threading.Lock()
        self._hash = hashlib.sha256()
        self._header_bytes: int | None = None
        self.header_checked = False
        self.offset = 0
        ensure_directory(files.directory)
        if not files.signature.is_file():
            write_atomically(files.manifest, submission.manifest)
            write_atomically(files.signature, submission.signature)
        with storage_errors("write", files.part):
            self._handle = os.open(files.part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                self._resume()
            except BaseException:
                os.close(self._handle)
                raise

    @property
    def complete(self) -> bool:
        return self.offset == self._submission.weights_bytes

    def append(self, offset: int, data: bytes) -> None:
        """Write and hash `data`, which must begin at `offset`, the end of what is there.

        Raises OffsetError; WeightsError FILE_TOO_LONG, and as `read_header` as soon as the header is there; StorageError.
        """
        with self._lock:
            if offset != self.offset:
                raise OffsetError(
                    f"chunk offset {offset} is wrong: {self.offset} bytes are on the owner's disk", self.offset
                )
            total = self._submission.weights_bytes
            if offset + len(data) > total:
                raise WeightsError(
                    "FILE_TOO_LONG",
                    f"the upload goes on to byte {offset + len(data)}, but weights_bytes declares {total}",
                )
            with storage_errors("write", self._files.part):
                _write_all(self._handle, data, offset)
            self._hash.update(data)
            self.offset += len(data)
            self._check_header()

    def finish(self) -> None:
        """Make the complete file durable under its final name.

        Raises WeightsError DIGEST_MISMATCH, or as `read_header` where the file ends before its header; StorageError.
        """
        with self._lock:
            self._check_header()
            found, declared = self._hash.hexdigest(), self._submission.weights_sha256
            if found != declared:
                raise WeightsError(
                    "DIGEST_MISMATCH", f"the weights have SHA-256 {found}, but weights_sha256 declares {declared}"
                )
            with storage_errors("write", self._files.weights):
                os.fsync(self._handle)
                self._files.part.replace(self._files.weights)
                sync_directory(self._files.directory)

    def close(self) -> None:
        """Whatever offset is told to the contributor from now on survives a power cut. Raises StorageError."""
        with self._lock, storage_errors("write", self._files.part):
            handle, self._handle = self._handle, -1
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def _resume(self) -> None:
        size = os.fstat(self._handle).st_size
        if size > self._submission.weights_bytes:
            raise WeightsError("FILE_TOO_LONG", f"{size} bytes are on disk, {self._submission.weights_bytes} declared")
        buffer = memoryview(bytearray(MIB))
        while self.offset < size:
            count = os.preadv(self._handle, [buffer], self.offset)
            if not count:
                break
            self._hash.update(buffer[:count])
            self.offset += count
        self._check_header()

    def _check_header(self) -> None:
        """The header's bounds, before the rest of a file is taken that nobody could read."""
        if self.header_checked:
            return
        total = self._submission.weights_bytes
        if self._header_bytes is None and self.offset >= _LENGTH_BYTES:
            length = int.from_bytes(os.pread(self._handle, _LENGTH_BYTES, 0), "little")
            # An impossible length is refused below, from the eight bytes that state it.
            self._header_bytes = length if length <= min(self._limits.header_bytes, total - _LENGTH_BYTES) else 0
        if self._header_bytes is None or self.offset < _LENGTH_BYTES + self._header_bytes:
            if not self.complete:
                return
            raise WeightsError("FILE_TOO_SHORT", f"the file ends at byte {self.offset}, before its header does")
        read_header(os.pread(self._handle, _LENGTH_BYTES + self._header_bytes, 0), self._limits, file_bytes=total)
        self.header_checked = True


def committed_bytes(files: SubmissionFiles) -> int:
    """How much of an upload is on disk, made durable before anybody is told. Raises StorageError."""
    with storage_errors("read", files.part):
        try:
            handle = os.open(files.part, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            # Whole, where only its commit failed.
            return files.weights.stat().st_size if files.weights.exists() else 0
        try:
            os.fsync(handle)
            return os.fstat(handle).st_size
        finally:
            os.close(handle)


def discard(files: SubmissionFiles) -> None:
    """Remove all files of a submission whose upload will not go on. Raises StorageError."""
    with storage_errors("remove", files.directory):
        try:
            shutil.rmtree(files.directory)
        except FileNotFoundError:
            return


def _write_all(handle: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(handle, view, offset)
        view, offset = view[count:], offset + count
