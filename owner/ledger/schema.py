"""Brings the database to the schema of this version: the migrations that ship with the package, applied when it is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sqlalchemy import Connection, inspect, text

from common.errors import LedgerError
from owner.ledger.engine import Database

REVISION: Final = "0001"
"""The newest migration. A test holds it equal to what the folder says; thus alembic is imported only when it is needed."""
MIGRATIONS: Final = Path(__file__).parent / "migrations"
_VERSION = text("SELECT version_num FROM alembic_version")


def prepare(database: Database) -> None:
    """Creates or upgrades the tables, in one transaction.

    Raises LedgerError where the database is of a newer version or belongs to another program, StorageError.
    """
    with database.errors():
        with database.readers.connect() as connection:
            if _revision(connection, database.place) == REVISION:
                return
        with database.writers.begin() as connection:
            # Asked again with the write lock held: another process may have done it meanwhile.
            found = _revision(connection, database.place)
            if found != REVISION:
                _upgrade(connection, found, database.place)


def _revision(connection: Connection, place: str | None) -> str | None:
    tables = inspect(connection).get_table_names()
    if "alembic_version" in tables:
        return connection.execute(_VERSION).scalar_one_or_none()
    if tables:
        raise LedgerError(
            f"{place} is the database of another program, not a ledger: it has tables {', '.join(sorted(tables)[:5])}",
            hint="name a new file, or an empty database",
        )
    return None


def _upgrade(connection: Connection, found: str | None, place: str | None) -> None:
    from alembic import command  # noqa: PLC0415  costs a third of a second, and is needed once in a ledger's life
    from alembic.config import Config  # noqa: PLC0415
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        raise LedgerError(
            f"the ledger {place} has schema {found}, which a newer version of portier made; this one knows {REVISION}",
            hint="upgrade Portier: git pull, then pip install . in its checkout",
        )
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
