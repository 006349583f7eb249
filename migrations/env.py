"""Alembic's entry point. `daemon.storage.migrate` calls it with an open connection; there is no alembic.ini."""

from __future__ import annotations

from alembic import context

from daemon.storage.tables import metadata

connection = context.config.attributes.get("connection")
if connection is None:
    raise SystemExit("run migrations with `dreamd db upgrade`")

# One transaction for everything: a failed migration leaves the database as it was, on SQLite too.
context.configure(
    connection=connection, target_metadata=metadata, transactional_ddl=True, transaction_per_migration=False
)
with context.begin_transaction():
    context.run_migrations()
