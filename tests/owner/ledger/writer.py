"""Processes that write to a ledger, forked from one that has everything imported: `python -m tests.owner.ledger.writer`.

Reads one JSON object a line, {"children": [[task, path, ...], ...], "kill_after": seconds or null}: forks a child for each,
all at once, kills them that long after each has said that it is at work (or lets them end), and answers with a JSON list of
their exit statuses, negative for the signal that ended one.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path

from sqlalchemy import Engine, event

from common.errors import LedgerError, StorageError
from owner.ledger import GuardState, Store, SubmissionState
from tests.owner.ledger.world import Clock, World, key_of

KEYS = {"ada": 1000, "bob": 1001}


def arrive(path: str) -> World:
    owner, clock = key_of(1), Clock()
    keys = {name: key_of(seed) for name, seed in KEYS.items()}
    return World(Path(path), clock, Store.open(f"sqlite:///{path}", owner, clock=clock), owner, keys)


def work(world: World, name: str, number: int, tag: str = "") -> None:
    """Hands one submission in and decides on the one that is due; a third are accepted and become releases."""
    world.hand_in(name, f"{tag}{number}")
    world.store.record_refusal(name, "REPLAY", tag)
    claimed = world.store.claim()
    if claimed is None:
        return
    state = [SubmissionState.ACCEPTED, SubmissionState.REJECTED, SubmissionState.QUARANTINED][number % 3]
    while True:
        release = world.signed_release(note=claimed.id) if state is SubmissionState.ACCEPTED else None
        try:
            _, made, _ = world.store.decide(claimed.id, state, {"by": name}, release=release)
            break
        except LedgerError as error:
            # Somebody else published between our look and our decision: what a vetting owner meets too, and does again.
            if "is made from" not in str(error) and "has number" not in str(error):
                raise
    if made is not None:
        world.store.set_guard_state(made.id, GuardState.READY)


def write(at_work: int, path: str, name: str, count: int, tag: str) -> None:
    world = arrive(path)
    for number in range(count):
        work(world, name, number, tag)
        if number == 0:
            os.write(at_work, b".")


def found(_at_work: int, path: str) -> None:
    Store.open(f"sqlite:///{path}", key_of(1)).close()


def found_within(_at_work: int, path: str, bytes_: int) -> None:
    """On a system that refuses files over `bytes_`; what the ledger said of it is left next to it."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, bytes_))
    try:
        Store.open(f"sqlite:///{path}", key_of(1))
    except StorageError as error:
        Path(f"{path}.said").write_text(error.diagnostics())


def decide_until(_at_work: int, path: str, step: int, tag: str) -> None:
    """SIGKILLs itself before the `step`-th statement (COMMIT counts) of one decision that makes a release."""
    world = arrive(path)
    handed_in = world.hand_in("ada", tag)
    while (claimed := world.store.claim()) is not None and claimed.id != handed_in.id:
        pass
    release = world.signed_release(note=tag)
    left = step

    def count(*_: object) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(Engine, "before_cursor_execute", count)
    event.listen(Engine, "commit", count)
    world.store.decide(handed_in.id, SubmissionState.ACCEPTED, {"p_value": 0.5}, release=release)


TASKS = {"write": write, "found": found, "found-within": found_within, "decide-until": decide_until}


def run(children: list[list[object]], kill_after: float | None) -> list[int]:
    read, at_work = os.pipe()
    started = []
    for task, *arguments in children:
        child = os.fork()
        if child == 0:
            try:
                TASKS[str(task)](at_work, *arguments)  # type: ignore[arg-type]
            except BaseException:  # noqa: BLE001  the child must not return into the loop of its parent
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        started.append(child)
    if kill_after is not None:
        for _ in started:
            os.read(read, 1)
        time.sleep(kill_after)
        for child in started:
            os.kill(child, signal.SIGKILL)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in started]
    os.close(read)
    os.close(at_work)
    return statuses


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(run(**json.loads(line))), flush=True)
