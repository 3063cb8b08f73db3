"""Training slots: never more holders than slots, a killed holder frees its slot."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from common.errors import ConfigurationError, StorageError
from common.slots import TrainingSlots
from tests.waiting import until


def test_no_more_hold_a_slot_than_there_are_slots(tmp_path: Path) -> None:
    slots = TrainingSlots(tmp_path / "slots", 2)
    held, most, lock, pair = 0, 0, threading.Lock(), threading.Barrier(2)

    def work() -> None:
        nonlocal held, most
        with slots.hold():
            with lock:
                held += 1
                most = max(most, held)
            pair.wait(60)  # two at a time, even where they begin late
            time.sleep(0.02)
            with lock:
                held -= 1

    workers = [threading.Thread(target=work) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert most == 2


def test_who_waits_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slots = TrainingSlots(tmp_path, 1)
    told: list[str] = []
    tried: list[int] = []
    try_ = TrainingSlots._try

    def counted(self: TrainingSlots, number: int) -> int | None:
        tried.append(number)
        return try_(self, number)

    monkeypatch.setattr(TrainingSlots, "_try", counted)
    monkeypatch.setattr("common.slots.POLL_SECONDS", 0.01)
    with slots.hold():
        waiter = threading.Thread(target=lambda: _hold(slots, told))
        waiter.start()
        until(lambda: len(tried) > 4)  # the one that got it, and several of who waits
    waiter.join()
    assert told == ["waiting", "held"]


def test_a_killed_holder_frees_its_slot(tmp_path: Path) -> None:
    code = (
        "import sys, time; from common.slots import TrainingSlots\n"
        "with TrainingSlots.parse(sys.argv[1]).hold():\n    print('held', flush=True); time.sleep(60)"
    )
    slots = TrainingSlots(tmp_path, 1)
    with subprocess.Popen([sys.executable, "-c", code, str(slots)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        os.kill(holder.pid, signal.SIGKILL)
        with slots.hold() as number:
            assert number == 0


def test_an_error_inside_frees_the_slot(tmp_path: Path) -> None:
    slots = TrainingSlots(tmp_path, 1)
    with pytest.raises(RuntimeError, match="inside"), slots.hold():
        raise RuntimeError("inside")
    with slots.hold() as number:
        assert number == 0


@pytest.mark.parametrize("text", ["", "2", "folder", "folder:", ":2", "folder:two", "folder:0", "folder:-1"])
def test_what_is_not_a_folder_and_a_count_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="slots"):
        TrainingSlots.parse(text)


def test_a_folder_name_may_hold_a_colon() -> None:
    assert TrainingSlots.parse("/a:b/c:3") == TrainingSlots(Path("/a:b/c"), 3)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"), TrainingSlots(tmp_path / "file" / "slots", 1).hold():
        pass


def _hold(slots: TrainingSlots, told: list[str]) -> None:
    with slots.hold(on_wait=lambda: told.append("waiting")):
        told.append("held")
