"""The status of listeners, the keys of raw requests, and events with children."""

from pathlib import Path

import sqlalchemy as sa
from alembic import op

from blacksmith_dagster.store.tables import Instant

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the key to raw requests, create the listeners, and let ingest() resolve parents."""
    op.add_column("quarantine", sa.Column("key", sa.Text))
    op.create_index("quarantine_key", "quarantine", ["event_type", "key"], unique=True)
    op.create_table(
        "listeners",
        sa.Column("path", sa.Text, primary_key=True),
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("lag", sa.BigInteger),
        sa.Column("unit", sa.Text, nullable=False),
        sa.Column("read_at", Instant()),
        sa.Column("error", sa.Text),
        sa.Column("at", Instant(), nullable=False),
    )
    if op.get_bind().dialect.name == "postgresql":
        script = Path(__file__).with_suffix(".postgresql.sql").read_text()
        op.get_bind().connection.cursor().execute(script)
