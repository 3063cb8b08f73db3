"""Processes that make a guard's fine-tunes beside the one that fits it.

Models that one core can train gain little from a second thread and nearly twice from a second process: each process makes
every n-th fine-tune on one thread, into the folder that finished ones are kept in anyway.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from common.errors import ConfigurationError
from owner.gatekeeper.own_processes import command, environment

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Share:
    """Every `of`-th fine-tune from `index` on.

    >>> [position for position in range(7) if Share.parse("1/3").holds(position)]
    [1, 4]
    """

    index: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ConfigurationError for anything but `INDEX/OF`, 0 <= INDEX < OF."""
        index, _, of = text.partition("/")
        if not (index.isdecimal() and of.isdecimal() and int(index) < int(of)):
            raise ConfigurationError(f"a share is written INDEX/OF, the index below the number of shares, not {text!r}")
        return cls(int(index), int(of))

    def holds(self, position: int) -> bool:
        return position % self.of == self.index


class Assistants:
    """`count` processes that make all shares of the fitting job in `job_file` but the first. They end with this one, and when
    the context is left; one that ends before its share is done leaves the rest to whoever asks `make`.
    """

    def __init__(self, job_file: Path, count: int) -> None:
        self._job_file, self._count = job_file, count
        self._processes: dict[Share, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        for index in range(1, self._count + 1):
            share = Share(index, self._count + 1)
            # What goes wrong there goes wrong here again, and is told here.
            self._processes[share] = subprocess.Popen(  # noqa: S603 - our own interpreter and module, no shell
                command("owner.gatekeeper.fitting", str(self._job_file), f"{share.index}/{share.of}"),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment(**dict.fromkeys(_THREADS, "1")),
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()

    def make(self, position: int) -> bool:
        """Whether one of them is at work on the share of this fine-tune."""
        return any(share.holds(position) and process.poll() is None for share, process in self._processes.items())
