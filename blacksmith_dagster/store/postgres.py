"""The store's database on PostgreSQL."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from operator import invert
from typing import Any

import psycopg
from sqlalchemy import ColumnElement, Connection, Engine, create_engine, event, func, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.pool import ConnectionPoolEntry

from blacksmith_dagster.errors import Unavailable
from blacksmith_dagster.store import schema
from blacksmith_dagster.store.database import (
    CommitConflict,
    Database,
    GroupJobRow,
    LaneState,
    NoPartition,
    OutcomeRow,
)
from blacksmith_dagster.store.db_errors import committing, translate_errors
from blacksmith_dagster.store.group_members import jobs_of_load
from blacksmith_dagster.store.idempotency import EventRef
from blacksmith_dagster.store.job_groups import WaitingGroup
from blacksmith_dagster.store.partitions import Partitions
from blacksmith_dagster.store.records import FencingToken, JobRow, Lane, NewEvent
from blacksmith_dagster.store.tables import Instant

_CONNECT_SECONDS = 10
# No parallel workers and no JIT: starting them takes longer than any of these statements.
_SESSION = (
    "SET timezone = 'UTC'; SET max_parallel_workers_per_gather = 0; SET jit = off;"
    " SET default_transaction_isolation = 'read committed';"
    " SET statement_timeout = '5min'; SET lock_timeout = '1min';"
    " SET idle_in_transaction_session_timeout = '1min'"
)
_NO_TIMEOUTS = (
    "SET statement_timeout = 0; SET lock_timeout = 0; SET idle_in_transaction_session_timeout = 0"
)
# An upgrade waits for a table for less than the second after which PostgreSQL looks for deadlocks, so
# that it is the upgrade that gives way.
_TABLE_WAIT = 500
_UPGRADE_ATTEMPTS = 60
_UPGRADE_PAUSE = 1.0
_TABLE_IN_USE = frozenset({"55P03", "40P01"})  # the lock's time-out, a deadlock


class PostgresDatabase(Database):
    """A PostgreSQL database, shared by any number of machines.

    Two stores can share a database if each has its own schema: add
    `?options=-csearch_path%3D<schema>` to the URL.
    """

    def __init__(self, url: URL, *, upgrade: bool = False) -> None:
        engine = _engine(url)
        label = f"postgresql://{url.host or ''}:{url.port or 5432}/{url.database or ''}"
        try:
            with translate_errors(label):
                if upgrade:
                    _upgrade(engine, label)
                with engine.connect() as conn:
                    schema.check_version(conn, label)
            super().__init__(engine, label)
            self.partitions = Partitions(self.reading)
        except BaseException:
            engine.dispose()
            raise

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that may write."""
        with translate_errors(self.label), self.engine.connect() as conn:
            yield conn
            with committing(self.label):
                conn.commit()

    @contextmanager
    def one_statement(self) -> Iterator[Connection]:
        """A connection in autocommit mode."""
        with self.reading() as conn, committing(self.label):
            yield conn

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection in autocommit mode: each statement is a transaction of its own."""
        with translate_errors(self.label), self.engine.connect() as conn:
            yield conn.execution_options(isolation_level="AUTOCOMMIT")

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """A read-only transaction whose statements all see the same state."""
        with translate_errors(self.label), self.engine.connect() as conn:
            yield conn.execution_options(isolation_level="REPEATABLE READ")

    def clock(self) -> ColumnElement[datetime]:
        return func.clock_timestamp(type_=Instant())

    def high_watermark(self, conn: Connection) -> int:
        return int(conn.exec_driver_sql("SELECT high_watermark()").scalar_one())

    def sequence(self, conn: Connection) -> int:
        return int(conn.exec_driver_sql("SELECT last_value FROM event_seq").scalar_one())

    def set_sequence(self, conn: Connection, seq: int) -> None:
        conn.execute(text("SELECT setval('event_seq', :seq)"), {"seq": seq})
        conn.exec_driver_sql("SELECT make_partitions()")

    def quarantine_ids(self, conn: Connection, number: int) -> Sequence[int]:
        ids = text("SELECT nextval('quarantine_id_seq') FROM generate_series(1, :number)")
        return conn.execute(ids, {"number": number}).scalars().all()

    def enter_lane(self, conn: Connection, destination: int, lane: Lane, wanted: int) -> LaneState:
        row = conn.exec_driver_sql(
            "SELECT * FROM enter_lane(%s, %s, %s)", (destination, lane, wanted)
        )
        return LaneState.read(*row.one())

    def jobs_between(
        self, conn: Connection, destination: int, after: int, upto: int
    ) -> list[JobRow]:
        values = (destination, after, upto)
        dense = upto - after <= _DENSE
        with _binary_cursor(conn) as cursor:
            if dense:
                cursor.execute(_DENSE_JOBS, (*values, after, upto))
            else:
                cursor.execute(_SPARSE_JOBS, values)
            return self.job_rows(cursor.fetchall())

    def close_succeeded(
        self, conn: Connection, destination: int, load_id: int, token: FencingToken
    ) -> tuple[tuple[int, str], bool]:
        lane = (destination, token.lane)
        values = (*lane, load_id, token.number, token.holder)
        number, holder, closed = conn.exec_driver_sql(_CLOSE, values).one()
        return (number, holder), closed is not None

    def look_up_keys(self, conn: Connection, rows: Sequence[tuple[int, str, int]]) -> Iterable[Any]:
        values = (
            _ints(row[0] for row in rows),
            [row[1] for row in rows],
            _ints(row[2] for row in rows),
        )
        return conn.exec_driver_sql(_KNOWN_KEYS, values).tuples()

    def write_keys(
        self, conn: Connection, rows: Sequence[tuple[int, str, int, int, bytes]]
    ) -> None:
        # The INSERT waits for a commit that writes one of the keys, so that a retry finds the key.
        values = (
            _ints(row[0] for row in rows),
            [row[1] for row in rows],
            _ints(row[2] for row in rows),
            _ints(row[3] for row in rows),
            [row[4] for row in rows],
        )
        try:
            conn.exec_driver_sql(_WRITE_KEYS, values)
        except IntegrityError as error:
            if getattr(error.orig, "sqlstate", None) == _UNIQUE_VIOLATION:
                raise CommitConflict from None
            raise

    def insert_outcomes(self, conn: Connection, rows: Sequence[OutcomeRow]) -> None:
        conn.exec_driver_sql(_OUTCOMES, (*_columns(rows),))

    def insert_group_jobs(self, conn: Connection, rows: Sequence[GroupJobRow]) -> None:
        destination = rows[0].destination
        _, *columns = _columns(rows)
        conn.exec_driver_sql(_GROUP_JOBS, (destination, *columns))

    def jobs_of_groups(
        self, conn: Connection, destination: int, load_id: int, groups: Sequence[WaitingGroup]
    ) -> list[JobRow]:
        first, last = min(group.seq_from for group in groups), max(group.seq_to for group in groups)
        values = {"load": load_id, "destination": destination, "first": first, "last": last}
        dense = last - first <= _DENSE
        sql = jobs_of_load(groups, _IN_DENSE_RANGE if dense else _OF_DESTINATION)
        with _binary_cursor(conn) as cursor:
            cursor.execute(_PARAMETER.sub(r"%(\1)s", sql), values)
            return self.job_rows(cursor.fetchall())

    def insert_events(
        self,
        conn: Connection,
        new: Sequence[NewEvent],
        parents: Mapping[int, EventRef],
        received_at: datetime | None = None,
    ) -> list[int]:
        jobs = [
            (number, self.destination(job.destination), job.when_error)
            for number, event in enumerate(new, 1)
            for job in event.jobs
        ]
        values = (
            [self.event_type(event.event_type) for event in new],
            [event.payload for event in new],
            _column([event.key for event in new]),
            _column([event.context for event in new]),
            _column([event.version for event in new]),
            _column([event.sent_at for event in new]),
            _column(self.parent_seqs(new, parents, invert)),  # ingest() takes an index as `~index`
            [number for number, _, _ in jobs],
            [destination for _, destination, _ in jobs],
            _column([when_error for _, _, when_error in jobs]),
            received_at,
        )
        try:
            seqs: list[int] = conn.exec_driver_sql(_INGEST, values).scalar_one()
        except IntegrityError as error:
            if getattr(error.orig, "sqlstate", None) == _CHECK_VIOLATION:
                raise NoPartition from None
            raise
        return seqs

    def make_partitions(self) -> None:
        """Create table partitions ahead of the sequence."""
        with self.writing() as conn:
            conn.exec_driver_sql("SELECT make_partitions()")


_CHECK_VIOLATION = "23514"
_UNIQUE_VIOLATION = "23505"
# The largest range that is read whole. If nearly every event of a range has a job, reading the range and
# merging takes half the time of looking up each event.
_DENSE = 5_000
_SPARSE_JOBS = """
SELECT e.seq, e.event_type, e.payload, e.received_at, e.key, e.context, e.version, e.sent_at, e.parent,
       j.when_error
  FROM jobs j JOIN events e ON e.seq = j.seq
 WHERE j.destination = %s AND j.seq > %s AND j.seq <= %s ORDER BY j.seq
