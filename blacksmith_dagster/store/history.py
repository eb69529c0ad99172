"""`store.history`: every transition of an event's jobs, the jobs in a state, and stored events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from msgspec.structs import replace
from sqlalchemy import (
    Connection,
    Row,
    Select,
    Text,
    and_,
    bindparam,
    cast,
    exists,
    false,
    literal,
    null,
    or_,
    select,
    text,
    true,
    union_all,
)

from blacksmith_dagster.errors import Gone, NotFound, UsageError
from blacksmith_dagster.store.counts import IS_OPEN_LOAD, IS_WAITING_GROUP, position_of
from blacksmith_dagster.store.database import Database
from blacksmith_dagster.store.group_members import JOB_COLUMNS, RETRY_ERROR, select_members
from blacksmith_dagster.store.records import JobState, Transition, Window
from blacksmith_dagster.store.retention import why_gone
from blacksmith_dagster.store.statements import batched
from blacksmith_dagster.store.tables import (
    IS_DISCARDED,
    LoadState,
    OutcomeState,
    destination_events,
    events,
    group_jobs,
    job_groups,
    jobs,
    loads,
    outcomes,
    time_index,
)

_BATCH = 10_000  # values in one statement, which accepts 65,535 at most


class History:
    """What became of the jobs of events."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def transitions(self, event_id: str) -> Sequence[Transition]:
        """Every transition of every job of an event, in order of time.

        Raises `NotFound`; `Gone` if the event may have been purged.
        """
        seq = self._database.epochs.seq_of(event_id)
        with self._database.reading() as conn:
            return _transitions(conn, seq, existing_event(conn, event_id, seq).received_at)

    def jobs(
        self, state: str, destination: str | None = None, limit: int = 100
    ) -> Sequence[JobState]:
        """Jobs in a state: 'discarded', 'retrying' (failed or unknown, due again), 'executing' or
        'awaiting'."""
        paths = list(self._database.destinations) if destination is None else [destination]
        states: list[JobState] = []
        with self._database.reading() as conn:
            for path in paths:
                rows = _jobs_in_state(
                    conn, state, self._database.destination(path), limit - len(states)
                )
                states += [job_state(self._database, path, state, row) for row in rows]
        return states


def job_state(database: Database, destination: str, state: str, row: Any) -> JobState:
    """A row with seq, event type, received_at, attempts, error and due_at as the state of a job."""
    return JobState(
        destination,
        database.epochs.id_of(row.seq),
        database.event_type_paths[row.event_type],
        state,
        row.received_at,
        row.attempts,
        row.error,
        row.due_at,
    )


# ---------------------------------------------------------------------------------------- events


def existing_event(conn: Connection, event_id: str, seq: int) -> Row[Any]:
    """The row of an event. Raises `NotFound`; `Gone` if it may have been purged."""
    row = conn.execute(select(events).where(events.c.seq == seq)).first()
    if row is None:
        if (reason := why_gone(conn, seq)) is not None:
            raise Gone(f"event {event_id} has been purged: {reason}")
        raise NotFound(f"event {event_id} is not in this store")
    return row


def newest_events(conn: Connection, event_type: int | None, limit: int) -> Sequence[Row[Any]]:
    """The rows of the newest events, of one type or of all."""
    statement = select(events).order_by(events.c.seq.desc()).limit(limit)
    if event_type is not None:
        statement = statement.where(events.c.event_type == event_type)
    return conn.execute(statement).all()


def destinations_by_event(conn: Connection, seqs: Sequence[int]) -> Mapping[int, Sequence[str]]:
    """The paths of the destination events that have a job of each event."""
    paths: dict[int, list[str]] = {}
    for batch in batched(seqs, _BATCH):
        for seq, path in conn.execute(_select_destinations(batch)):
            paths.setdefault(seq, []).append(path)
    return paths


def _select_destinations(seqs: Sequence[int]) -> Select[Any]:
    created_later = select(group_jobs.c.seq, group_jobs.c.destination).where(
        # All destination events are listed because they come first in the index: this costs one
        # look-up for each.
        group_jobs.c.destination.in_(_all_destinations),
        group_jobs.c.seq.in_(seqs),
        group_jobs.c.created,
    )
    in_log = select(jobs.c.seq, jobs.c.destination).where(jobs.c.seq.in_(seqs))
    event_jobs = union_all(in_log, created_later).subquery()
    return (
        select(event_jobs.c.seq, destination_events.c.path)
        .join(destination_events, destination_events.c.id == event_jobs.c.destination)
        .order_by(destination_events.c.path)
    )


