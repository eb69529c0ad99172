"""Alembic's environment: runs the versions on the caller's connection, in one transaction."""

from alembic import context

from blacksmith_dagster.store.schema import VERSION_TABLE
from blacksmith_dagster.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
)
with context.begin_transaction():
    context.run_migrations()
