"""Nothing the ledger says is for SQLite alone: everything compiles for PostgreSQL, and the shipped schema is the model's."""

from __future__ import annotations

import re
from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, event
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable

from owner.ledger import schema
from owner.ledger.engine import Database
from owner.ledger.tables import Base


def test_every_table_and_index_compiles_for_postgresql():
    for table in Base.metadata.sorted_tables:
        assert "CREATE TABLE" in str(CreateTable(table).compile(dialect=postgresql.dialect()))
        for index in table.indexes:
            assert "CREATE INDEX" in str(CreateIndex(index).compile(dialect=postgresql.dialect()))


def test_every_statement_of_a_ledgers_life_compiles_for_postgresql(busy_world):
    statements = []

    def keep(_connection, clause, *_):
        statements.append(clause)

    event.listen(Engine, "before_execute", keep)
    try:
        busy_world.live()
        store = busy_world.store
        store.verify()
        store.identify("serialofada", "ada")
        (
            store.waiting(),
            store.contributors(),
            store.revoked_names(),
            store.close_refusals(),
            store.requeue_interrupted(),
        )
        (
            store.allowed_bases(2),
            store.tries("ada", store.root().id),
            store.open_bytes("ada"),
            store.entries(kind="release"),
        )
    finally:
        event.remove(Engine, "before_execute", keep)
    compiled = [str(one.compile(dialect=postgresql.dialect())) for one in statements if hasattr(one, "compile")]
    assert len(set(compiled)) > 30
    assert any("FOR UPDATE" in one for one in compiled)


def test_only_the_engine_and_the_migrations_name_sqlite():
    folder = Path(schema.__file__).parent
    for path in sorted(folder.glob("*.py")):
        code = re.sub(r'""".*?"""|#.*', "", path.read_text(), flags=re.DOTALL)
        if path.name != "engine.py":
            assert not re.search(r"sqlite3|PRAGMA|sqlite_master|rowid|BEGIN IMMEDIATE", code), path.name


def test_the_migrations_make_the_tables_that_the_code_uses(world):
    database = Database(world.url)
    with database.readers.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []
    database.close()


def test_the_newest_migration_is_the_one_the_code_names():
    assert ScriptDirectory(str(schema.MIGRATIONS)).get_current_head() == schema.REVISION
