"""Files that are whole or not there: atomic writes, secrets private from their first byte, errors with a way out."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from common.errors import StorageError

_UNFINISHED = ".portier-unfinished"
_HINTS = {
    errno.ENOSPC: "the disk is full: free some space and run the command again; nothing was replaced",
    errno.EDQUOT: "the disk quota is used up: free some space and run the command again; nothing was replaced",
    errno.EFBIG: "the file would be larger than the file system or the process limit (ulimit -f) allows",
    errno.EACCES: "check owner and permissions of the file and of its folder (ls -ld)",
    errno.EPERM: "check owner and permissions of the file and of its folder (ls -ld)",
    errno.EROFS: "the file system is mounted read-only: choose another folder",
    errno.ENOENT: "check the path: the file or its folder does not exist",
    errno.ENOTDIR: "check the path: something on it is a file, not a folder",
    errno.EISDIR: "the path names a folder, not a file",
    errno.EEXIST: "move the existing file away first",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.EMFILE: "too many open files: raise the limit (ulimit -n)",
}
_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOBUFS})


@contextmanager
def storage_errors(doing: str, path: Path) -> Iterator[None]:
    """Turns an OSError inside the block into a StorageError "cannot {doing} {path}: reason", with a way out as hint."""
    try:
        yield
    except OSError as error:
        hint = _HINTS.get(error.errno or 0, "")
        raise StorageError(f"cannot {doing} {path}: {error.strerror or error}", hint=hint) from error


def is_shortage(error: BaseException) -> bool:
    """Whether this machine was short of something, so that the error says nothing about the file it names.

    >>> error = StorageError("cannot read guard.json")
    >>> error.__cause__ = OSError(errno.EMFILE, "Too many open files")
    >>> is_shortage(error), is_shortage(StorageError("cannot read guard.json"))
    (True, False)
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _SHORTAGES:
            return True
        cause = cause.__cause__
    return False


@contextmanager
def atomic_writer(path: Path, mode: int = 0o644, *, replace: bool = True) -> Iterator[BinaryIO]:
    """A file object whose content becomes `path` when the block ends, on disk for good; where the block raises, `path`
    stays as it was and nothing is left behind.

    mode: permissions of the new file, from its creation on (the umask still applies).
    replace: False refuses an existing `path`, without a moment in which two writers both win.
    Raises StorageError.
    """
    path = Path(path)
    temporary = path.parent / f".{secrets.token_hex(8)}{_UNFINISHED}"
    with storage_errors("write", path):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        file = os.fdopen(os.open(temporary, flags, mode), "wb")
    try:
        with storage_errors("write", path), file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with storage_errors("write", path):
            if replace:
                temporary.replace(path)
            else:
                _link(temporary, path)
            sync_directory(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes, mode: int = 0o644, *, replace: bool = True) -> None:
    """Makes `data` the content of `path`, or leaves `path` as it was. See `atomic_writer`. Raises StorageError."""
    with atomic_writer(path, mode, replace=replace) as file:
        file.write(data)


def write_secret(path: Path, data: bytes, *, replace: bool = False) -> None:
    """Writes a private key or token, readable by its owner alone from the first byte.

    An existing file is refused unless `replace` is set: a lost key cannot be made again. Raises StorageError.
    """
    write_atomically(path, data, 0o600, replace=replace)


def read_bounded(path: Path, limit: int) -> bytes:
    """The whole file, of at most `limit` bytes. Raises StorageError where it is longer or cannot be read."""
    with storage_errors("read", path), Path(path).open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise StorageError(f"cannot read {path}: it is longer than {limit} bytes")
    return data


def ensure_directory(path: Path, mode: int = 0o755) -> Path:
    """`path` as a writable folder, made with its parents where missing (`mode` for new ones). Raises StorageError."""
    with storage_errors("make the folder", path):
        missing = []
        place = Path(path)
        while not place.exists() and place != place.parent:
            missing.append(place)
            place = place.parent
        for place in reversed(missing):
            with suppress(FileExistsError):
                place.mkdir(mode)
            sync_directory(place.parent)
        if not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "the folder is not writable")
    return Path(path)


def sync_directory(path: Path) -> None:
    """Makes renames and new names in a folder survive a power cut. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems cannot sync a folder and say so with EINVAL; there is nothing better to do on them.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def remove_unfinished(directory: Path) -> int:
    """Deletes what `atomic_writer` left in `directory` when its process was killed; returns how many files that were.

    Only for a folder in which nobody else writes at the moment. Raises StorageError.
    """
    removed = 0
    with storage_errors("tidy up", directory):
        for file in Path(directory).glob(f".*{_UNFINISHED}"):
            file.unlink()
            removed += 1
    return removed


def _link(temporary: Path, path: Path) -> None:
    """Gives the finished file its name unless the name is taken: link(2) fails where rename(2) would overwrite."""
    try:
        os.link(temporary, path)
    except OSError as error:
        # File systems without hard links (FAT, some network mounts): take the name first, then fill it.
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        try:
            temporary.replace(path)
        except OSError:
            # Else the empty file would stand in the way of every further attempt.
            path.unlink(missing_ok=True)
            raise