def events_as_jobs(conn: Connection, seqs: Sequence[int]) -> Any:
    """Events as rows of JOB_COLUMNS, without a `when_error`."""
    columns = [null() if column is jobs.c.when_error else column for column in JOB_COLUMNS]
    rows: list[Any] = []
    for batch in batched(seqs, _BATCH):
        rows += conn.execute(select(*columns).where(events.c.seq.in_(batch))).all()
    return rows


def window(conn: Connection, start: datetime, end: datetime, last: int) -> Window:
    """The sequence numbers between the time index's last row up to `start` and its first from `end`.

    `last` is the highest sequence number; it is used if no row is as late as `end`.
    """
    low = (
        select(time_index.c.low)
        .where(time_index.c.at <= start)
        .order_by(time_index.c.at.desc())
        .limit(1)
    )
    high = (
        select(time_index.c.high).where(time_index.c.at >= end).order_by(time_index.c.at).limit(1)
    )
    after, upto = conn.execute(low).scalar(), conn.execute(high).scalar()
    return Window(after or 0, last if upto is None else upto)


# ---------------------------------------------------------------------------------------- history

_seq: Any = bindparam("seq")
_all_destinations = select(destination_events.c.id)
_listed_by_replay = and_(group_jobs.c.destination.in_(_all_destinations), group_jobs.c.seq == _seq)
# The jobs of the event, by destination event. `created`: a replay created it, so it is not in the log.
_event_jobs = union_all(
    select(jobs.c.destination, false().label("created")).where(jobs.c.seq == _seq),
    select(group_jobs.c.destination, true()).where(_listed_by_replay, group_jobs.c.created),
).subquery()
_first_load = (
    select(loads.c.id)
    .where(loads.c.destination == _event_jobs.c.destination, loads.c.seq_to >= _seq)
    .order_by(loads.c.seq_to)
    .limit(1)
    .scalar_subquery()
)
_in_group = and_(
    job_groups.c.destination == _event_jobs.c.destination,
    job_groups.c.seq_from <= _seq,
    job_groups.c.seq_to >= _seq,
    or_(
        and_(job_groups.c.listing.is_(None), ~_event_jobs.c.created),
        exists()
        .where(outcomes.c.listing == job_groups.c.listing, outcomes.c.seq == _seq)
        .correlate(job_groups, _event_jobs),
        exists()
        .where(
            group_jobs.c.destination == job_groups.c.destination,
            group_jobs.c.seq == _seq,
            group_jobs.c.listing == job_groups.c.listing,
        )
        .correlate(job_groups, _event_jobs),
    ),
)
# Every load of the job: the first, whose range holds it, and those that took one of its job groups.
_loads_of_job = union_all(
    select(_event_jobs.c.destination, _first_load.label("load"), null().label("replay")).where(
        ~_event_jobs.c.created
    ),
    select(_event_jobs.c.destination, job_groups.c.load, job_groups.c.replay)
    .select_from(_event_jobs)
    .join(job_groups, _in_group)
    .where(job_groups.c.load.is_not(None)),
).subquery()
_ATTEMPTS = (
    select(
        destination_events.c.path,
        loads.c.id,
        loads.c.state,
        loads.c.attempt,
        loads.c.started_at,
        loads.c.finished_at,
        loads.c.run,
        loads.c.error,
        outcomes.c.state.label("outcome"),
        outcomes.c.error.label("outcome_error"),
        _loads_of_job.c.replay,
    )
    .select_from(_loads_of_job)
    .join(destination_events, destination_events.c.id == _loads_of_job.c.destination)
    .outerjoin(loads, loads.c.id == _loads_of_job.c.load)
    .outerjoin(outcomes, and_(outcomes.c.load == loads.c.id, outcomes.c.seq == _seq))
    .order_by(destination_events.c.path, loads.c.id)
)
_DUE_AGAIN = (
    select(destination_events.c.path, job_groups.c.due_at)
    .select_from(_event_jobs)
    .join(job_groups, _in_group)
    .join(destination_events, destination_events.c.id == _event_jobs.c.destination)
    .where(job_groups.c.load.is_(None))
)
# A replay's listing has the id of its first job group; that group's `due_at` is when it was planned.
_REPLAYS = (
    select(
        destination_events.c.path, job_groups.c.due_at, job_groups.c.replay, group_jobs.c.created
    )
    .select_from(group_jobs)
    .join(job_groups, job_groups.c.id == group_jobs.c.listing)
    .join(destination_events, destination_events.c.id == group_jobs.c.destination)
    .where(_listed_by_replay)
)


