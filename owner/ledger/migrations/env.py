"""What alembic runs: the migrations, on the connection (and inside the transaction) that `owner.ledger.schema` hands over."""

from __future__ import annotations

from alembic import context

from owner.ledger.tables import Base


def migrate() -> None:
    connection = context.config.attributes["connection"]
    context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()


# Imported by anything but alembic (a documentation tool, a test collector), this module does nothing.
if getattr(context, "_proxy", None) is not None:
    migrate()
