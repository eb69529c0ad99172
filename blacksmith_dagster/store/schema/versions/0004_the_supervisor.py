"""The supervisor: the services, and the address of the holder of a lock."""

import sqlalchemy as sa
from alembic import op

from blacksmith_dagster.store.tables import Instant

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the address to locks, and create the services."""
    op.add_column("leases", sa.Column("address", sa.Text))
    op.create_table(
        "services",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("address", sa.Text, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("tags", sa.Text, nullable=False),
        sa.Column("expires_at", Instant().with_variant(sa.Float(), "sqlite"), nullable=False),
        sa.Column("boot", sa.Text),
    )
