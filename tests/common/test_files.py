"""Files that are whole or not there."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from common import files
from common.errors import StorageError
from tests.disk import asked_of_the_disk


@pytest.fixture(autouse=True)
def _ordinary_umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_written_file_has_its_content_and_mode_and_no_neighbour(tmp_path: Path) -> None:
    files.write_atomically(tmp_path / "a", b"content")
    assert (tmp_path / "a").read_bytes() == b"content"
    assert mode(tmp_path / "a") == 0o644
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_a_failed_write_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    files.write_atomically(tmp_path / "a", b"old")

    def give_up() -> None:
        with files.atomic_writer(tmp_path / "a") as file:
            file.write(b"new")
            raise RuntimeError("the writer gave up")

    with pytest.raises(RuntimeError, match="gave up"):
        give_up()
    assert (tmp_path / "a").read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize(("number", "hint"), [(errno.ENOSPC, "disk is full"), (errno.EDQUOT, "quota"), (errno.EIO, "")])
def test_a_full_disk_is_named_and_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, hint: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    path = tmp_path / "a"
    files.write_atomically(path, b"old")
    monkeypatch.setattr(*((os, "fsync") if call == "fsync" else (Path, "replace")), fail)
    with pytest.raises(StorageError) as caught:
        files.write_atomically(path, b"new")
    assert str(path) in caught.value.message
    assert os.strerror(number) in caught.value.message
    assert hint in caught.value.hint
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("replace", [True, False])
def test_the_content_is_on_disk_before_the_name_and_the_name_before_the_write_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replace: bool
) -> None:
    asked = asked_of_the_disk(monkeypatch)
    files.write_atomically(tmp_path / "a", b"content", replace=replace)
    assert asked == [len(b"content"), "named", "folder"]


@pytest.mark.parametrize(("number", "borne"), [(errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False)])
def test_a_folder_that_cannot_be_synced_is_borne_where_no_folder_there_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, borne: bool
) -> None:
    fsync = os.fsync

    def files_only(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", files_only)
    with nullcontext() if borne else pytest.raises(StorageError, match=os.strerror(number)):
        files.write_atomically(tmp_path / "a", b"content")


def test_a_disk_that_is_really_full_is_named() -> None:
    with pytest.raises(StorageError) as caught, files.storage_errors("write", Path("/dev/full")):
        Path("/dev/full").write_bytes(b"x")
    assert "disk is full" in caught.value.hint


def test_a_secret_is_private_from_its_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.umask(0)
    modes = []
    genuine = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (modes.append(os.fstat(handle).st_mode), genuine(handle)))
    files.write_secret(tmp_path / "key", b"secret")
    assert stat.S_IMODE(modes[0]) == 0o600
    assert mode(tmp_path / "key") == 0o600


def test_a_secret_is_never_overwritten_by_accident(tmp_path: Path) -> None:
    files.write_secret(tmp_path / "key", b"first")
    with pytest.raises(StorageError) as caught:
        files.write_secret(tmp_path / "key", b"second")
    assert "move the existing file away" in caught.value.hint
    assert (tmp_path / "key").read_bytes() == b"first"
    files.write_secret(tmp_path / "key", b"third", replace=True)
    assert (tmp_path / "key").read_bytes() == b"third"
    assert list(tmp_path.iterdir()) == [tmp_path / "key"]


def test_of_many_writers_of_one_new_secret_one_wins(tmp_path: Path) -> None:
    won = []

    def write(i: int) -> None:
        try:
            files.write_secret(tmp_path / "key", b"%d" % i)
            won.append(i)
        except StorageError:
            pass

    threads = [threading.Thread(target=write, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert (tmp_path / "key").read_bytes() == b"%d" % won[0]


def test_a_new_secret_is_exclusive_without_hard_links_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    files.write_secret(tmp_path / "key", b"first")
    with pytest.raises(StorageError):
        files.write_secret(tmp_path / "key", b"second")
    assert (tmp_path / "key").read_bytes() == b"first"
    assert mode(tmp_path / "key") == 0o600
    assert list(tmp_path.iterdir()) == [tmp_path / "key"]


@pytest.mark.parametrize("links", [True, False])
def test_a_disk_that_fails_as_a_new_secret_gets_its_name_leaves_nothing_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def failing(number: int) -> Callable[..., None]:
        def fail(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        return fail

    monkeypatch.setattr(os, "link", failing(errno.EIO if links else errno.EPERM))
    if not links:
        monkeypatch.setattr(Path, "replace", failing(errno.EIO))
    with pytest.raises(StorageError, match=os.strerror(errno.EIO)):
        files.write_secret(tmp_path / "key", b"secret")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_somebody_put_where_a_secret_is_to_grow_is_not_written_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its permissions would be theirs, and they might have it open."""
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "guessed")
    planted = tmp_path / ".guessed.portier-unfinished"
    planted.touch(0o666)
    with pytest.raises(StorageError):
        files.write_secret(tmp_path / "key", b"secret")
    assert planted.read_bytes() == b""
    assert not (tmp_path / "key").exists()


def test_writing_does_not_follow_a_link_to_somewhere_else(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"untouched")
    (tmp_path / "a").symlink_to(tmp_path / "elsewhere")
    files.write_atomically(tmp_path / "a", b"content")
    assert (tmp_path / "elsewhere").read_bytes() == b"untouched"
    assert not (tmp_path / "a").is_symlink()


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("missing/a", "does not exist"),
        ("file/a", "is a file, not a folder"),
        ("folder", "names a folder"),
        ("x" * 300, "shorter path"),
    ],
)
def test_an_impossible_path_is_named_with_a_way_out(tmp_path: Path, path: str, hint: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError) as caught:
        files.write_atomically(tmp_path / path, b"")
    assert path in caught.value.message
    assert hint in caught.value.hint
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_reading_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert files.read_bounded(tmp_path / "a", 5) == b"12345"
    with pytest.raises(StorageError, match="longer than 4 bytes"):
        files.read_bounded(tmp_path / "a", 4)
    with pytest.raises(StorageError) as caught:
        files.read_bounded(tmp_path / "b", 5)
    assert "does not exist" in caught.value.hint


def test_a_folder_is_made_with_its_parents_in_the_mode_asked_for(tmp_path: Path) -> None:
    made = files.ensure_directory(tmp_path / "a" / "b", mode=0o700)
    assert made == tmp_path / "a" / "b"
    assert mode(tmp_path / "a") == mode(made) == 0o700
    assert files.ensure_directory(made) == made


def test_each_new_folder_is_on_disk_in_the_one_above_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(files, "sync_directory", synced.append)
    files.ensure_directory(tmp_path / "a" / "b")
    assert synced == [tmp_path, tmp_path / "a"]


def test_a_file_in_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    for path in (tmp_path / "a", tmp_path / "a" / "b"):
        with pytest.raises(StorageError) as caught:
            files.ensure_directory(path)
        assert "is a file, not a folder" in caught.value.hint


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # the tests may run as root, whom no mode stops
    with pytest.raises(StorageError, match="not writable") as caught:
        files.ensure_directory(tmp_path)
    assert "permissions" in caught.value.hint


def test_what_a_killed_writer_left_behind_is_tidied_up_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "keep").touch()
    writer = files.atomic_writer(tmp_path / "a")
    writer.__enter__()
    assert len(list(tmp_path.iterdir())) == 2
    assert files.remove_unfinished(tmp_path) == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "keep"]
    with pytest.raises(StorageError):
        writer.__exit__(None, None, None)
