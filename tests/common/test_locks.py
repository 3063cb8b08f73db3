"""One at a time, and whoever comes second is told who is first."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from pathlib import Path

import pytest

from common.errors import PortierError, StorageError
from common.locks import lock_held


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.locks.POLL_SECONDS", 0.0005)


def in_use(holder: str) -> PortierError:
    return PortierError(f"held by {holder}")


def test_a_lock_that_is_held_is_refused_by_the_name_of_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lock"
    first, second = (lock_held(path, in_use=in_use) for _ in range(2))
    with first, pytest.raises(PortierError, match=f"held by {os.getpid()}"), second:
        pass
    with lock_held(path, in_use=in_use):
        pass


def test_the_file_names_its_holder_alone_whatever_stood_in_it(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("123456789012345\n")
    with lock_held(tmp_path / "lock", in_use=in_use):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


def test_a_holder_that_has_not_yet_written_its_name_is_unknown(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as taken:
        fcntl.flock(taken, fcntl.LOCK_EX)
        with pytest.raises(PortierError, match="held by unknown"), lock_held(tmp_path / "lock", in_use=in_use):
            pass


def test_a_lock_is_free_again_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), lock_held(tmp_path / "lock", in_use=in_use):
        raise ZeroDivisionError
    with lock_held(tmp_path / "lock", in_use=in_use):
        pass


def test_a_lock_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with pytest.raises(StorageError, match="open the lock"), lock_held(tmp_path / "lock", in_use=in_use):
        pass


def test_a_lock_that_does_not_stay_leaves_no_file_and_is_one_lock_all_the_same(tmp_path: Path) -> None:
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(50):
            with lock_held(tmp_path / "lock", in_use=in_use, wait_seconds=60.0, stays=False):
                inside += 1
                most = max(most, inside)
                time.sleep(0.0002)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert list(tmp_path.iterdir()) == []
