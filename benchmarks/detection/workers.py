"""Many models over few processes: one thread each, which is the fastest way to train small models on a CPU."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import torch

from benchmarks.detection.config import Config
from benchmarks.detection.plans import Plan
from benchmarks.detection.zoo import Zoo

Result = TypeVar("Result")
Task = Callable[[Zoo, Plan], Result]

_zoo: Zoo | None = None


def over(
    task: Task[Result], models: Sequence[Plan], config: Config, root: Path, *, workers: int
) -> Iterator[tuple[Plan, Result]]:
    """(plan, task(zoo, plan)) of each model as it is done. A worker keeps its zoo, and what the task keeps with it.

    task: a function of a module, which a worker imports by name. An exception of one task is raised here; what others
    wrote by then is kept.
    """
    os.environ["OMP_NUM_THREADS"] = "1"  # read when a worker loads torch
    context = get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(config, root, os.getpid()))
    try:
        futures = {pool.submit(_run, task, plan): plan for plan in models}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _start(config: Config, root: Path, parent: int) -> None:
    global _zoo  # noqa: PLW0603 - what a worker process holds
    torch.set_num_threads(1)
    _zoo = Zoo(config, root)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """A run that was killed must not go on unseen beside the next one."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _run(task: Task[Result], plan: Plan) -> Result:
    if _zoo is None:
        raise RuntimeError("the worker was not started by `over`")
    return task(_zoo, plan)
