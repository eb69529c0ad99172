"""Purges: how far each event type is purged, and how many discarded jobs were."""

import sqlalchemy as sa
from alembic import op

from blacksmith_dagster.store.tables import Instant

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the columns."""
    for name in ("purged_upto", "swept_upto"):
        op.add_column("event_types", _number(name))
    op.add_column("event_types", sa.Column("purged_before", Instant()))
    op.add_column("job_totals", _number("purged_discarded"))


def _number(name: str) -> "sa.Column[int]":
    return sa.Column(name, sa.BigInteger, nullable=False, server_default="0")
