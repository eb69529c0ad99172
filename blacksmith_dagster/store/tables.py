"""The store's tables, as the newest version of its schema has them.

`events` and `jobs` are the log: written by ingest alone, never updated. Jobs that run together are a
job group: the range of the log that a first load covers, or a row of `job_groups`. `loads` has a row
per run of a job group, `outcomes` a row per job that did not succeed in it.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Dialect,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.types import TypeEngine

EXECUTING, DONE, FAILED, UNKNOWN, RELEASED, DISCARDED, REPLAYED = 1, 2, 3, 4, 5, 6, 7
"""States: of a load the first five (of a done one each job succeeded unless it has an outcome), of
an outcome FAILED, DISCARDED, and REPLAYED (it was discarded, and a replay runs it again)."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_micros(at: datetime) -> int:
    """A time as microseconds since 1970, the form in which SQLite keeps it."""
    return (at - _EPOCH) // _MICROSECOND


def from_micros(micros: int) -> datetime:
    """The time that `to_micros` wrote."""
    return _EPOCH + timedelta(microseconds=micros)


class Instant(TypeDecorator[datetime]):
    """A time with its zone: `timestamptz` in PostgreSQL, microseconds since 1970 in SQLite."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Choose the column's type."""
        return dialect.type_descriptor(BigInteger() if dialect.name == "sqlite" else self.impl)

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        """Write a time."""
        return to_micros(value) if value is not None and dialect.name == "sqlite" else value

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """Read a time."""
        if value is None:
            return None
        read: datetime = from_micros(value) if dialect.name == "sqlite" else value.astimezone(UTC)
        return read


metadata = MetaData()

# SQLite makes a rowid only of INTEGER.
_Id = BigInteger().with_variant(Integer(), "sqlite")


def _at(name: str, *, nullable: bool = False) -> Column[datetime]:
    return Column(name, Instant(), nullable=nullable)


def _required(name: str, type_: Any, **options: Any) -> Column[Any]:
    return Column(name, type_, nullable=False, **options)


# Each restore or promotion begins a new epoch: it is part of the public ids given from there on.
epochs = Table(
    "epochs",
    metadata,
    Column("first_seq", BigInteger, primary_key=True, autoincrement=False),
    _required("epoch", Text),
    _at("began_at"),
)

# The log start of an event type: its events up to `purged_upto`, all received before `purged_before`,
# are gone unless a job needed them. Up to `swept_upto` there is none left.
event_types = Table(
    "event_types",
    metadata,
    Column("id", Integer, primary_key=True),
    _required("path", Text, unique=True),
    _required("purged_upto", BigInteger, server_default="0"),
    _at("purged_before", nullable=True),
    _required("swept_upto", BigInteger, server_default="0"),
)

destination_events = Table(
    "destination_events",
    metadata,
    Column("id", Integer, primary_key=True),
    _required("path", Text, unique=True),
)

fencing_tokens = Table(
    "fencing_tokens",
    metadata,
    Column("destination", Integer, primary_key=True, autoincrement=False),
    Column("lane", SmallInteger, primary_key=True, autoincrement=False),
    _required("token", BigInteger),
    _required("holder", Text),
)

events = Table(
    "events",
    metadata,
    Column("seq", _Id, primary_key=True),
    _required("event_type", Integer),
    _at("received_at"),
    _required("payload", Text),
    Column("key", Text),
    Column("context", Text),
    Column("version", Text),
    _at("sent_at", nullable=True),
    Column("parent", BigInteger),
    sqlite_autoincrement=True,
    postgresql_partition_by="range (seq)",
)

jobs = Table(
    "jobs",
    metadata,
    Column("destination", Integer, primary_key=True, autoincrement=False),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("when_error", Text),
    sqlite_with_rowid=False,
    postgresql_partition_by="range (seq)",
)

keys = Table(
    "keys",
    metadata,
    Column("event_type", Integer, primary_key=True, autoincrement=False),
    Column("key", Text, primary_key=True),
    Column("ordinal", Integer, primary_key=True, autoincrement=False),
    _required("digest", LargeBinary),
    Column("seq", BigInteger),
    _at("received_at"),
    Index("keys_received_at", "received_at"),
    sqlite_with_rowid=False,
)