"""
_DENSE_JOBS = _SPARSE_JOBS.replace("ORDER BY", "AND e.seq > %s AND e.seq <= %s ORDER BY")
_OF_DESTINATION = "AND g.destination = :destination"
_IN_DENSE_RANGE = (
    f"{_OF_DESTINATION} AND m.seq BETWEEN :first AND :last AND e.seq BETWEEN :first AND :last"
)
_PARAMETER = re.compile(r":(\w+)")
_GROUP_JOBS = """
INSERT INTO group_jobs (destination, seq, listing, created, when_error)
SELECT %s, * FROM unnest(%b::bigint[], %b::bigint[], %b::bool[], %b::text[])
"""
# Locks the fencing token's row first: this waits for a concurrent take-over, and then sees it.
_CLOSE = """
WITH lane AS MATERIALIZED (
    SELECT token, holder FROM fencing_tokens WHERE destination = %s AND lane = %s FOR NO KEY UPDATE),
closed AS (
    UPDATE loads SET state = 'succeeded', finished_at = clock_timestamp()
     WHERE id = %s AND state = 'executing'
       AND EXISTS (SELECT FROM lane WHERE token = %s AND holder = %s)
    RETURNING id)
SELECT token, holder, (SELECT id FROM closed) FROM lane
"""
_INGEST = (
    "SELECT ingest(%b::int[], %b::text[], %b::text[], %b::text[], %b::text[], %b::timestamptz[],"
    " %b::bigint[], %b::int[], %b::int[], %b::text[], %s::timestamptz)"
)

# Arrays make one statement for any number of rows; single parameters are limited to 65,535.
_WRITE_KEYS = """
INSERT INTO keys (received_at, event_type, key, ordinal, seq, digest)
SELECT clock_timestamp(), * FROM unnest(%s::int[], %b::text[], %s::int[], %s::bigint[], %b::bytea[])
"""
# The LIMIT forces an index look-up for each key. Without it the planner reads all keys long after that
# has become slower.
_KNOWN_KEYS = """
SELECT wanted.event_type, wanted.key, wanted.ordinal, stored.seq, stored.digest
  FROM unnest(%s::int[], %b::text[], %s::int[]) AS wanted(event_type, key, ordinal)
 CROSS JOIN LATERAL (
       SELECT seq, digest FROM keys
        WHERE (event_type, key, ordinal) = (wanted.event_type, wanted.key, wanted.ordinal)
        LIMIT 1) AS stored
