"""At most N processes of one machine at a time: a counting semaphore over locked files.

The kernel drops a lock with the process that held it, so a killed holder frees its slot; that is why these are files
and not a semaphore in shared memory. All processes must name the same folder and the same N, on a local file system.

    slots = TrainingSlots.parse("/tmp/portier-slots:2")
    with slots.hold():
        train(...)
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from common.errors import ConfigurationError, StorageError
from common.platforms import fcntl

POLL_SECONDS = 0.1


@dataclass(frozen=True)
class TrainingSlots:
    """`count` slots, the files slot-0 ... slot-<count-1> below `directory`."""

    directory: Path
    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ConfigurationError(f"training slots must be at least 1, not {self.count}")

    @classmethod
    def parse(cls, text: str) -> TrainingSlots:
        """From `DIR:N`.

        >>> TrainingSlots.parse("/tmp/slots:2").count
        2

        Raises ConfigurationError where it is not a folder, a colon and a number of at least 1.
        """
        directory, colon, count = text.rpartition(":")
        if not colon or not directory or not count.isdecimal():
            raise ConfigurationError(f"training slots are written DIR:N, like /tmp/slots:2, not {text!r}")
        return cls(Path(directory), int(count))

    def __str__(self) -> str:
        return f"{self.directory}:{self.count}"

    @contextmanager
    def hold(self, *, on_wait: Callable[[], None] | None = None) -> Iterator[int]:
        """Wait for a free slot and hold it; yields its number. `on_wait` is called once where none was free.

        Raises StorageError where the folder cannot be made or written.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"the slots' folder {self.directory} cannot be made: {error.strerror}") from None
        waited = False
        while True:
            for number in range(self.count):
                descriptor = self._try(number)
                if descriptor is None:
                    continue
                try:
                    yield number
                finally:
                    os.close(descriptor)
                return
            if not waited and on_wait is not None:
                on_wait()
            waited = True
            time.sleep(POLL_SECONDS)

    def _try(self, number: int) -> int | None:
        path = self.directory / f"slot-{number}"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageError(f"the slot {path} cannot be opened: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor
