"""How long a step takes in all, however often it is interrupted."""

from __future__ import annotations

import time
from contextlib import suppress

from common.errors import StorageError
from owner.reproduce.records import Work
from owner.reproduce.steps import Step


class Stopwatch:
    """Runs from its making, and goes on from what an earlier process kept of the same step.

    every: shortest time in seconds between two writings; so much at most is lost with a process that is killed.
    """

    def __init__(self, work: Work, step: Step, *, every: float) -> None:
        self._work, self._step, self._every = work, step, every
        self._before = work.spent(step)
        self._started = self._kept = time.perf_counter()

    @property
    def seconds(self) -> float:
        return self._before + time.perf_counter() - self._started

    def keep(self, *, at_once: bool = False) -> None:
        """Writes it down where that is due. A disk that is full stops the training's own files, not this one."""
        now = time.perf_counter()
        if at_once or now - self._kept >= self._every:
            with suppress(StorageError):
                self._work.keep_spent(self._step, self.seconds)
            self._kept = now
