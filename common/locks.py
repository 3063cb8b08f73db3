"""One process at a time: a lock that goes with the process that holds it, however that ends."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import PortierError
from common.files import ensure_directory, storage_errors
from common.platforms import fcntl

POLL_SECONDS = 0.05


@contextmanager
def lock_held(
    path: Path, *, in_use: Callable[[str], PortierError], wait_seconds: float = 0.0, stays: bool = True
) -> Iterator[None]:
    """Hold the lock that the file `path` stands for, which names the process that holds it.

    in_use: the error to raise where the lock is not free within `wait_seconds`, given that process's id ("unknown" where it has
        not yet written it).
    stays: keep the file afterwards; else it is removed, unless its holder is killed. All who use one lock say the same.
    Raises StorageError where the file cannot be opened.
    """
    ensure_directory(path.parent)
    deadline = time.monotonic() + wait_seconds
    while True:
        with storage_errors("open the lock", path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    holder = os.pread(descriptor, 64, 0).decode("ascii", "replace").strip() or "unknown"
                    raise in_use(holder) from None
                time.sleep(POLL_SECONDS)
                continue
            if not _stands_at(path, descriptor):
                continue  # its holder has removed it since it was opened
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            try:
                yield
            finally:
                if not stays:
                    path.unlink(missing_ok=True)
            return
        finally:
            os.close(descriptor)


def _stands_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
