"""Lists the table partitions of the log in PostgreSQL, and drops those that are purged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection
from sqlalchemy.exc import OperationalError

STEP = 5_000_000
"""Sequence numbers per partition; `make_partitions()` in the schema has the same number."""

_LOCK_NOT_AVAILABLE = "55P03"
_WAIT = "10s"
# Marks a table that is to be dropped, so that the next purge finds the tables that a killed one left,
# and drops only tables of the store.
_DROP_COMMENT = "blacksmith: purged, to be dropped"


class Partition(NamedTuple):
    """The table partition of the log with the sequence numbers from `first` to `last`."""

    number: int
    first: int
    last: int

    def contains(self, seq: ColumnElement[int]) -> ColumnElement[bool]:
        """Whether a sequence number is in this partition."""
        return seq.between(self.first, self.last)


class Partitions:
    """The table partitions of a log."""

    def __init__(self, reading: Callable[[], AbstractContextManager[Connection]]) -> None:
        self._reading = reading

    def in_use(self, conn: Connection) -> Sequence[Partition]:
        """The partitions that are not to be dropped, the oldest first."""
        return [partition for partition, planned in self._attached(conn) if not planned]

    def planned_drops(self, conn: Connection) -> Sequence[Partition]:
        """The partitions that are to be dropped, but whose events could not be detached yet."""
        return [partition for partition, planned in self._attached(conn) if planned]

    def _attached(self, conn: Connection) -> Sequence[tuple[Partition, bool]]:
        rows = conn.exec_driver_sql(_ATTACHED, (_DROP_COMMENT,))
        return [(Partition(n, n * STEP, (n + 1) * STEP - 1), planned) for n, planned in rows]

    def plan_drop(self, conn: Connection, partition: Partition) -> None:
        """Mark a partition to be dropped."""
        for table in ("jobs", "events"):
            conn.exec_driver_sql(
                f"COMMENT ON TABLE {table}_{partition.number:d} IS '{_DROP_COMMENT}'"
            )

    def drop_planned(self) -> Sequence[str]:
        """Drop the tables of marked partitions; returns those that a reader has locked.

        A table is detached first, so that the lock on it stops neither reads nor writes of the log.
        """
        postponed = []
        with self._reading() as conn, _lock_timeout(conn):
            for table, parent, pending in conn.exec_driver_sql(
                _PLANNED_DROPS, (_DROP_COMMENT,)
            ).all():
                try:
                    if parent:
                        mode = "FINALIZE" if pending else "CONCURRENTLY"
                        conn.exec_driver_sql(
                            f"ALTER TABLE {parent} DETACH PARTITION {table} {mode}"
                        )
                    conn.exec_driver_sql(f"DROP TABLE {table}")
                except OperationalError as error:
                    if getattr(error.orig, "sqlstate", None) != _LOCK_NOT_AVAILABLE:
                        raise
                    postponed.append(table)
        return postponed


@contextmanager
def _lock_timeout(conn: Connection) -> Iterator[None]:
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
# Jobs are dropped before events, so that a join finds both or no job. regclass::text quotes and
# qualifies names where needed.
_PLANNED_DROPS = """
SELECT c.oid::regclass::text, i.inhparent::regclass::text, i.inhdetachpending
  FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
 WHERE c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'events'::regclass)
   AND obj_description(c.oid, 'pg_class') = %s
 ORDER BY c.relname DESC
"""
