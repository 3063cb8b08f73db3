"""What the disk may do to the ledger, and what a person reads then."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import sys
import tempfile
from contextlib import closing, suppress
from pathlib import Path

import pytest
from sqlalchemy import Engine, event

from common.errors import ConfigurationError, LedgerError, MissingExtraError, StorageError
from owner.ledger import Store, SubmissionState
from owner.ledger.engine import Database
from tests.owner.ledger.world import key_of

OWNER = key_of(1)


@pytest.fixture
def small_disk():
    """Databases opened from now on may grow by three pages, as on a disk that is nearly full."""

    def limit(connection, _record):
        cursor = connection.cursor()
        pages = cursor.execute("PRAGMA page_count").fetchone()[0]
        cursor.execute(f"PRAGMA max_page_count = {pages + 3}")
        cursor.close()

    event.listen(Engine, "connect", limit)
    yield
    event.remove(Engine, "connect", limit)


def test_on_a_full_disk_a_write_fails_as_a_whole_and_says_what_to_do(busy_world, small_disk):
    handed_in = busy_world.hand_in("ada", "one")
    busy_world.store.claim()
    store = busy_world.reopen()
    head, counter = store.head(), store.change_counter()
    verdict = {"measurements": "x" * 100_000}
    with pytest.raises(StorageError) as caught:
        store.decide(handed_in.id, SubmissionState.ACCEPTED, verdict, release=busy_world.signed_release())
    assert str(busy_world.path) in str(caught.value)
    assert "free some space" in caught.value.hint
    assert (store.head(), store.change_counter()) == (head, counter)
    assert store.submission(handed_in.id).state is SubmissionState.VETTING
    assert len(store.releases()) == 1
    assert store.verify().ok
    assert store.decide(handed_in.id, SubmissionState.REJECTED, {})[0].state is SubmissionState.REJECTED


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    path = tmp_path / "nowhere" / "ledger.sqlite"
    with pytest.raises(StorageError) as caught:
        Store.open(f"sqlite:///{path}", OWNER)
    assert str(path) in str(caught.value)
    assert caught.value.hint


def in_a_child_without_privileges(task) -> int:
    """Exit status of `task` run as nobody, where this is root, to whom no folder is unwritable."""
    child = os.fork()
    if child == 0:
        with suppress(OSError):
            os.setgid(65534)
            os.setuid(65534)
        os._exit(task())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="a fork of a threaded process warns")
@pytest.mark.parametrize("existing", [False, True])
def test_an_unwritable_folder_is_named(existing):
    # Not below tmp_path, which nobody else may enter.
    folder = Path(tempfile.mkdtemp(prefix="portier-unwritable-"))
    path = folder / "ledger.sqlite"
    try:
        if existing:
            Store.open(f"sqlite:///{path}", OWNER).close()
            path.chmod(0o444)
        folder.chmod(0o555)

        def task() -> int:
            try:
                Store.open(f"sqlite:///{path}", OWNER)
            except StorageError as error:
                return 0 if str(path) in str(error) and "permissions" in error.hint else 2
            return 1

        assert in_a_child_without_privileges(task) == 0
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


def test_a_file_that_is_no_database_is_named(tmp_path):
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"this is a shopping list, not a ledger" * 100)
    with pytest.raises(StorageError, match="not a database") as caught:
        Store.open(f"sqlite:///{path}", OWNER)
    assert "check the path" in caught.value.hint


def test_the_database_of_another_program_is_left_alone(tmp_path):
    path = tmp_path / "photos.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE photos (id INTEGER)")
    with pytest.raises(LedgerError, match="tables photos"):
        Store.open(f"sqlite:///{path}", OWNER)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("photos",)]


def test_a_ledger_of_a_newer_version_asks_for_an_upgrade(world):
    world.store.close()
    with closing(sqlite3.connect(world.path)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()
    with pytest.raises(LedgerError, match="schema 9999") as caught:
        Store.open(world.url, OWNER)
    assert "git pull" in caught.value.hint


def test_the_ledger_of_another_owner_is_refused(world):
    with pytest.raises(LedgerError, match="belongs to the owner's key"):
        Store.open(world.url, key_of(2))


def test_other_people_on_the_machine_cannot_read_the_ledger(tmp_path):
    with Store.open(f"sqlite:///{tmp_path / 'ledger.sqlite'}", OWNER) as store:
        store.record_refusal(None, "REPLAY", "so that there are side files")
        files = [path for path in tmp_path.iterdir() if path.name.startswith("ledger.sqlite")]
        assert len(files) == 3
        assert [path.name for path in files if stat.S_IMODE(path.stat().st_mode) != 0o600] == []


@pytest.mark.parametrize("url", ["not a url", "sqlite://", "sqlite:///:memory:"])
def test_an_address_that_cannot_hold_a_ledger_is_refused(url):
    with pytest.raises(ConfigurationError):
        Store.open(url, OWNER)


@pytest.mark.parametrize("url", ["oracle9+nothing://host/name", "postgresql+nothing://host/name"])
def test_a_missing_driver_is_named(url):
    with pytest.raises(MissingExtraError, match="driver"):
        Store.open(url, OWNER)


def test_commits_are_on_disk_when_they_return(world):
    """A power cut cannot be staged; that every connection asks SQLite for the guarantee can be seen."""
    database = Database(world.url)
    for engine in (database.readers, database.writers):
        with engine.connect() as connection:
            for pragma, value in (
                ("journal_mode", "wal"),
                ("synchronous", 2),
                ("foreign_keys", 1),
                ("trusted_schema", 0),
            ):
                assert connection.exec_driver_sql(f"PRAGMA {pragma}").scalar_one() == value
    database.close()


def test_a_writer_that_never_lets_go_is_waited_for_and_then_named_as_the_reason(world, monkeypatch):
    monkeypatch.setattr("owner.ledger.engine.BUSY_SECONDS", 0.05)
    with closing(sqlite3.connect(world.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match="locked") as caught:
            world.store.record_refusal(None, "REPLAY", "")
        assert "another process" in caught.value.hint
        assert world.store.head().index == 0
        other.execute("ROLLBACK")
    world.store.record_refusal(None, "REPLAY", "")
    assert world.store.head().index == 1


@pytest.mark.parametrize("name", ["a?b", "a%41b", "a#b", "ünder score+"])
def test_a_ledger_lies_where_its_path_says_whatever_characters_that_has(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    Store.open(folder / "ledger.sqlite", OWNER).close()
    assert (folder / "ledger.sqlite").is_file()
    assert [path.name for path in tmp_path.iterdir()] == [name]
