"""The database below the ledger: how it is opened, how a writer gets its turn, and what its failures mean to a person.

The one module that knows SQLite from other databases. On SQLite every connection runs in WAL mode with synchronous=FULL
(a committed entry survives a power cut), waits for other processes' writers, and holds foreign keys; a writer begins
with BEGIN IMMEDIATE, so that it never has to give up half-way because somebody else wrote first.
"""

from __future__ import annotations

import os
import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from common.errors import ConfigurationError, MissingExtraError, StorageError
from common.files import storage_errors as file_errors

BUSY_SECONDS: Final = 60
_WRITER = "portier_writer"


class Database:
    """One pool of connections under three engines, and the name people know the place by.

    readers: each transaction reads. writers: each holds the one write lock. snapshots: each reads one state throughout.
    """

    def __init__(self, place: str | Path) -> None:
        """place: SQLAlchemy's URL, or the file of an SQLite database, whatever characters its path has. Raises ConfigurationError, MissingExtraError, StorageError (naming the path)."""
        try:
            parsed = URL.create("sqlite", database=str(place)) if isinstance(place, Path) else make_url(place)
            self._sqlite = parsed.get_backend_name() == "sqlite"
            in_memory = self._sqlite and (parsed.database or "") in ("", ":memory:")
            options: dict[str, Any] = {} if in_memory else {"pool_size": 8, "max_overflow": 24, "pool_timeout": 60}
            if not self._sqlite:
                options["pool_pre_ping"] = True
            self.readers = create_engine(parsed, **options)
        except (NoSuchModuleError, ModuleNotFoundError) as error:
            raise MissingExtraError(
                f"the driver for the ledger's database is not installed: {error}", hint="pip install psycopg[binary]"
            ) from None
        except ArgumentError as error:
            raise ConfigurationError(
                f"the ledger's address {place!r} is not a database URL: {error}",
                hint="use sqlite:////folder/ledger.sqlite or postgresql+psycopg://user@host/name",
            ) from None
        if in_memory:
            raise ConfigurationError(
                "the ledger cannot be kept in memory: it would be gone with the process",
                hint="use sqlite:////folder/ledger.sqlite",
            )
        self.place = parsed.database if self._sqlite else parsed.render_as_string(hide_password=True)
        self.writers = self.readers.execution_options(**{_WRITER: True})
        # A SQLite reader in WAL mode sees one state throughout; elsewhere that has to be asked for.
        self.snapshots: Engine = (
            self.readers if self._sqlite else self.readers.execution_options(isolation_level="REPEATABLE READ")
        )
        if self._sqlite:
            _make_file(Path(self.place or ""))
            event.listen(self.readers, "connect", _configure)
            event.listen(self.readers, "begin", _begin)

    def close(self) -> None:
        self.readers.dispose()

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turns what the database raises inside the block into StorageError naming the place and what to do."""
        try:
            yield
        except PoolTimeoutError:
            raise StorageError(f"the ledger {self.place} is overloaded: no connection came free in 60 s") from None
        except (DBAPIError, sqlite3.Error) as error:
            message = str(error.orig if isinstance(error, DBAPIError) else error)
            raise StorageError(f"the ledger {self.place}: {message}", hint=_hint(message)) from error
        except SQLAlchemyError as error:
            raise StorageError(f"the ledger {self.place}: {error}") from error


def _make_file(path: Path) -> None:
    """The database file, for its owner alone from the first byte: verdicts and scores are nobody else's business.

    SQLite gives its side files (-wal, -shm) the same mode.
    """
    with file_errors("open the ledger", path):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def _configure(connection: sqlite3.Connection, _record: object) -> None:
    # Otherwise sqlite3 begins transactions by its own rules, too late for BEGIN IMMEDIATE and not at all for DDL.
    connection.isolation_level = None
    cursor = connection.cursor()
    try:
        cursor.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")
        # WAL is a property of the file. Asking first spares the exclusive lock that setting it takes.
        if cursor.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        # A database somebody else may have written to is data, not code.
        with suppress(sqlite3.OperationalError):
            cursor.execute("PRAGMA trusted_schema = OFF")
    finally:
        cursor.close()


def _begin(connection: Connection) -> None:
    if not connection.get_execution_options().get(_WRITER, False):
        connection.exec_driver_sql("BEGIN")
        return
    # SQLite's own waiting sleeps longer and longer, up to 100 ms between two looks; beside a process that writes without
    # pause, another (`revoke`, say) then waits for seconds. Looking every few milliseconds finds the gaps.
    raw: Any = connection.connection.dbapi_connection
    deadline = time.monotonic() + BUSY_SECONDS
    raw.execute("PRAGMA busy_timeout = 0")
    try:
        while True:
            try:
                raw.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                    raise
                if time.monotonic() >= deadline:
                    raise
            time.sleep(random.uniform(0.0005, 0.004))
    finally:
        raw.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")


_HINTS: Final = (
    ("full", "the disk is full: free some space and try again; nothing was half written"),
    ("locked", f"another process kept writing for {BUSY_SECONDS} s: see which one holds the file (fuser, lsof)"),
    ("readonly", "the file, its folder or the file system is read-only: check owner and permissions (ls -ld)"),
    ("unable to open", "check that the folder exists and is writable, and that files may still be opened (ulimit -n)"),
    ("disk i/o", "the disk is full, failing, or over a limit (ulimit -f): nothing was half written"),
    ("malformed", "the file is damaged: restore it from a backup, and verify it against the contributors' receipts"),
    ("not a database", "this file is not a ledger: check the path, or restore it from a backup"),
    ("connect", "check that the database server runs and that its address and password are right"),
)


def _hint(message: str) -> str:
    lowered = message.lower()
    return next((hint for word, hint in _HINTS if word in lowered), "")
