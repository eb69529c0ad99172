"""`store.counts`: jobs by state, events by day, and when a destination event has something to load."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

from sqlalchemy import Row, Select, and_, bindparam, func, select

from blacksmith_dagster.store.database import Database
from blacksmith_dagster.store.lanes import last_load
from blacksmith_dagster.store.records import DayCount, JobCounts, Lane, Orphan
from blacksmith_dagster.store.tables import (
    LoadState,
    counter,
    destination_events,
    event_totals,
    events,
    job_groups,
    job_totals,
    jobs,
    loads,
    replays,
)

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
            row = conn.execute(_COUNT_JOBS, values).one()
        waiting_since = [row.first_due_at, row.first_received_at]
        return JobCounts(
            awaiting=row.counted + row.uncounted - row.claimed,
            executing=row.executing,
            retrying=row.retrying,
            # int: PostgreSQL adds bigints up to a numeric.
            succeeded=int(
                row.claimed + row.created_jobs - row.executing_or_retrying - row.ever_discarded
            ),
            discarded=row.discarded,
            oldest_waiting=min((at for at in waiting_since if at is not None), default=None),
        )

    def days(self, since: date) -> Sequence[DayCount]:
        """How many events were received per event type and UTC day, from `since` on."""
        columns, paths = event_totals.c, self._database.event_type_paths
        totals = select(columns.event_type, columns.day, columns.events).where(columns.day >= since)
        with self._database.reading() as conn:
            rows = conn.execute(totals.order_by(columns.day, columns.event_type)).tuples()
            return [DayCount(paths[event_type], day, events) for event_type, day, events in rows]

    def next_due(self, *destinations: str) -> float | None:
        """Seconds until the load lane of one of these can claim; 0 if it can now, `None` if no jobs
        wait."""
        return min(
            (
                0.0
                if row.first_new is not None
                else max(0.0, (row.first_due_at - row.now).total_seconds())
                for row in self._of_destinations(_FIRST_DUE, destinations)
                if row.first_new is not None or row.first_due_at is not None
            ),
            default=None,
        )

    def since_load(self, *destinations: str) -> float | None:
        """Seconds since the last load of one of these ended, or began if it is executing, by the
        database's clock; `None` if there has been none."""
        return min(
            (
                max(0.0, (row.now - row.loaded_at).total_seconds())
                for row in self._of_destinations(_LAST_LOADED, destinations)
                if row.loaded_at
            ),
            default=None,
        )

    def _of_destinations(self, statement: Select[Any], paths: Sequence[str]) -> Sequence[Row[Any]]:
        ids = [self._database.destination(path) for path in paths]
        statement = statement.add_columns(self._database.clock().label("now"))
        with self._database.reading() as conn:
            return conn.execute(statement, {"destinations": ids}).all()

    def pace(self, destination: str) -> float | None:
        """Jobs per second in its last loads, `None` if there were none."""
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


# ------------------------------------------------------------------------------- fragments

_destination: Any = bindparam("destination")


def _or_zero(statement: Any) -> Any:
    return func.coalesce(statement.scalar_subquery(), 0)


def _of_last_load(column: Any, lane: Lane, destination: Any) -> Any:
    return last_load(destination, lane, column).correlate(destination_events)


def _position_of(destination: Any) -> Any:
    """The sequence number up to which the load lane has claimed new jobs."""
    return _or_zero(_of_last_load(loads.c.position, Lane.LOAD, destination))


def _first_due_at(destination: Any, *conditions: Any) -> Any:
    """When the first of the waiting job groups is due."""
    waiting = and_(
        job_groups.c.destination == destination, job_groups.c.load.is_(None), *conditions
    )
    first = select(func.min(job_groups.c.due_at)).where(waiting)
    return first.correlate(destination_events).scalar_subquery()


def _first_new_seq(destination: Any) -> Any:
    """The first job above the position. The log is in order: no other has waited as long."""
    first = (
        select(jobs.c.seq)
        .where(jobs.c.destination == destination, jobs.c.seq > _position_of(destination))
        .order_by(jobs.c.seq)
        .limit(1)
    )
    return first.correlate(destination_events).scalar_subquery()


_IS_WAITING_GROUP = and_(job_groups.c.destination == _destination, job_groups.c.load.is_(None))
"""Whether a job group of the `destination` waits to run again."""

_IS_OPEN_LOAD = (
    loads.c.id.in_(
        [_of_last_load(loads.c.id, lane, _destination).scalar_subquery() for lane in Lane]
    ),
    loads.c.state == LoadState.EXECUTING,
)
"""Whether a load of the `destination` is open: only the last load of a lane can be."""

_counted_jobs = select(job_totals.c.jobs).where(job_totals.c.destination == _destination)
_uncounted_jobs = select(func.count()).where(
    jobs.c.destination == _destination, jobs.c.seq > _or_zero(select(counter.c.upto))
)
_claimed_jobs = _of_last_load(loads.c.claimed, Lane.LOAD, _destination)
_created_jobs = select(func.sum(replays.c.created_jobs)).where(
    replays.c.destination == _destination
)
_executing_jobs = _or_zero(select(func.sum(loads.c.jobs)).where(*_IS_OPEN_LOAD))
_retrying_jobs = _or_zero(select(func.sum(job_groups.c.jobs)).where(_IS_WAITING_GROUP))
_discarded_jobs = _or_zero(
    select(func.sum(loads.c.discarded)).where(
        loads.c.destination == _destination, loads.c.discarded > 0
    )
)
_purged_discarded_jobs = _or_zero(
    select(job_totals.c.purged_discarded).where(job_totals.c.destination == _destination)
)
_first_received_at = select(events.c.received_at).where(
    events.c.seq == _first_new_seq(_destination)
)
_COUNT_JOBS = select(
    _or_zero(_counted_jobs).label("counted"),
    _or_zero(_uncounted_jobs).label("uncounted"),
    _or_zero(_claimed_jobs).label("claimed"),
    _or_zero(_created_jobs).label("created_jobs"),
    _executing_jobs.label("executing"),
    _retrying_jobs.label("retrying"),
    (_executing_jobs + _retrying_jobs).label("executing_or_retrying"),
    _discarded_jobs.label("discarded"),
    (_discarded_jobs + _purged_discarded_jobs).label("ever_discarded"),
    _first_due_at(_destination).label("first_due_at"),
    _first_received_at.scalar_subquery().label("first_received_at"),
)

_of_destinations = destination_events.c.id.in_(bindparam("destinations", expanding=True))
_FIRST_DUE = select(
    _first_due_at(destination_events.c.id, job_groups.c.lane == Lane.LOAD).label("first_due_at"),
    _first_new_seq(destination_events.c.id).label("first_new"),
).where(_of_destinations)
_loaded_at = func.coalesce(loads.c.finished_at, loads.c.started_at)
_LAST_LOADED = select(
    _of_last_load(_loaded_at, Lane.LOAD, destination_events.c.id)
    .scalar_subquery()
    .label("loaded_at"),
).where(_of_destinations)
