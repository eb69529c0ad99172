"""Replays: a lane for job groups, listings, edited payloads, and imports with their own times."""

from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import op

from blacksmith_dagster.store.tables import Instant

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Create the tables, and add the lane to job groups."""
    op.add_column("job_groups", _column("lane", sa.SmallInteger, server_default="0"))
    op.add_column("job_groups", sa.Column("replay", sa.BigInteger))
    op.add_column("job_groups", sa.Column("job_key", sa.Text))
    waits = sa.text("load is null")
    op.drop_index("job_groups_due", "job_groups")
    op.create_index(
        "job_groups_due",
        "job_groups",
        ["destination", "lane", "due_at"],
        postgresql_where=waits,
        sqlite_where=waits,
    )
    replayed = sa.text("replay is not null")
    op.create_index(
        "job_groups_replay",
        "job_groups",
        ["replay"],
        postgresql_where=replayed,
        sqlite_where=replayed,
    )
    op.create_table(
        "group_jobs",
        *_primary_key("destination", "seq", "listing"),
        _column("created", sa.Boolean),
        sa.Column("when_error", sa.Text),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "edits",
        *_primary_key("destination", "seq"),
        _column("payload", sa.Text),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "replays",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
        _column("destination", sa.Integer),
        _column("request", sa.Text),
        *(
            _column(name, sa.BigInteger)
            for name in ("after", "upto", "planned_upto", "jobs", "created_jobs")
        ),
        sa.Column("began_at", Instant(), nullable=False),
        sa.Column("ended_at", Instant()),
        sa.Column("run", sa.Text),
        sqlite_autoincrement=True,
    )
    op.create_index("replays_destination", "replays", ["destination"])
    if op.get_bind().dialect.name == "postgresql":
        script = Path(__file__).with_suffix(".postgresql.sql").read_text()
        op.get_bind().connection.cursor().execute(script)


def _primary_key(*names: str) -> "list[sa.Column[int]]":
    return [
        sa.Column(
            name,
            sa.Integer if name == "destination" else sa.BigInteger,
            primary_key=True,
            autoincrement=False,
        )
        for name in names
    ]


def _column(name: str, type_: Any, **options: Any) -> "sa.Column[Any]":
    return sa.Column(name, type_, nullable=False, **options)
