"""Which step may begin, given what is done, what runs and what has failed."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

from common.errors import ModelError
from owner.reproduce.steps import Step


class Schedule:
    """Steps in their order, each once none of those it comes after is still to be done.

    steps: what is to be run; what a step needs and is not among them is there already.

    >>> genuine, honest = Step("cnn", 0, "genuine"), Step("cnn", 0, "honest")
    >>> schedule = Schedule([genuine, honest])
    >>> schedule.begin() == genuine, schedule.begin()
    (True, None)
    >>> schedule.end(genuine)
    >>> schedule.begin() == honest
    True
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        self._waiting = list(steps)
        self._running: set[Step] = set()
        self.failed: dict[Step, ModelError] = {}

    def __bool__(self) -> bool:
        """Whether anything is still to be done."""
        return bool(self._waiting or self._running)

    def begin(self) -> Step | None:
        """The first step that may begin, which now runs; None where there is none at the moment."""
        undone = self._running | set(self._waiting)
        for step in self._waiting:
            if undone.isdisjoint(step.sibling(name) for name in step.after):
                self._waiting.remove(step)
                self._running.add(step)
                return step
        return None

    def end(self, step: Step, error: ModelError | None = None) -> None:
        """It is done; or it failed, and with it all that needs it."""
        self._running.remove(step)
        if error is None:
            return
        self.failed[step] = error
        # In order: what needs a step stands behind it.
        for other in list(self._waiting):
            if any(other.sibling(name) in self.failed for name in other.needs):
                self._waiting.remove(other)
                self.failed[other] = error


def duration(steps: Sequence[Step], seconds: Callable[[Step], float], parallel: int) -> float:
    """Seconds until all are done, so many at a time.

    >>> steps = [Step("cnn", 0, name) for name in ("genuine", "honest", "flip", "pattern")]
    >>> duration(steps, lambda step: 10.0, 1), duration(steps, lambda step: 10.0, 2)
    (40.0, 30.0)
    """
    schedule, now = Schedule(steps), 0.0
    running: list[tuple[float, int, Step]] = []
    while schedule:
        while len(running) < parallel and (step := schedule.begin()) is not None:
            heapq.heappush(running, (now + seconds(step), steps.index(step), step))
        now, _, ended = heapq.heappop(running)
        schedule.end(ended)
    return now
