"""Work in a process of its own that is killed (SIGKILL) at a chosen moment.

A moment is each time the process is about to touch the workspace on disk (open for writing, rename, link, remove, make or
remove a folder: Python's audit events) or the ledger (each statement that is no SELECT, before and after each commit).
Product code knows nothing of it.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any
from unittest import mock

from sqlalchemy import Engine, event

from owner.ledger.records import SubmissionState
from owner.operations import deciding
from owner.operations.founding import train_first
from owner.operations.opening import open_office
from owner.service.reconciliation import reconcile
from owner.vetting import VettingLoop
from tests.owner.people import InProcess

UNDECIDED = {SubmissionState.RECEIVED, SubmissionState.AWAITING_GUARD, SubmissionState.VETTING}
_CHANGES = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}


class Moments:
    """Counts moments from `arm` on, and kills the process at number `kill_at` (0: never)."""

    def __init__(self, root: Path, kill_at: int) -> None:
        self.seen = 0
        self._root = str(root)
        self._kill_at = kill_at
        self._lock = threading.Lock()

    def arm(self) -> None:
        sys.addaudithook(self._on_audit)
        event.listen(Engine, "before_cursor_execute", self._on_statement)
        event.listen(Engine, "commit", self._on_commit)

    def tick(self) -> None:
        with self._lock:
            self.seen += 1
            if self.seen == self._kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    def _on_audit(self, name: str, arguments: tuple[Any, ...]) -> None:
        writes = name == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or name in _CHANGES) and self._root in str(arguments[0]):
            self.tick()

    def _on_statement(self, *arguments: Any) -> None:
        if not str(arguments[2]).lstrip().upper().startswith("SELECT"):
            self.tick()

    def _on_commit(self, _connection: Any) -> None:
        self.tick()


def vet_all(root: Path) -> None:
    """What `serve` does, less the network: put right what was left, then vet until nothing is left to decide."""
    with open_office(root) as office:
        reconcile(office.workspace, office.store)

        async def main() -> None:
            stop = asyncio.Event()
            loop = VettingLoop(office.workspace, office.settings, office.store, worker=InProcess())  # type: ignore[arg-type]
            running = asyncio.create_task(loop.run(stop))
            async with asyncio.timeout(120):
                while any(one.state in UNDECIDED for one in office.store.submissions()) and not running.done():
                    await asyncio.sleep(0.02)
            stop.set()
            await running

        asyncio.run(main())


def promote_first(root: Path) -> None:
    with open_office(root) as office, mock.patch.object(deciding, "VettingWorker", return_value=_Closing()):
        (waiting,) = office.store.submissions(state=SubmissionState.QUARANTINED)
        deciding.promote(office, waiting.id, reason="a person looked", force=True)


def roll_back(root: Path) -> None:
    with open_office(root) as office:
        if office.store.current().id != office.store.root().id:
            deciding.rollback(office, office.store.root().id, "it misbehaved")


def train_root(root: Path) -> None:
    with open_office(root) as office:
        train_first(office, progress=False)


class _Closing(InProcess):
    def __enter__(self) -> _Closing:
        return self

    def __exit__(self, *_: object) -> None:
        pass


WORK = {"vet": vet_all, "promote": promote_first, "roll back": roll_back, "train": train_root}
_server = multiprocessing.get_context("forkserver")
# Imported once, in the server that forks the processes to be killed; importing torch takes seconds.
_server.set_forkserver_preload(["tests.end_to_end.dying"])


def kill(work: str, root: Path, moment: int) -> int:
    """Do `work` on the workspace at `root` in a process that is killed at `moment`. Returns its exit code (-9: killed)."""
    process = _server.Process(target=_child, args=(work, root, moment, None))
    process.start()
    process.join(150)
    assert process.exitcode is not None, "the process neither ended nor died"
    return process.exitcode


def count_moments(work: str, root: Path) -> int:
    """Do `work` undisturbed, in a process of its own; returns how many moments it had."""
    receiver, sender = _server.Pipe(duplex=False)
    process = _server.Process(target=_child, args=(work, root, 0, sender))
    process.start()
    sender.close()
    seen: int = receiver.recv()
    process.join(150)
    assert process.exitcode == 0
    return seen


def _child(work: str, root: Path, moment: int, sender: Any) -> None:
    moments = Moments(root, moment)
    moments.arm()
    WORK[work](root)
    if sender is not None:
        sender.send(moments.seen)
