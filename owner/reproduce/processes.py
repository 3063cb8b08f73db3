"""Several steps at a time, each in a process of its own: what `--parallel` does on a CPU.

The parent alone decides what runs, so that each step has one writer; a process whose parent is gone ends too.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from common.devices import Compute
from common.errors import ModelError, PortierError
from owner.reproduce.engine import Compile, StoppedError
from owner.reproduce.images import Images
from owner.reproduce.records import Work
from owner.reproduce.schedule import Schedule
from owner.reproduce.settings import Settings
from owner.reproduce.steps import Step

STOPPED = "stopped"
_GRACE_SECONDS = 10.0
_TERMINATED = 128 + signal.SIGTERM

Failure = tuple[type[PortierError], str, str]
"""Class, message and hint of an error, which cross a process border where the error itself might not."""


@dataclass(frozen=True)
class Job:
    """What a process needs to run any step. threads: of torch in it. processes: how many there are at a time.
    ends_at: seconds since the epoch, after which no epoch of training begins."""

    settings: Settings
    data_dir: Path | None
    download: bool
    work: Work
    compute: Compute
    compile: Compile
    checkpoint_seconds: float
    ends_at: float | None
    threads: int
    processes: int


def run_in_processes(
    schedule: Schedule, job: Job, *, begun: Callable[[Step], None], ended: Callable[[Step, ModelError | None], None]
) -> bool:
    """Whether all was done that could be; not so where the time was over first. Called after each step: `ended`.

    Raises the first error that is no ModelError, a process's end without a word as PortierError; the other processes are
    ended before, and what they did is kept up to their last checkpoint.
    """
    context = multiprocessing.get_context("spawn")
    running: dict[Connection, tuple[Step, BaseProcess]] = {}
    stopped = False
    try:
        while True:
            while not stopped and len(running) < job.processes and (step := schedule.begin()) is not None:
                ours, theirs = context.Pipe(duplex=False)
                process: BaseProcess = context.Process(
                    target=_work, args=(job, step, theirs), name=str(step), daemon=True
                )
                process.start()
                theirs.close()
                running[ours] = (step, process)
                begun(step)
            if not running:
                return not stopped
            for connection in wait(list(running)):
                assert isinstance(connection, Connection)  # noqa: S101 - what was put in
                step, process = running.pop(connection)
                try:
                    failure = _outcome(connection, process, step)
                except StoppedError:
                    stopped = True
                    continue
                schedule.end(step, failure)
                ended(step, failure)
    finally:
        _end(list(running.values()))


def _outcome(connection: Connection, process: BaseProcess, step: Step) -> ModelError | None:
    """None of a step that is done, else what kept it from that. Raises StoppedError, and every error that is no ModelError."""
    with connection:
        try:
            answer: Failure | str | None = connection.recv()
        except EOFError:
            process.join()
            raise PortierError(
                f"the process of {step} ended without a word, with code {process.exitcode}",
                hint="its error, if it had one, stands above; -9 is often too little memory: try a smaller --parallel",
            ) from None
    process.join()
    if answer is None:
        return None
    if isinstance(answer, str):
        raise StoppedError
    kind, message, hint = answer
    error = kind.__new__(kind)
    PortierError.__init__(error, message, hint=hint)
    if isinstance(error, ModelError):
        return error
    raise error


def _end(running: list[tuple[Step, BaseProcess]]) -> None:
    for _, process in running:
        process.terminate()
    for _, process in running:
        process.join(_GRACE_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()


def _work(job: Job, step: Step, answers: Connection) -> None:
    """The process of one step."""
    from owner.reproduce.runner import Runner  # noqa: PLC0415 - which imports this module

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process itself
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(_TERMINATED))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(job.threads)
    runner = Runner(
        job.settings,
        Images(job.settings, job.data_dir, download=job.download),
        job.work,
        job.compute,
        compile=job.compile,
        deadline=None if job.ends_at is None else time.monotonic() + job.ends_at - time.time(),
        checkpoint_seconds=job.checkpoint_seconds,
        progress=False,
        parallel=job.processes,
    )
    try:
        runner.run_step(step)
    except StoppedError:
        answers.send(STOPPED)
    except PortierError as error:
        answers.send((type(error), error.message, error.hint))
    else:
        answers.send(None)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
