"""One at a time, and whoever comes second is told who is first."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from common.errors import PortierError, StorageError
from common.locks import lock_held


def in_use(holder: str) -> PortierError:
    return PortierError(f"held by {holder}")


def test_a_lock_that_is_held_is_refused_by_the_name_of_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lock"
    first, second = (lock_held(path, in_use=in_use) for _ in range(2))
    with first, pytest.raises(PortierError, match=f"held by {os.getpid()}"), second:
        pass
    with lock_held(path, in_use=in_use):
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
