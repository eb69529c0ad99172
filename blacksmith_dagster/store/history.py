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
    column,
    null,
    select,
    union_all,
)

from blacksmith_dagster.errors import Gone, NotFound, UsageError
from blacksmith_dagster.store.database import Database
from blacksmith_dagster.store.group_members import (
    JOB_COLUMNS,
    STATE_COLUMNS,
    select_members,
    select_retrying,
)
from blacksmith_dagster.store.lanes import last_loads
from blacksmith_dagster.store.records import JobState, Transition, Window
from blacksmith_dagster.store.retention import why_gone
from blacksmith_dagster.store.statements import batched, query
from blacksmith_dagster.store.tables import (
    LoadState,
    OutcomeState,
    destination_events,
    events,
    group_jobs,
    job_groups,
    jobs,
    loads,
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
        with self._database.snapshot() as conn:
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
        database.event_type_path(row.event_type),
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
        group_jobs.c.destination.in_(select(destination_events.c.id)),
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

_IS_OF_EVENT = (
    "m.seq = :seq AND g.seq_from <= :seq AND g.seq_to >= :seq"
    " AND g.destination IN (SELECT id FROM destination_events)"
)
# Every load of the event's jobs: of a job in the log, the first, whose range has it, and of any job,
# those that took one of its job groups. A job that was never claimed has a row without a load.
_ATTEMPTS = query(
    f"""
SELECT d.path, l.id, l.state, l.attempt, l.started_at, l.finished_at, l.run, l.error,
       o.state AS outcome, o.error AS outcome_error, t.replay
  FROM (SELECT j.destination, (SELECT first.id FROM loads first
                                WHERE first.destination = j.destination AND first.seq_to >= :seq
                                ORDER BY first.seq_to LIMIT 1) AS load, NULL AS replay
          FROM jobs j
         WHERE j.destination IN (SELECT id FROM destination_events) AND j.seq = :seq
        UNION ALL
        {select_members("g.destination, g.load, g.replay", f"g.load IS NOT NULL AND {_IS_OF_EVENT}")}) t
  JOIN destination_events d ON d.id = t.destination
  LEFT JOIN loads l ON l.id = t.load
  LEFT JOIN outcomes o ON o.load = l.id AND o.seq = :seq
 ORDER BY d.path, l.id""",
    destination_events.c.path,
    *(loads.c[name] for name in ("id", "state", "attempt", "started_at", "finished_at", "run")),
    loads.c.error,
    column("outcome", Text),
    column("outcome_error", Text),
    job_groups.c.replay,
)
# The job groups in which the event's jobs wait.
_DUE_AGAIN = query(
    f"""
SELECT d.path, w.due_at
  FROM ({select_members("g.destination, g.due_at", f"g.load IS NULL AND {_IS_OF_EVENT}")}) w
  JOIN destination_events d ON d.id = w.destination""",
    destination_events.c.path,
    job_groups.c.due_at,
)
# The replays of the event's jobs. A replay's listing has the id of its first job group, whose `due_at`
# is when it was planned.
_REPLAYS = query(
    """
SELECT d.path, g.due_at, g.replay, r.created
  FROM destination_events d
  JOIN group_jobs r ON r.destination = d.id AND r.seq = :seq
  JOIN job_groups g ON g.id = r.listing""",
    destination_events.c.path,
    job_groups.c.due_at,
    job_groups.c.replay,
    group_jobs.c.created,
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
    last = last_loads(conn, destination)
    values = {"destination": destination, "limit": limit, **last._asdict()}
    return conn.execute(_JOBS_IN_STATE[state], values).all()


_EXECUTING_IN_GROUPS = select_members(
    "e.seq, e.event_type, e.received_at, (SELECT attempt FROM loads WHERE id = g.load), NULL, NULL",
    "g.destination = :destination AND g.load IN :open",
    with_events=True,
)
_JOBS_IN_STATE = {
    "discarded": query(
        """
SELECT e.seq, e.event_type, e.received_at, l.attempt, o.error, NULL
  FROM outcomes o JOIN events e ON e.seq = o.seq JOIN loads l ON l.id = o.load
 WHERE o.destination = :destination AND o.state = 'discarded'
 ORDER BY o.seq LIMIT :limit""",
        *STATE_COLUMNS,
    ),
    "retrying": query(
        f"{select_retrying('TRUE')} ORDER BY 6, 1 LIMIT :limit",  # by due_at, seq
        *STATE_COLUMNS,
    ),
    "awaiting": query(
        """
SELECT e.seq, e.event_type, e.received_at, 0, NULL, NULL
  FROM jobs j JOIN events e ON e.seq = j.seq
 WHERE j.destination = :destination AND j.seq > :position
 ORDER BY j.seq LIMIT :limit""",
        *STATE_COLUMNS,
    ),
    "executing": query(
        f"""
SELECT e.seq, e.event_type, e.received_at, l.attempt, NULL, NULL
  FROM loads l CROSS JOIN jobs j CROSS JOIN events e
 WHERE l.id IN :open AND j.destination = l.destination AND j.seq BETWEEN l.seq_from AND l.seq_to
   AND e.seq = j.seq
UNION ALL
{_EXECUTING_IN_GROUPS}
 ORDER BY 1 LIMIT :limit""",
        *STATE_COLUMNS,
        lists=["open"],
    ),
}