"""
_OUTCOMES = """
INSERT INTO outcomes (load, seq, destination, state, error, listing)
SELECT * FROM unnest(%b::bigint[], %b::bigint[], %b::int[], %b::text[], %b::text[], %b::bigint[])
"""


@contextmanager
def _binary_cursor(conn: Connection) -> Iterator[Any]:
    """The driver's own cursor: binary results cost a quarter less, and no row is built twice."""
    driver: Any = conn.connection.driver_connection
    try:
        with driver.cursor(binary=True) as cursor:
            yield cursor
    except psycopg.OperationalError as error:
        raise OperationalError(None, None, error) from error
    except psycopg.Error as error:
        raise DBAPIError(None, None, error) from error


def _columns(rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]


def _ints(values: Iterable[int]) -> str:
    """Numbers as PostgreSQL's array text: the driver takes three times as long to adapt a list."""
    return f"{{{','.join(map(str, values))}}}"


def _column(values: list[Any]) -> list[Any] | None:
    """The values as an array, or NULL if all are `None`: unnest() then fills the column with NULLs."""
    return values if any(value is not None for value in values) else None


def _engine(url: URL) -> Engine:
    engine = create_engine(
        url.set(drivername="postgresql+psycopg"),
        connect_args={
            "connect_timeout": _CONNECT_SECONDS,
            "tcp_user_timeout": 30_000,
            "keepalives_idle": 30,
        },
        hide_parameters=True,
        pool_size=5,
        max_overflow=10,
        pool_timeout=_CONNECT_SECONDS,
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _: ConnectionPoolEntry) -> None:
        connection.autocommit = True
        connection.execute(_SESSION)
        connection.autocommit = False

    return engine


def _upgrade(engine: Engine, label: str) -> None:
    """Upgrade the schema, one process at a time, while gateways and loaders continue.

    A change waits for the transactions that use its table, and whatever needs the table then waits
    behind it. So it waits briefly, and tries again.
    """
    with engine.connect() as conn:
        conn.detach()  # so that the connection is closed at the end, which releases the lock
        conn.exec_driver_sql(_NO_TIMEOUTS)
        conn.exec_driver_sql("SELECT pg_advisory_lock(hashtext('blacksmith store upgrade'))")
        conn.exec_driver_sql(f"SET lock_timeout = '{_TABLE_WAIT}ms'")
        conn.commit()
        for _ in range(_UPGRADE_ATTEMPTS):
            try:
                return schema.upgrade(conn, label)
            except OperationalError as error:
                if getattr(error.orig, "sqlstate", None) not in _TABLE_IN_USE:
                    raise
                time.sleep(_UPGRADE_PAUSE)
    raise Unavailable(
        f"the store {label} could not be upgraded in {_UPGRADE_ATTEMPTS} attempts, because other "
        "transactions use its tables; nothing was changed. Run `blacksmith store upgrade` again when "
        "they have ended: `SELECT xact_start, pid, query FROM pg_stat_activity ORDER BY 1` shows them"
    )