# A lane has one open load at most, and its last load is its state: up to which number new jobs were
# claimed (`position`), how many were claimed for the first time (`claimed`), whether one is open.
# seq_from and seq_to are set for first attempts alone. What changes has no index, so that updates
# stay in their page (HOT).
loads = Table(
    "loads",
    metadata,
    Column("id", _Id, primary_key=True),
    _required("destination", Integer),
    _required("lane", SmallInteger),
    _required("state", SmallInteger),
    _required("token", BigInteger),
    _required("attempt", SmallInteger),
    Column("seq_from", BigInteger),
    Column("seq_to", BigInteger),
    _required("jobs", Integer),
    _required("discarded", Integer, server_default="0"),
    _required("position", BigInteger),
    _required("claimed", BigInteger),
    _at("started_at"),
    _at("finished_at", nullable=True),
    Column("run", Text),
    Column("error", Text),
    Index("loads_lane", "destination", "lane", "id"),
    Index(
        "loads_range",
        "destination",
        "seq_to",
        postgresql_where=text("seq_to is not null"),
        sqlite_where=text("seq_to is not null"),
    ),
    Index(
        "loads_discarded",
        "destination",
        postgresql_where=text("discarded > 0"),
        sqlite_where=text("discarded > 0"),
    ),
    sqlite_autoincrement=True,
)

# What must run again: the jobs of the log from seq_from to seq_to, or, with a `listing`, those among
# them that have an outcome or a row of `group_jobs` in it. A listing bears the id of the first group
# that was made of it. `load` is the load that took it, NULL while it waits. `lane` may claim it;
# `replay` is the replay that it came of, `job_key` the end of its jobs' idempotency keys if it is a
# new one.
job_groups = Table(
    "job_groups",
    metadata,
    Column("id", _Id, primary_key=True),
    _required("destination", Integer),
    _required("lane", SmallInteger, server_default="0"),
    Column("replay", BigInteger),
    Column("job_key", Text),
    Column("listing", BigInteger),
    _required("seq_from", BigInteger),
    _required("seq_to", BigInteger),
    _required("jobs", Integer),
    _required("attempts", SmallInteger),
    _required("lost_loads", SmallInteger),
    Column("raised_in", BigInteger),
    _required("isolated", Boolean),
    _required("consecutive_failures", SmallInteger),
    Column("split_from", BigInteger),
    _at("due_at"),
    Column("load", BigInteger),
    Index(
        "job_groups_due",
        "destination",
        "lane",
        "due_at",
        postgresql_where=text("load is null"),
        sqlite_where=text("load is null"),
    ),
    Index(
        "job_groups_load",
        "load",
        postgresql_where=text("load is not null"),
        sqlite_where=text("load is not null"),
    ),
    Index("job_groups_range", "destination", "seq_to"),
    Index(
        "job_groups_replay",
        "replay",
        postgresql_where=text("replay is not null"),
        sqlite_where=text("replay is not null"),
    ),
    sqlite_autoincrement=True,
)

outcomes = Table(
    "outcomes",
    metadata,
    Column("load", BigInteger, primary_key=True, autoincrement=False),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    _required("destination", Integer),
    _required("state", SmallInteger),
    _required("error", Text),
    Column("listing", BigInteger),
    Index(
        "outcomes_listing",
        "listing",
        "seq",
        postgresql_where=text("listing is not null"),
        sqlite_where=text("listing is not null"),
    ),
    Index(
        "outcomes_discarded",
        "destination",
        "seq",
        postgresql_where=text(f"state = {DISCARDED}"),
        sqlite_where=text(f"state = {DISCARDED}"),
    ),
    sqlite_with_rowid=False,
)

# Jobs in the listings that replays have made. A job that was `created` by its replay has no row in
# `jobs`: it is above or below the place where the load lane stands, and must not be claimed by it.
group_jobs = Table(
    "group_jobs",
    metadata,
    Column("destination", Integer, primary_key=True, autoincrement=False),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("listing", BigInteger, primary_key=True, autoincrement=False),
    _required("created", Boolean),
    Column("when_error", Text),
    sqlite_with_rowid=False,
)

# Data that jobs of a destination event are given instead of their event's.
edits = Table(
    "edits",
    metadata,
    Column("destination", Integer, primary_key=True, autoincrement=False),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    _required("payload", Text),
    sqlite_with_rowid=False,
)