def _transitions(conn: Connection, seq: int, received_at: datetime) -> Sequence[Transition]:
    """All transitions of the jobs of an event, in order of time."""
    transitions: list[Transition] = []
    acknowledged: set[str] = set()
    for path, planned_at, replay, created in conn.execute(_REPLAYS, {"seq": seq}):
        if created:
            acknowledged.add(path)
            transitions.append(Transition(path, "acknowledged", planned_at, 0, replay=replay))
        transitions.append(Transition(path, "awaiting", planned_at, 0, replay=replay))
    due = dict(conn.execute(_DUE_AGAIN, {"seq": seq}).tuples().all())
    for row in conn.execute(_ATTEMPTS, {"seq": seq}):
        if row.path not in acknowledged:
            acknowledged.add(row.path)
            transitions.append(Transition(row.path, "acknowledged", received_at, 0))
            transitions.append(Transition(row.path, "awaiting", received_at, 0))
        if row.id is None:
            continue
        load = {"attempt": row.attempt, "load_id": row.id, "run": row.run, "replay": row.replay}
        transitions.append(Transition(row.path, "executing", row.started_at, **load))
        if row.state == LoadState.EXECUTING:
            continue
        state, error = row.state, row.error
        if state == LoadState.RELEASED:
            state = "awaiting"
        elif row.outcome is not None:
            # A job that was replayed had been discarded.
            replayed = row.outcome == OutcomeState.REPLAYED
            state, error = "discarded" if replayed else row.outcome, row.outcome_error
        transitions.append(Transition(row.path, state, row.finished_at, error=error, **load))
    transitions.sort(key=lambda transition: transition.at)
    last = {transition.destination: index for index, transition in enumerate(transitions)}
    for path, due_at in due.items():
        index = last[path]
        transitions[index] = replace(transitions[index], due_at=due_at)
    return transitions


# ---------------------------------------------------------------------------------------- jobs


def _jobs_in_state(
    conn: Connection, state: str, destination: int, limit: int
) -> Sequence[Row[Any]]:
    """Jobs in a state, with seq, event type, received_at, attempts, error and due_at."""
    if state not in _JOBS_IN_STATE:
        raise UsageError(f"unknown state {state!r}; use one of {', '.join(_JOBS_IN_STATE)}")
    values = {"destination": destination, "limit": limit}
    return conn.execute(_JOBS_IN_STATE[state], values).all()


_destination: Any = bindparam("destination")
_limit: Any = bindparam("limit")
_EVENT_COLUMNS = (events.c.seq, events.c.event_type, events.c.received_at)
_NO_ERROR = cast(null(), Text).label("error")
_NOT_DUE = cast(null(), job_groups.c.due_at.type).label("due_at")
_attempt_of_load = (
    select(loads.c.attempt)
    .where(loads.c.id == job_groups.c.load)
    .scalar_subquery()
    .label("attempts")
)


def _select_jobs(attempts: Any, error: Any, due_at: Any) -> Any:
    return select(
        *_EVENT_COLUMNS,
        attempts.label("attempts"),
        error.label("error"),
        due_at.label("due_at"),
    )


_JOBS_IN_STATE = {
    "discarded": _select_jobs(loads.c.attempt, outcomes.c.error, null())
    .select_from(outcomes)
    .join(events, events.c.seq == outcomes.c.seq)
    .join(loads, loads.c.id == outcomes.c.load)
    .where(outcomes.c.destination == _destination, IS_DISCARDED)
    .order_by(outcomes.c.seq)
    .limit(_limit),
    "retrying": union_all(
        *select_members(
            lambda *_: [
                *_EVENT_COLUMNS,
                job_groups.c.attempts,
                RETRY_ERROR,
                job_groups.c.due_at,
            ],
            IS_WAITING_GROUP,
        )
    )
    .order_by(text("6, 1"))  # due_at, seq
    .limit(_limit),
    "awaiting": _select_jobs(literal(0), null(), null())
    .select_from(jobs)
    .join(events, events.c.seq == jobs.c.seq)
    .where(jobs.c.destination == _destination, jobs.c.seq > position_of(_destination))
    .order_by(jobs.c.seq)
    .limit(_limit),
    "executing": union_all(
        select(*_EVENT_COLUMNS, loads.c.attempt.label("attempts"), _NO_ERROR, _NOT_DUE)
        .select_from(loads)
        .join(jobs, jobs.c.destination == loads.c.destination)
        .join(events, events.c.seq == jobs.c.seq)
        .where(*IS_OPEN_LOAD, jobs.c.seq.between(loads.c.seq_from, loads.c.seq_to)),
        *select_members(
            lambda *_: [*_EVENT_COLUMNS, _attempt_of_load, _NO_ERROR, _NOT_DUE],
            job_groups.c.load.in_(select(loads.c.id).where(*IS_OPEN_LOAD)),
        ),
    )
    .order_by(text("1"))
    .limit(_limit),
}
