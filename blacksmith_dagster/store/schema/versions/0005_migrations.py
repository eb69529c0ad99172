"""Migrations of sources and destinations, their transitions, and the barriers that claims read."""

import sqlalchemy as sa
from alembic import op

from blacksmith_dagster.store.tables import Instant

revision = "0005"
down_revision = "0004"

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "migration_barriers",
        sa.Column("target", sa.Text, primary_key=True),
        sa.Column("token", sa.BigInteger, nullable=False),
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("migrating_by", sa.Text),
        sa.Column("waits_for", sa.Text),
    )
    op.create_table(
        "migrations",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("scope", sa.Text, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("checksum", sa.Text),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("atomic", sa.Boolean, nullable=False),
        sa.UniqueConstraint("scope", "version"),
    )
    op.create_table(
        "migration_transitions",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("migration", sa.BigInteger, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("token", sa.BigInteger, nullable=False),
        sa.Column("at", Instant, nullable=False),
        sa.Column("by", sa.Text, nullable=False),
        sa.Column("run", sa.Text),
        sa.Column("error", sa.Text),
    )
    op.create_index("migration_transitions_migration", "migration_transitions", ["migration", "id"])
