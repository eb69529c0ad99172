"""Counts jobs by state and events by day, and says when a destination event has something to load."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, bindparam, func, select

from blacksmith_dagster.store.interface import Counts, Lane
from blacksmith_dagster.store.loads import last_load
from blacksmith_dagster.store.tables import (
    EXECUTING,
    LANE_NUMBERS,
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

_LOAD_LANE = LANE_NUMBERS[Lane.LOAD]


def count_jobs(conn: Connection, destination: int) -> Counts:
    """The jobs of a destination event by state. One statement, and so one snapshot."""
    row = conn.execute(_COUNT_JOBS, {"destination": destination}).one()
    waiting_since = [row.first_due_at, row.first_received_at]
    return Counts(
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


def next_due(
    conn: Connection, destinations: Sequence[int], clock: ColumnElement[datetime]
) -> float | None:
    """Seconds until the load lane of one of these can claim; 0 if it can now, `None` if no jobs wait."""
    statement = _FIRST_DUE.add_columns(clock.label("now"))
    rows = conn.execute(statement, {"destinations": destinations}).all()
    seconds = [
        0.0 if row.first_new is not None else max(0.0, (row.first_due_at - row.now).total_seconds())
        for row in rows
        if row.first_new is not None or row.first_due_at is not None
    ]
    return min(seconds, default=None)


def since_load(
    conn: Connection, destinations: Sequence[int], clock: ColumnElement[datetime]
) -> float | None:
    """Seconds since a load of one of these ended or began, `None` if there has been none."""
    statement = _LAST_LOADED.add_columns(clock.label("now"))
    rows = conn.execute(statement, {"destinations": destinations}).all()
    return min(
        (max(0.0, (row.now - row.loaded_at).total_seconds()) for row in rows if row.loaded_at),
        default=None,
    )


def count_events_by_day(conn: Connection, since: date) -> Sequence[Row[Any]]:
    """How many events of each type were received per day, as far as the totals count the log."""
    columns = event_totals.c
    totals = select(columns.event_type, columns.day, columns.events).where(columns.day >= since)
    return conn.execute(totals.order_by(columns.day, columns.event_type)).all()


# ------------------------------------------------------------------------------- fragments

_destination: Any = bindparam("destination")


def _or_zero(statement: Any) -> Any:
    return func.coalesce(statement.scalar_subquery(), 0)


def _of_last_load(column: Any, lane: int, destination: Any) -> Any:
    return last_load(destination, lane, column).correlate(destination_events)


def position_of(destination: Any) -> Any:
    """The sequence number up to which the load lane has claimed new jobs."""
    return _or_zero(_of_last_load(loads.c.position, _LOAD_LANE, destination))


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
        .where(jobs.c.destination == destination, jobs.c.seq > position_of(destination))
        .order_by(jobs.c.seq)
        .limit(1)
    )
    return first.correlate(destination_events).scalar_subquery()


IS_WAITING_GROUP = and_(job_groups.c.destination == _destination, job_groups.c.load.is_(None))
"""Whether a job group of the `destination` waits to run again."""

IS_OPEN_LOAD = (
    loads.c.id.in_(
        [
            _of_last_load(loads.c.id, lane, _destination).scalar_subquery()
            for lane in LANE_NUMBERS.values()
        ]
    ),
    loads.c.state == EXECUTING,
)
"""Whether a load of the `destination` is open: only the last load of a lane can be."""

_counted_jobs = select(job_totals.c.jobs).where(job_totals.c.destination == _destination)
_uncounted_jobs = select(func.count()).where(
    jobs.c.destination == _destination, jobs.c.seq > _or_zero(select(counter.c.upto))
)
_claimed_jobs = _of_last_load(loads.c.claimed, _LOAD_LANE, _destination)
_created_jobs = select(func.sum(replays.c.created_jobs)).where(
    replays.c.destination == _destination
)
_executing_jobs = _or_zero(select(func.sum(loads.c.jobs)).where(*IS_OPEN_LOAD))
_retrying_jobs = _or_zero(select(func.sum(job_groups.c.jobs)).where(IS_WAITING_GROUP))
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
    _first_due_at(destination_events.c.id, job_groups.c.lane == _LOAD_LANE).label("first_due_at"),
    _first_new_seq(destination_events.c.id).label("first_new"),
).where(_of_destinations)
_loaded_at = func.coalesce(loads.c.finished_at, loads.c.started_at)
_LAST_LOADED = select(
    _of_last_load(_loaded_at, _LOAD_LANE, destination_events.c.id)
    .scalar_subquery()
    .label("loaded_at"),
).where(_of_destinations)
