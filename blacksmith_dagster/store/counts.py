"""`store.counts`: jobs by state, events by day, and when a destination event has something to load."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, Row, TextualSelect, column, select

from blacksmith_dagster.store.database import Database
from blacksmith_dagster.store.lanes import last_load_sql
from blacksmith_dagster.store.records import DayCount, JobCounts, Lane, Orphan
from blacksmith_dagster.store.statements import query
from blacksmith_dagster.store.tables import Instant, LoadState, event_totals, loads

if TYPE_CHECKING:
    from blacksmith_dagster.pipeline.application import Blacksmith

_PACE_LOADS = 20  # loads from which the pace is computed


class Counts:
    """What a store counts. `destination` is the path of a destination event."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def of(self, destination: str) -> JobCounts:
        """How many of its jobs are in each state. Raises `NotFound`."""
        values = {"destination": self._database.destination(destination)}
        with self._database.reading() as conn:  # one statement, and so one snapshot
            *numbers, first_due_at, first_received_at = conn.execute(_COUNT_JOBS, values).one()
        # int: PostgreSQL adds bigints up to a numeric.
        made, claimed, created, executing, retrying, discarded, purged_discarded = map(int, numbers)
        pending, ended = executing + retrying, claimed + created
        return JobCounts(
            awaiting=made - claimed,
            executing=executing,
            retrying=retrying,
            succeeded=ended - pending - discarded - purged_discarded,
            discarded=discarded,
            oldest_waiting=min(
                (at for at in (first_due_at, first_received_at) if at is not None), default=None
            ),
        )

    def days(self, since: date) -> Sequence[DayCount]:
        """How many events were received per event type and UTC day, from `since` on."""
        columns, path_of = event_totals.c, self._database.event_type_path
        totals = select(columns.event_type, columns.day, columns.events).where(columns.day >= since)
        with self._database.reading() as conn:
            rows = conn.execute(totals.order_by(columns.day, columns.event_type)).tuples()
            return [DayCount(path_of(event_type), day, events) for event_type, day, events in rows]

    def next_due(self, *destinations: str) -> float | None:
        """Seconds until the load lane of one of these can claim; 0 if it can now, `None` if no jobs
        wait."""
        rows, now = self._of_destinations(_FIRST_DUE, destinations)
        if any(row.first_new is not None for row in rows):
            return 0.0
        first = min((row.first_due_at for row in rows if row.first_due_at), default=None)
        return None if first is None else max(0.0, (first - now).total_seconds())

    def since_load(self, *destinations: str) -> float | None:
        """Seconds since the last load of one of these ended, or began if it is executing, by the
        database's clock; `None` if there has been none."""
        rows, now = self._of_destinations(_LAST_LOADED, destinations)
        last = max((row.loaded_at for row in rows if row.loaded_at), default=None)
        return None if last is None else max(0.0, (now - last).total_seconds())

    def _of_destinations(
        self, statement: TextualSelect, paths: Sequence[str]
    ) -> tuple[Sequence[Row[Any]], datetime]:
        ids = [self._database.destination(path) for path in paths]
        with self._database.reading() as conn:
            rows = conn.execute(statement, {"destinations": ids}).all()
            return rows, self._database.now(conn)

    def pace(self, destination: str) -> float | None:
        """Jobs per second in its last loads, `None` if that is unknown."""
        of_destination = loads.c.destination == self._database.destination(destination)
        last = (
            select(loads.c.jobs, loads.c.started_at, loads.c.finished_at)
            .where(of_destination, loads.c.state == LoadState.SUCCEEDED)
            .order_by(loads.c.id.desc())
            .limit(_PACE_LOADS)
        )
        with self._database.reading() as conn:
            rows = conn.execute(last).all()
        seconds = sum((row.finished_at - row.started_at).total_seconds() for row in rows)
        return sum(row.jobs for row in rows) / seconds if seconds > 0 else None

    def orphans(self, app: Blacksmith) -> Sequence[Orphan]:
        """Destination events with pending jobs that the application does not declare."""
        self._database.read_names()
        undeclared = sorted(self._database.destinations.keys() - app.destination_events.keys())
        waiting = [Orphan(path, self.of(path).pending) for path in undeclared]
        return [orphan for orphan in waiting if orphan.pending]


_LAST_IDS = ", ".join(f"({last_load_sql('id', ':destination', lane)})" for lane in Lane)
_COUNT_JOBS = query(
    f"""
WITH last AS ({last_load_sql("position, claimed", ":destination", Lane.LOAD)}),
waiting AS (
    SELECT coalesce(sum(jobs), 0) AS jobs, min(due_at) AS first_due_at
      FROM job_groups WHERE destination = :destination AND load IS NULL),
totals AS (
    SELECT coalesce(sum(jobs), 0) AS jobs, coalesce(sum(purged_discarded), 0) AS purged_discarded
      FROM job_totals WHERE destination = :destination)
SELECT totals.jobs + (SELECT count(*) FROM jobs WHERE destination = :destination
                         AND seq > coalesce((SELECT upto FROM counter), 0)) AS made,
       coalesce((SELECT claimed FROM last), 0) AS claimed,
       coalesce((SELECT sum(created_jobs) FROM replays WHERE destination = :destination), 0)
       AS created,
       coalesce((SELECT sum(jobs) FROM loads WHERE state = 'executing' AND id IN ({_LAST_IDS})), 0)
       AS executing,
       waiting.jobs AS retrying,
       coalesce((SELECT sum(discarded) FROM loads
                  WHERE destination = :destination AND discarded > 0), 0) AS discarded,
       totals.purged_discarded,
       waiting.first_due_at,
       (SELECT received_at FROM events WHERE seq = (
           SELECT seq FROM jobs WHERE destination = :destination
              AND seq > coalesce((SELECT position FROM last), 0) ORDER BY seq LIMIT 1))
       AS first_received_at
  FROM waiting, totals""",
    *(column(name, BigInteger) for name in ("made", "claimed", "created", "executing", "retrying")),
    column("discarded", BigInteger),
    column("purged_discarded", BigInteger),
    column("first_due_at", Instant),
    column("first_received_at", Instant),
)
"""How many jobs of a `destination` are in each state, and since when the first of them wait.

`made` counts those in the log, `created` those that replays have created. The log is in order: none has
waited as long as the first above the load lane's position."""

_LAST_POSITION = last_load_sql("position", "d.id", Lane.LOAD)
_FIRST_DUE = query(
    f"""
SELECT (SELECT min(due_at) FROM job_groups
         WHERE destination = d.id AND load IS NULL AND lane = 'load') AS first_due_at,
       (SELECT seq FROM jobs WHERE destination = d.id AND seq > coalesce(({_LAST_POSITION}), 0)
         ORDER BY seq LIMIT 1) AS first_new
  FROM destination_events d WHERE d.id IN :destinations""",
    column("first_due_at", Instant),
    column("first_new", BigInteger),
    lists=["destinations"],
)
"""When the first job of each destination event is due again, and its first new job."""

_LAST_LOADED_AT = last_load_sql("coalesce(finished_at, started_at)", "d.id", Lane.LOAD)
_LAST_LOADED = query(
    f"SELECT ({_LAST_LOADED_AT}) AS loaded_at FROM destination_events d WHERE d.id IN :destinations",
    column("loaded_at", Instant),
    lists=["destinations"],
)
"""When the last load of each destination event ended, or began if it is executing."""
