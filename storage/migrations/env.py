"""Alembic's entry: `storage/migrate.py` opens the connection and its transaction, and hands them in."""

from alembic import context

from storage.tables import Table

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Table.metadata,
    compare_server_default=True,
)
with context.begin_transaction():
    context.run_migrations()