# A replay goes through the log from `after` to `upto`, and has come to `planned_upto`: up to there
# it has put `jobs` jobs into job groups, of which it created `created_jobs`.
replays = Table(
    "replays",
    metadata,
    Column("id", _Id, primary_key=True),
    _required("destination", Integer),
    _required("request", Text),
    _required("after", BigInteger),
    _required("upto", BigInteger),
    _required("planned_upto", BigInteger),
    _required("jobs", BigInteger),
    _required("created_jobs", BigInteger),
    _at("began_at"),
    _at("ended_at", nullable=True),
    Column("run", Text),
    Index("replays_destination", "destination"),
    sqlite_autoincrement=True,
)

cursors = Table(
    "cursors", metadata, Column("reader", Text, primary_key=True), _required("value", Text)
)

quarantine = Table(
    "quarantine",
    metadata,
    Column("id", _Id, primary_key=True),
    _required("event_type", Integer),
    _at("received_at"),
    _required("headers", Text),
    _required("body", LargeBinary),
    _required("error", Text),
    Column("key", Text),
    Index("quarantine_key", "event_type", "key", unique=True),
    sqlite_autoincrement=True,
)

# Who reads a subscription or a database's changes, and how far behind it is.
listeners = Table(
    "listeners",
    metadata,
    Column("path", Text, primary_key=True),
    _required("holder", Text),
    Column("lag", BigInteger),
    _required("unit", Text),
    _at("read_at", nullable=True),
    Column("error", Text),
    _at("at"),
)

# The time index turns a time into a sequence number: whatever is at or below `low` had been committed at
# that time, whatever is above `high` had not begun.
time_index = Table(
    "time_index",
    metadata,
    Column("at", Instant(), primary_key=True),
    _required("low", BigInteger),
    _required("high", BigInteger),
    sqlite_with_rowid=False,
)

# The counters follow the log: all up to `upto` is in the totals.
counter = Table(
    "counter", metadata, Column("upto", BigInteger, primary_key=True, autoincrement=False)
)

event_totals = Table(
    "event_totals",
    metadata,
    Column("event_type", Integer, primary_key=True, autoincrement=False),
    Column("day", Date, primary_key=True),
    _required("events", BigInteger),
)

job_totals = Table(
    "job_totals",
    metadata,
    Column("destination", Integer, primary_key=True, autoincrement=False),
    _required("jobs", BigInteger),
    # Discarded jobs that were purged: no load tells of them any more.
    _required("purged_discarded", BigInteger, server_default="0"),
)

# The supervisor's locks. `expires_at` is the database's clock; in SQLite, which has none, it is
# seconds of the host's monotonic clock, good for the boot that `boot` names.
leases = Table(
    "leases",
    metadata,
    Column("key", Text, primary_key=True),
    _required("id", Text),
    _required("holder", Text),
    _at("since"),
    _required("expires_at", Instant().with_variant(Float(), "sqlite")),
    Column("boot", Text),
    Column("address", Text),
)

# Processes that serve, by the same clock. `tags` are separated by spaces.
services = Table(
    "services",
    metadata,
    Column("id", Text, primary_key=True),
    _required("name", Text),
    _required("address", Text),
    _required("version", Text),
    _required("tags", Text),
    _required("expires_at", Instant().with_variant(Float(), "sqlite")),
    Column("boot", Text),
)

# ------------------------------------------------------------------------------------- migrations

# A row per source and destination that has been migrated, `destination/warehouse`. Its fencing token
# guards what is tracked of its migrations. Claims read the rest: the `version` of its schema, who is
# migrating it now (`migrating_by`), and which migration must run first (`waits_for`).
migration_barriers = Table(
    "migration_barriers",
    metadata,
    Column("target", Text, primary_key=True),
    _required("token", BigInteger),
    _required("holder", Text),
    _required("version", BigInteger, server_default="0"),
    Column("migrating_by", Text),
    Column("waits_for", Text),
)

# `state` is the last transition's. `atomic`: it last ran in one transaction with its record.
migrations = Table(
    "migrations",
    metadata,
    Column("id", _Id, primary_key=True),
    _required("scope", Text),
    _required("version", BigInteger),
    _required("name", Text),
    Column("checksum", Text),
    _required("state", Text),
    _required("atomic", Boolean),
    UniqueConstraint("scope", "version"),
)

migration_transitions = Table(
    "migration_transitions",
    metadata,
    Column("id", _Id, primary_key=True),
    _required("migration", BigInteger),
    _required("state", Text),
    _required("token", BigInteger),
    _at("at"),
    _required("by", Text),
    Column("run", Text),
    Column("error", Text),
    Index("migration_transitions_migration", "migration", "id"),
)
