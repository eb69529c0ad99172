"""What can be asked of the store: counts, events, the history of a job. Reads alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    Text,
    and_,
    bindparam,
    cast,
    exists,
    false,
    func,
    literal,
    null,
    or_,
    select,
    text,
    true,
    union_all,
)

from blacksmith_dagster.errors import UsageError
from blacksmith_dagster.store.interface import Counts, Transition, Window
from blacksmith_dagster.store.loads import JOB_COLUMNS, last_load, members
from blacksmith_dagster.store.maintenance import batched
from blacksmith_dagster.store.tables import (
    DISCARDED,
    DONE,
    EXECUTING,
    FAILED,
    RELEASED,
    UNKNOWN,
    counter,
    destination_events,
    event_totals,
    events,
    group_jobs,
    job_groups,
    job_totals,
    jobs,
    loads,
    outcomes,
    replays,
    time_index,
)

_AT_ONCE = 10_000  # values in one statement, which takes 65,535 at most

# ---------------------------------------------------------------------------------------- counts


def counts(conn: Connection, destination: int) -> Counts:
    """The jobs of a destination event by state, all in one statement: one snapshot."""
    row = conn.execute(_COUNTS, {"of": destination}).one()
    awaiting = row.counted + row.uncounted - row.claimed
    waiting = [each for each in (row.due, row.received) if each is not None]
    return Counts(
        awaiting=awaiting,
        executing=row.executing,
        retrying=row.retrying,
        # PostgreSQL sums up bigints to a decimal number.
        succeeded=int(
            row.claimed + row.created_jobs - row.executing_or_retrying - row.ever_discarded
        ),
        discarded=row.discarded,
        oldest_waiting=min(waiting, default=None),
    )


def next_due(
    conn: Connection, destinations: Sequence[int], clock: ColumnElement[datetime]
) -> float | None:
    """Seconds until the load lane of one can claim, 0 if it can now, `None` if nothing waits."""
    found = _NEXT.add_columns(clock.label("now"))
    rows = conn.execute(found, {"asked": destinations}).all()
    waits = [
        0.0 if row.new is not None else max(0.0, (row.due - row.now).total_seconds())
        for row in rows
        if row.new is not None or row.due is not None
    ]
    return min(waits, default=None)


def since_load(
    conn: Connection, destinations: Sequence[int], clock: ColumnElement[datetime]
) -> float | None:
    """Seconds since a load of one of these ended or began, `None` if there has been none."""
    found = _LOADED.add_columns(clock.label("now"))
    rows = conn.execute(found, {"asked": destinations}).all()
    return min(
        (max(0.0, (row.now - row.loaded).total_seconds()) for row in rows if row.loaded),
        default=None,
    )


_of: Any = bindparam("of")


def _number(statement: Any) -> Any:
    return func.coalesce(statement.scalar_subquery(), 0)


def _last(column: Any, lane: int, of: Any = _of) -> Any:
    return last_load(of, lane, column).correlate(destination_events)


def _due_of(of: Any, *also: Any) -> Any:
    """When the first of the waiting job groups is due."""
    waits = and_(job_groups.c.destination == of, job_groups.c.load.is_(None), *also)
    found = select(func.min(job_groups.c.due_at)).where(waits)
    return found.correlate(destination_events).scalar_subquery()


def _first_new_of(of: Any) -> Any:
    """The first job after the position. The log is ordered: it has waited longest."""
    position = _number(_last(loads.c.position, 0, of))
    found = select(jobs.c.seq).where(jobs.c.destination == of, jobs.c.seq > position)
    return found.correlate(destination_events).order_by(jobs.c.seq).limit(1).scalar_subquery()


_claimed = _last(loads.c.claimed, 0)
_position = _last(loads.c.position, 0)
_last_ids = [_last(loads.c.id, lane).scalar_subquery() for lane in (0, 1, 2)]
_executing = _number(
    select(func.sum(loads.c.jobs)).where(loads.c.id.in_(_last_ids), loads.c.state == EXECUTING)
)
_waits = and_(job_groups.c.destination == _of, job_groups.c.load.is_(None))
_retrying = _number(select(func.sum(job_groups.c.jobs)).where(_waits))
_received = select(events.c.received_at).where(events.c.seq == _first_new_of(_of)).scalar_subquery()
_created_jobs = _number(
    select(func.sum(replays.c.created_jobs)).where(replays.c.destination == _of)
)
_uncounted = select(func.count()).where(
    jobs.c.destination == _of, jobs.c.seq > _number(select(counter.c.upto))
)
_discarded = select(func.sum(loads.c.discarded)).where(
    loads.c.destination == _of, loads.c.discarded > 0
)
_purged_discarded = select(job_totals.c.purged_discarded).where(job_totals.c.destination == _of)
_COUNTS = select(
    _number(select(job_totals.c.jobs).where(job_totals.c.destination == _of)).label("counted"),
    _number(_uncounted).label("uncounted"),
    _number(_claimed).label("claimed"),
    _created_jobs.label("created_jobs"),
    _executing.label("executing"),
    _retrying.label("retrying"),
    (_executing + _retrying).label("executing_or_retrying"),
    _number(_discarded).label("discarded"),
    (_number(_discarded) + _number(_purged_discarded)).label("ever_discarded"),
    _due_of(_of).label("due"),
    _received.label("received"),
)
_asked = destination_events.c.id.in_(bindparam("asked", expanding=True))
_NEXT = select(
    _due_of(destination_events.c.id, job_groups.c.lane == 0).label("due"),
    _first_new_of(destination_events.c.id).label("new"),
).where(_asked)
_LOADED = select(
    _last(func.coalesce(loads.c.finished_at, loads.c.started_at), 0, destination_events.c.id)
    .scalar_subquery()
    .label("loaded"),
).where(_asked)


def day_counts(conn: Connection, since: date) -> Sequence[Row[Any]]:
    """Totals per event type and day, as far as the counters have come."""
    columns = event_totals.c
    found = select(columns.event_type, columns.day, columns.events).where(columns.day >= since)
    return conn.execute(found.order_by(columns.day, columns.event_type)).all()


# ---------------------------------------------------------------------------------------- events


def event(conn: Connection, seq: int) -> Row[Any] | None:
    """One event."""
    return conn.execute(select(events).where(events.c.seq == seq)).first()


def newest(conn: Connection, event_type: int | None, limit: int) -> Sequence[Row[Any]]:
    """The newest events, of one type or of all."""
    found = select(events).order_by(events.c.seq.desc()).limit(limit)
    return conn.execute(
        found if event_type is None else found.where(events.c.event_type == event_type)
    ).all()


def destinations_by_event(conn: Connection, seqs: Sequence[int]) -> Mapping[int, Sequence[str]]:
    """The paths of the destination events that have a job of each event."""
    made: dict[int, list[str]] = {}
    for part in batched(seqs, _AT_ONCE):
        for seq, path in conn.execute(_select_destinations(part)):
            made.setdefault(seq, []).append(path)
    return made


def _select_destinations(seqs: Sequence[int]) -> Select[Any]:
    ids = select(destination_events.c.id)
    made_later = select(group_jobs.c.seq, group_jobs.c.destination).where(
        # As many look-ups as there are destination events: rows are in their order first.
        group_jobs.c.destination.in_(ids),
        group_jobs.c.seq.in_(seqs),
        group_jobs.c.created,
    )
    of_log = select(jobs.c.seq, jobs.c.destination).where(jobs.c.seq.in_(seqs))
    has = union_all(of_log, made_later).subquery()
    return (
        select(has.c.seq, destination_events.c.path)
        .join(destination_events, destination_events.c.id == has.c.destination)
        .order_by(destination_events.c.path)
    )


def as_jobs(conn: Connection, seqs: Sequence[int]) -> Any:
    """Events as rows of JOB_COLUMNS."""
    columns = [null() if column is jobs.c.when_error else column for column in JOB_COLUMNS]
    rows: list[Any] = []
    for part in batched(seqs, _AT_ONCE):
        rows += conn.execute(select(*columns).where(events.c.seq.in_(part))).all()
    return rows


def window(conn: Connection, start: datetime, end: datetime, last: int) -> Window:
    """The sequence numbers between the rows of the time index around two times."""
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
_ids = select(destination_events.c.id)  # the first column of the key of `group_jobs`
_listed = and_(group_jobs.c.destination.in_(_ids), group_jobs.c.seq == _seq)
# The destination events that have a job of the event; `created` by a replay, if it is not of the log.
_has = union_all(
    select(jobs.c.destination, false().label("created")).where(jobs.c.seq == _seq),
    select(group_jobs.c.destination, true()).where(_listed, group_jobs.c.created),
).subquery()
# Every load that held the job: the first, whose range it is in, and those that took its job groups.
_first_load = (
    select(loads.c.id)
    .where(loads.c.destination == _has.c.destination, loads.c.seq_to >= _seq)
    .order_by(loads.c.seq_to)
    .limit(1)
    .scalar_subquery()
)
_in_group = and_(
    job_groups.c.destination == _has.c.destination,
    job_groups.c.seq_from <= _seq,
    job_groups.c.seq_to >= _seq,
    or_(
        and_(job_groups.c.listing.is_(None), ~_has.c.created),
        exists()
        .where(outcomes.c.listing == job_groups.c.listing, outcomes.c.seq == _seq)
        .correlate(job_groups, _has),
        exists()
        .where(
            group_jobs.c.destination == job_groups.c.destination,
            group_jobs.c.seq == _seq,
            group_jobs.c.listing == job_groups.c.listing,
        )
        .correlate(job_groups, _has),
    ),
)
_held = union_all(
    select(_has.c.destination, _first_load.label("load"), null().label("replay")).where(
        ~_has.c.created
    ),
    select(_has.c.destination, job_groups.c.load, job_groups.c.replay)
    .select_from(_has)
    .join(job_groups, _in_group)
    .where(job_groups.c.load.is_not(None)),
).subquery()
_HISTORY = (
    select(
        destination_events.c.path,
        loads.c.id,
        loads.c.state,
        loads.c.attempt,
        loads.c.started_at,
        loads.c.finished_at,
        loads.c.run,
        loads.c.error,
        outcomes.c.state.label("deviated"),
        outcomes.c.error.label("deviation"),
        _held.c.replay,
    )
    .select_from(_held)
    .join(destination_events, destination_events.c.id == _held.c.destination)
    .outerjoin(loads, loads.c.id == _held.c.load)
    .outerjoin(outcomes, and_(outcomes.c.load == loads.c.id, outcomes.c.seq == _seq))
    .order_by(destination_events.c.path, loads.c.id)
)
_path = destination_events.c.path
_WAITING = (
    select(_path, job_groups.c.due_at)
    .select_from(_has)
    .join(job_groups, _in_group)
    .join(destination_events, destination_events.c.id == _has.c.destination)
    .where(job_groups.c.load.is_(None))
)
# The first job group of a replay's listing bears the listing's number, and the time when it was planned.
_REPLAYED = (
    select(_path, job_groups.c.due_at, job_groups.c.replay, group_jobs.c.created)
    .select_from(group_jobs)
    .join(job_groups, job_groups.c.id == group_jobs.c.listing)
    .join(destination_events, destination_events.c.id == group_jobs.c.destination)
    .where(_listed)
)
_STATES = {DONE: "succeeded", FAILED: "failed", UNKNOWN: "unknown", RELEASED: "awaiting"}


def history(conn: Connection, seq: int, received_at: datetime) -> Sequence[Transition]:
    """All transitions of the jobs of an event, in order of time."""
    made: list[Transition] = []
    new = []
    for path, at, replay, was_created in conn.execute(_REPLAYED, {"seq": seq}):
        if was_created:
            new.append(path)
            made.append(Transition(path, "acknowledged", at, 0, replay=replay))
        made.append(Transition(path, "awaiting", at, 0, replay=replay))
    due = dict(conn.execute(_WAITING, {"seq": seq}).tuples().all())
    seen: set[str] = set(new)
    for row in conn.execute(_HISTORY, {"seq": seq}):
        if row.path not in seen:
            seen.add(row.path)
            made.append(Transition(row.path, "acknowledged", received_at, 0))
            made.append(Transition(row.path, "awaiting", received_at, 0))
        if row.id is None:
            continue
        of = {"attempt": row.attempt, "load_id": row.id, "run": row.run, "replay": row.replay}
        made.append(Transition(row.path, "executing", row.started_at, **of))
        if row.state == EXECUTING:
            continue
        state, error = _STATES[row.state], row.error
        if row.deviated is not None:
            state = "failed" if row.deviated == FAILED else "discarded"
            error = row.deviation
        made.append(Transition(row.path, state, row.finished_at, error=error, **of))
    made.sort(key=lambda each: each.at)
    last = {each.destination: at for at, each in enumerate(made)}
    for path, due_at in due.items():
        at = last[path]
        made[at] = Transition(**{**_fields(made[at]), "due_at": due_at})
    return made


def _fields(of: Transition) -> dict[str, Any]:
    return {name: getattr(of, name) for name in Transition.__struct_fields__}


# ---------------------------------------------------------------------------------------- jobs


def jobs_in(conn: Connection, state: str, destination: int, limit: int) -> Sequence[Row[Any]]:
    """Jobs in a state, with seq, event type, received_at, attempts, error and due_at."""
    if state not in _JOBS_IN:
        raise UsageError(f"no state {state!r}; one of {', '.join(_JOBS_IN)}")
    return conn.execute(_JOBS_IN[state], {"of": destination, "limit": limit}).all()


_EVENT = (events.c.seq, events.c.event_type, events.c.received_at)


def _select_jobs(attempts: Any, error: Any, due_at: Any) -> Any:
    return select(
        *_EVENT,
        attempts.label("attempts"),
        error.label("error"),
        due_at.label("due_at"),
    )


_limit: Any = bindparam("limit")
_failure = outcomes.alias("failure")
_listed_error = (
    select(_failure.c.error)
    .where(_failure.c.listing == job_groups.c.listing, _failure.c.seq == events.c.seq)
    .scalar_subquery()
)
_raised = select(loads.c.error).where(loads.c.id == job_groups.c.raised_in).scalar_subquery()
RETRY_ERROR = func.coalesce(_raised, _listed_error).label("error")
"""Why a job waits to run again: what its job group has raised since, or else its own failure."""

_is_open = (loads.c.id.in_(_last_ids), loads.c.state == EXECUTING)
_attempt_of_load = (
    select(loads.c.attempt)
    .where(loads.c.id == job_groups.c.load)
    .scalar_subquery()
    .label("attempts")
)
_no_error = cast(null(), Text).label("error")
_not_due = cast(null(), job_groups.c.due_at.type).label("due_at")
_JOBS_IN = {
    "discarded": _select_jobs(loads.c.attempt, outcomes.c.error, null())
    .select_from(outcomes)
    .join(events, events.c.seq == outcomes.c.seq)
    .join(loads, loads.c.id == outcomes.c.load)
    .where(outcomes.c.destination == _of, outcomes.c.state == DISCARDED)
    .order_by(outcomes.c.seq)
    .limit(_limit),
    "retrying": union_all(
        *members(
            lambda *_: [*_EVENT, job_groups.c.attempts, RETRY_ERROR, job_groups.c.due_at],
            _waits,
        )
    )
    .order_by(text("6, 1"))
    .limit(_limit),
    "awaiting": _select_jobs(literal(0), null(), null())
    .select_from(jobs)
    .join(events, events.c.seq == jobs.c.seq)
    .where(jobs.c.destination == _of, jobs.c.seq > _number(_position))
    .order_by(jobs.c.seq)
    .limit(_limit),
    "executing": union_all(
        select(*_EVENT, loads.c.attempt.label("attempts"), _no_error, _not_due)
        .select_from(loads)
        .join(jobs, jobs.c.destination == loads.c.destination)
        .join(events, events.c.seq == jobs.c.seq)
        .where(*_is_open, jobs.c.seq.between(loads.c.seq_from, loads.c.seq_to)),
        *members(
            lambda *_: [*_EVENT, _attempt_of_load, _no_error, _not_due],
            job_groups.c.load.in_(select(loads.c.id).where(*_is_open)),
        ),
    )
    .order_by(text("1"))
    .limit(_limit),
}
