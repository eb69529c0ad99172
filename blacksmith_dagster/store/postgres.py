"""The store on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, create_engine, event, func, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import IntegrityError
from sqlalchemy.pool import ConnectionPoolEntry

from blacksmith_dagster.store import schema
from blacksmith_dagster.store.faults import committing, told
from blacksmith_dagster.store.interface import NewEvent
from blacksmith_dagster.store.sql import SQLStore
from blacksmith_dagster.store.tables import Instant

_CONNECT_SECONDS = 10
_SESSION = (
    "SET timezone = 'UTC'; SET default_transaction_isolation = 'read committed';"
    " SET statement_timeout = '5min'; SET lock_timeout = '1min';"
    " SET idle_in_transaction_session_timeout = '1min'"
)


class PostgresStore(SQLStore):
    """A database, shared by any number of machines.

    Two stores can share a database by schemas of their own: add
    `?options=-csearch_path%3D<schema>` to the URL.
    """

    def __init__(self, url: URL, *, upgrade: bool = False) -> None:
        engine = _engine(url)
        label = f"postgresql://{url.host or ''}:{url.port or 5432}/{url.database or ''}"
        try:
            with told(label):
                if upgrade:
                    _upgrade(engine)
                schema.check(engine, label)
            super().__init__(engine, label)
        except BaseException:
            engine.dispose()
            raise

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that may write."""
        with told(self.label), self.engine.connect() as conn:
            yield conn
            with committing(self.label):
                conn.commit()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection whose statements are each a transaction that only reads."""
        with told(self.label), self.engine.connect() as conn:
            yield conn.execution_options(isolation_level="AUTOCOMMIT")

    def _clock(self) -> ColumnElement[datetime]:
        return func.clock_timestamp(type_=Instant())

    def _watermark(self, conn: Connection) -> int:
        return int(conn.exec_driver_sql("SELECT watermark()").scalar_one())

    def _sequence(self, conn: Connection) -> int:
        return int(conn.exec_driver_sql("SELECT last_value FROM event_seq").scalar_one())

    def _set_sequence(self, conn: Connection, seq: int) -> None:
        conn.execute(text("SELECT setval('event_seq', :seq)"), {"seq": seq})
        conn.exec_driver_sql("SELECT make_partitions()")

    def _append(self, conn: Connection, new: Sequence[NewEvent]) -> list[int]:
        made = [
            (number, self._destination(job.destination), job.when_error)
            for number, each in enumerate(new, 1)
            for job in each.jobs
        ]
        given = (
            [self._kind(each.kind) for each in new],
            [each.payload for each in new],
            _column([each.key for each in new]),
            _column([each.context for each in new]),
            _column([each.version for each in new]),
            _column([each.sent_at for each in new]),
            _column([each.parent and self._epochs.seq_of(each.parent) for each in new]),
            [number for number, _, _ in made],
            [destination for _, destination, _ in made],
            _column([error for _, _, error in made]),
        )
        try:
            with conn.begin_nested() if conn.in_transaction() else conn.begin():
                seqs: list[int] = conn.exec_driver_sql(_INGEST, given).scalar_one()
        except IntegrityError as error:
            if getattr(error.orig, "sqlstate", None) != _NO_PARTITION:
                raise
            with self.engine.begin() as other:
                other.exec_driver_sql("SELECT make_partitions()")
            seqs = conn.exec_driver_sql(_INGEST, given).scalar_one()
        return seqs

    def maintain(self) -> None:
        """Also make partitions ahead."""
        with self.writing() as conn:
            conn.exec_driver_sql("SELECT make_partitions()")
        super().maintain()


_NO_PARTITION = "23514"
_INGEST = (
    "SELECT ingest(%b::int[], %b::text[], %b::text[], %b::text[], %b::text[], %b::timestamptz[],"
    " %b::bigint[], %b::int[], %b::int[], %b::text[])"
)


def _column(values: list[Any]) -> list[Any] | None:
    """The values as an array, or no array if there are none: unnest then fills it with NULLs."""
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


def _upgrade(engine: Engine) -> None:
    """Upgrade the schema, one process at a time."""
    with engine.connect() as lock:
        lock.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext('blacksmith store upgrade'))")
        schema.upgrade(engine)
        lock.rollback()
