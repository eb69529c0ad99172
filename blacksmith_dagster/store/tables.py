"""The store's tables, as the newest version of its schema defines them.

`events` and `jobs` are the log: only ingest writes them, and their rows are never updated. No row is
written per job and attempt. Jobs that run together are a job group: the range of the log that a first
load claims, or, once jobs wait to run again, a row of `job_groups`. `loads` has one row per attempt of a
job group, and `outcomes` one row per job that did not succeed in it.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    DateTime,
    Dialect,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Sequence,
    SmallInteger,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    literal_column,
    text,
)
from sqlalchemy.types import TypeEngine

from blacksmith_dagster.store.records import Lane


class LoadState(StrEnum):
    """The state of a load."""

    EXECUTING = "executing"  # it is open
    SUCCEEDED = "succeeded"  # each of its jobs succeeded, except those with a row in `outcomes`
    FAILED = "failed"  # it raised: all of its jobs failed
    UNKNOWN = "unknown"  # it was lost: nothing recorded a result
    RELEASED = "released"  # it was given back before it started


class OutcomeState(StrEnum):
    """The state of a job that did not succeed in a load."""

    FAILED = "failed"
    DISCARDED = "discarded"
    REPLAYED = "replayed"  # it was discarded, and a replay runs it again


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_micros(at: datetime) -> int:
    """A time as microseconds since 1970, as SQLite stores it."""
    return (at - _EPOCH) // _MICROSECOND


def from_micros(micros: int) -> datetime:
    """The time that `to_micros` wrote."""
    return _EPOCH + timedelta(microseconds=micros)


class Instant(TypeDecorator[datetime]):
    """A time with a time zone: `timestamptz` in PostgreSQL, microseconds since 1970 in SQLite."""

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

# SQLite makes a column its rowid only if it is declared INTEGER.
_Id = BigInteger().with_variant(Integer(), "sqlite")


def _at(name: str, *, nullable: bool = False) -> Column[datetime]:
    return Column(name, Instant(), nullable=nullable)


def _required(name: str, type_: Any, **options: Any) -> Column[Any]:
    return Column(name, type_, nullable=False, **options)


def _one_of(name: str, values: type[StrEnum], *, primary_key: bool = False) -> Column[str]:
    check = f"{name} IN ({', '.join(repr(str(value)) for value in values)})"
    return Column(name, Text, CheckConstraint(check), primary_key=primary_key, nullable=False)


def _partial_index(name: str, *columns: str, where: str) -> Index:
    return Index(name, *columns, postgresql_where=text(where), sqlite_where=text(where))


# Each restore or promotion begins a new epoch, which is part of the public ids of all events from
# `first_seq` on.
epochs = Table(
    "epochs",
    metadata,
    Column("first_seq", BigInteger, primary_key=True, autoincrement=False),
    _required("epoch", Text),
    _at("began_at"),
)

# Event types, each with its log start: its events up to `purged_upto`, all received before
# `purged_before`, are purged, except those that a job still needed. Up to `swept_upto` none is left, so
# the next purge begins there.
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

# One row per lane of a destination event. Claims and records lock the row, and fail unless they carry
# its `token` and `holder`. Taking over a lane raises the token.
fencing_tokens = Table(
    "fencing_tokens",
    metadata,
    Column("destination", Integer, primary_key=True, autoincrement=False),
    _one_of("lane", Lane, primary_key=True),
    _required("token", BigInteger),
    _required("holder", Text),
)

# The log: one row per event, in the order of `seq`. `parent` is the seq of the event that it was made
# from. In PostgreSQL, sequence numbers are not committed in their order: see high_watermark(), which
# needs a sequence that caches no numbers.
events = Table(
    "events",
    metadata,
    Column("seq", _Id, Sequence("event_seq", cache=1), primary_key=True),
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

# One row per event and destination event that wants it, written with the event. `when_error` is what the
# flow's `when` raised.
jobs = Table(
    "jobs",
    metadata,
    Column("destination", Integer, primary_key=True, autoincrement=False),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("when_error", Text),
    sqlite_with_rowid=False,
    postgresql_partition_by="range (seq)",
)

# The idempotency keys of the last 7 days. `ordinal` tells apart several events sent with one key.
# `digest` is a hash of what was sent: it tells a repeated request from another one with the same key.
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

# A lane has at most one open load, and its last load is also the lane's state: `position` is the
# sequence number up to which new jobs were claimed, `claimed` how many jobs were claimed for the first
# time, and `state` says whether a load is open. `seq_from` and `seq_to` are set only for a first claim:
# the jobs of other loads are in the job groups assigned to the load. Closing a load changes no indexed
# column, so that PostgreSQL keeps the update on its page (HOT).
loads = Table(
    "loads",
    metadata,
    Column("id", _Id, primary_key=True),
    _required("destination", Integer),
    _one_of("lane", Lane),
    _one_of("state", LoadState),
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
    _partial_index("loads_range", "destination", "seq_to", where="seq_to is not null"),
    _partial_index("loads_discarded", "destination", where="discarded > 0"),
    sqlite_autoincrement=True,
)

# Job groups that wait to run again, and those that a later load has run: the jobs of the log from
# `seq_from` to `seq_to`, or, if `listing` is set, only the jobs in that range with a row of this listing
# in `outcomes` or `group_jobs`. A listing has the id of the first group made for it; groups split off
# that one share it.
# - `load`: the load that the group is assigned to, NULL while it waits.
# - `lane`: the lane that may claim it.
# - `raised_in`: the load in which the whole group failed. `split_from`: the group it was split off.
# - `replay`: the replay that its jobs came from. `job_key`: the suffix of its jobs' idempotency keys, if
#   the replay gave them new ones.
job_groups = Table(
    "job_groups",
    metadata,
    Column("id", _Id, primary_key=True),
    _required("destination", Integer),
    _one_of("lane", Lane),
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
    Column("discard_reason", Text),
    Column("load", BigInteger),
    _partial_index("job_groups_due", "destination", "lane", "due_at", where="load is null"),
    _partial_index("job_groups_load", "load", where="load is not null"),
    Index("job_groups_range", "destination", "seq_to"),
    _partial_index("job_groups_replay", "replay", where="replay is not null"),
    sqlite_autoincrement=True,
)

# One row per job that did not succeed, by load. `listing` is that of the job group in which a failed job
# waits to run again.
outcomes = Table(
    "outcomes",
    metadata,
    Column("load", BigInteger, primary_key=True, autoincrement=False),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    _required("destination", Integer),
    _one_of("state", OutcomeState),
    _required("error", Text),
    Column("listing", BigInteger),
    _partial_index("outcomes_listing", "listing", "seq", where="listing is not null"),
    _partial_index("outcomes_discarded", "destination", "seq", where="state = 'discarded'"),
    sqlite_with_rowid=False,
)

IS_DISCARDED = outcomes.c.state == literal_column(f"'{OutcomeState.DISCARDED}'")
"""Whether an outcome's job is discarded. No parameter: both planners look for the index's own words."""

# The jobs in the listings of replays. A job that its replay `created` has no row in `jobs`, where the
# load lane would claim it too if it is above the lane's position.
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

# Payloads edited by a replay: the jobs of the destination event get them instead of their events' own.
edits = Table(
    "edits",
    metadata,
    Column("destination", Integer, primary_key=True, autoincrement=False),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    _required("payload", Text),
    sqlite_with_rowid=False,
)

# A replay reads the log from `after` to `upto`. Up to `planned_upto` it has put `jobs` jobs into job
# groups, of which it created `created_jobs`. `request` is a `ReplayRequest` as JSON.
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

# How far each reader (a poll, a subscription, a CDC listener, a landed file) has come.
cursors = Table(
    "cursors", metadata, Column("reader", Text, primary_key=True), _required("value", Text)
)

# Raw requests that could not be ingested. One with a `key` is stored once per event type.
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

# The last known status of each listener; see `ListenerStatus`.
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

# Turns a time into sequence numbers: at the time `at`, every event up to `low` was committed, and no
# event above `high` had been received.
time_index = Table(
    "time_index",
    metadata,
    Column("at", Instant(), primary_key=True),
    _required("low", BigInteger),
    _required("high", BigInteger),
    sqlite_with_rowid=False,
)

# One row: the totals below count the log up to `upto`.
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
    # Discarded jobs that were purged, and so are no longer counted in `loads.discarded`.
    _required("purged_discarded", BigInteger, server_default="0"),
)

# The supervisor's locks. `expires_at` is a time of the database's clock. SQLite has none: there it is
# seconds of the host's monotonic clock, valid only during the boot that `boot` identifies.
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

# Processes registered with the supervisor, by the same clock. `tags` are separated by spaces.
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

# One row per source and destination that has been migrated: `target` is `destination/warehouse`. The
# fencing token (`token`, `holder`) protects the records of its migrations. Every claim reads the rest:
# the `version` of the target's schema, what is migrating it now (`migrating_by`), and which migration
# must run first (`waits_for`).
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

# `state` is that of the last transition. `atomic`: the migration last ran in one transaction with its
# record.
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
