"""Alembic's folder: how the ledger's schema came to be, one step a file. `owner.ledger.schema` applies them."""
