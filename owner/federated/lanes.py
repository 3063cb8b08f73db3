"""The processes of a grid. Each takes the cells of one data set, model and seed at a time, for what they share it does once."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

from common.errors import PortierError
from owner.federated.grids import Cell

Run = Callable[[Cell], dict[str, Any]]

_SHARE = 0.25
"""Of this machine's memory, for what all processes together keep for later cells: of a CNN, clients' answers are 300 MB a cell."""


def company(cell: Cell) -> tuple[object, ...]:
    """Cells of the same share most of the owner's work. The seed comes last."""
    c = cell.config
    return () if c is None else (c.setting, c.data, c.examples, c.test_examples, c.model, c.seed)


def memory_of(processes: int) -> float:
    """Megabytes that each of so many may keep."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 20)
    return _SHARE * machine / processes


class Queue:
    """Who does which cell: a process goes on with the company it is in, takes the next one of the first seed that is waiting when that is
    done, and when none is left of that seed helps with the last cells of its largest."""

    def __init__(self, todo: Iterable[Cell]) -> None:
        self._waiting: dict[tuple[object, ...], deque[Cell]] = {}
        for cell in todo:
            self._waiting.setdefault(company(cell), deque()).append(cell)
        self._taken: dict[int, tuple[object, ...]] = {}

    def next_of(self, process: int) -> Cell | None:
        """None where nothing is left."""
        mine = self._taken.get(process)
        if mine is not None and (left := self._waiting.get(mine)):
            return left.popleft()
        taken = set(self._taken.values())
        waiting = {key: left for key, left in self._waiting.items() if left}
        first = [key for key in waiting if key[-1:] == min(other[-1:] for other in waiting)]
        untouched = next((key for key in first if key not in taken), None)
        if untouched is not None:
            self._taken[process] = untouched
            return waiting[untouched].popleft()
        return max((waiting[key] for key in first), key=len).pop() if first else None


def run_in_processes(
    todo: Sequence[Cell],
    run: Run,
    parallel: int,
    late: Callable[[], bool],
    keep: Callable[[Cell, dict[str, Any]], None],
) -> None:
    """Raises PortierError where a process died."""
    queue = Queue(todo)
    # Spawned, for a fork of a process whose libraries hold threads may stand still. An executor each, so that a process can
    # be told what to go on with.
    context = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // parallel)
    given = threads, memory_of(parallel)
    pools = [
        ProcessPoolExecutor(1, mp_context=context, initializer=_begin, initargs=given)
        for _ in range(min(parallel, len(todo)))
    ]
    running: dict[Future[dict[str, Any]], tuple[int, Cell]] = {}

    def begin(process: int) -> None:
        if not late() and (cell := queue.next_of(process)) is not None:
            running[pools[process].submit(run, cell)] = process, cell

    try:
        for process in range(len(pools)):
            begin(process)
        while running:
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                process, cell = running.pop(done)
                keep(cell, done.result())
                begin(process)
    except BrokenProcessPool:
        raise PortierError(
            "a worker process died (killed for memory, perhaps)",
            hint="run again, with fewer in parallel: cells that are done are not done again",
        ) from None
    finally:
        for pool in pools:
            pool.shutdown(cancel_futures=True)


def _begin(threads: int, megabytes: float) -> None:
    from owner.federated.memory import remember  # noqa: PLC0415 - in the worker

    # Workers with all cores each would wait for each other.
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    remember(megabytes)
