"""PostgreSQL's partitions of the log: which there are, and dropping those that nothing needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import ColumnElement, Connection
from sqlalchemy.exc import OperationalError

if TYPE_CHECKING:
    from blacksmith_dagster.store.postgres import PostgresStore

STEP = 5_000_000
"""Sequence numbers of a partition, as `make_partitions` of the schema has it."""

_LOCK_NOT_AVAILABLE = "55P03"
_WAIT = "10s"
# On a table that is to be dropped: a purge that was killed is known by it, and no table of another.
_DROP_COMMENT = "blacksmith: purged, to be dropped"


class Partition(NamedTuple):
    """The part of the log from `first` to `last`."""

    number: int
    first: int
    last: int

    def holds(self, seq: ColumnElement[int]) -> ColumnElement[bool]:
        """Whether a sequence number is in it."""
        return seq.between(self.first, self.last)


class Partitions:
    """The partitions of a store."""

    def __init__(self, store: PostgresStore) -> None:
        self._store = store

    def listed(self, conn: Connection) -> Sequence[Partition]:
        """Those that are not to be dropped, the oldest first."""
        return [of for of, dropped in self._attached(conn) if not dropped]

    def planned_drops(self, conn: Connection) -> Sequence[Partition]:
        """Those that are to be dropped, and whose events could not be detached yet."""
        return [of for of, dropped in self._attached(conn) if dropped]

    def _attached(self, conn: Connection) -> Sequence[tuple[Partition, bool]]:
        rows = conn.exec_driver_sql(_ATTACHED, (_DROP_COMMENT,))
        return [(Partition(n, n * STEP, (n + 1) * STEP - 1), dropped) for n, dropped in rows]

    def plan_drop(self, conn: Connection, partition: Partition) -> None:
        """Decide that a partition is dropped."""
        for table in ("jobs", "events"):
            conn.exec_driver_sql(
                f"COMMENT ON TABLE {table}_{partition.number:d} IS '{_DROP_COMMENT}'"
            )

    def drop_planned(self) -> Sequence[str]:
        """Drop what is planned to be dropped; returns the tables that a reader keeps from being dropped.

        A table is detached first, so that nobody waits for its lock: those who write and read go on.
        """
        postponed = []
        with self._store.reading() as conn, _patience(conn):
            for table, parent, pending in conn.exec_driver_sql(
                _PLANNED_DROPS, (_DROP_COMMENT,)
            ).all():
                try:
                    if parent:
                        how = "FINALIZE" if pending else "CONCURRENTLY"
                        conn.exec_driver_sql(f"ALTER TABLE {parent} DETACH PARTITION {table} {how}")
                    conn.exec_driver_sql(f"DROP TABLE {table}")
                except OperationalError as error:
                    if getattr(error.orig, "sqlstate", None) != _LOCK_NOT_AVAILABLE:
                        raise
                    postponed.append(table)
        return postponed


@contextmanager
def _patience(conn: Connection) -> Iterator[None]:
    """Wait for locks no longer than `_WAIT`."""
    before = conn.exec_driver_sql("SHOW lock_timeout").scalar_one()
    conn.exec_driver_sql(f"SET lock_timeout = '{_WAIT}'")
    try:
        yield
    finally:
        conn.exec_driver_sql(f"SET lock_timeout = '{before}'")


_ATTACHED = """
SELECT substring(c.relname from '^events_(\\d+)$')::bigint,
       coalesce(obj_description(c.oid, 'pg_class') = %s, false)
  FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
 WHERE i.inhparent = 'events'::regclass AND NOT i.inhdetachpending ORDER BY 1
"""
# Jobs before events: who joins them finds both or no job. Names are quoted and qualified where needed.
_PLANNED_DROPS = """
SELECT c.oid::regclass::text, i.inhparent::regclass::text, i.inhdetachpending
  FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
 WHERE c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'events'::regclass)
   AND obj_description(c.oid, 'pg_class') = %s
 ORDER BY c.relname DESC
"""
