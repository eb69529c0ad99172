"""The statements by which loads are claimed and closed, within a transaction that holds the fencing
token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import (
    Connection,
    Select,
    and_,
    bindparam,
    exists,
    false,
    func,
    insert,
    literal,
    null,
    select,
    text,
    tuple_,
    union_all,
    update,
)

from blacksmith_dagster.pipeline.event import JobResult
from blacksmith_dagster.store.interface import Deviation, Load
from blacksmith_dagster.store.job_groups import Portion, WaitingGroup
from blacksmith_dagster.store.tables import (
    DISCARDED,
    DONE,
    EXECUTING,
    FAILED,
    edits,
    events,
    group_jobs,
    job_groups,
    jobs,
    loads,
    outcomes,
)

_MAX_GROUPS = 1000  # job groups that one load takes at most

JOB_COLUMNS = (
    events.c.seq,
    events.c.event_type,
    events.c.payload,
    events.c.received_at,
    events.c.key,
    events.c.context,
    events.c.version,
    events.c.sent_at,
    events.c.parent,
    jobs.c.when_error,
)


def jobs_of(conn: Connection, load_id: int, destination: int) -> Any:
    """The jobs of a load that took job groups, as rows of JOB_COLUMNS."""
    return conn.execute(_JOBS_OF_GROUPS, {"load": load_id, "destination": destination}).all()


def members(of: Callable[[Any, Any], Sequence[Any]], *which: Any) -> list[Select[Any]]:
    """The jobs of the job groups that `which` says, a row of `of(seq, when_error)` each, as the
    parts of a union.

    A job is in a job group by the range of the log, by its outcome, or because a replay listed it; one
    that a replay made has what `when` raised beside the listing that it was made in.
    """
    created = group_jobs.alias("created")
    is_created = and_(
        created.c.destination == job_groups.c.destination,
        created.c.seq == outcomes.c.seq,
        created.c.created,
    )
    of_log = and_(jobs.c.destination == job_groups.c.destination, jobs.c.seq == outcomes.c.seq)
    why = func.coalesce(jobs.c.when_error, created.c.when_error)
    in_listing = and_(
        group_jobs.c.destination == job_groups.c.destination,
        group_jobs.c.listing == job_groups.c.listing,
        group_jobs.c.seq.between(job_groups.c.seq_from, job_groups.c.seq_to),
    )
    in_range = and_(
        jobs.c.destination == job_groups.c.destination,
        jobs.c.seq.between(job_groups.c.seq_from, job_groups.c.seq_to),
    )
    return [
        select(*of(jobs.c.seq, jobs.c.when_error))
        .select_from(job_groups.join(jobs, in_range).join(events, events.c.seq == jobs.c.seq))
        .where(*which, job_groups.c.listing.is_(None)),
        select(*of(outcomes.c.seq, why))
        .select_from(
            job_groups.join(outcomes, outcomes.c.listing == job_groups.c.listing)
            .join(events, events.c.seq == outcomes.c.seq)
            .outerjoin(jobs, of_log)
            .outerjoin(created, is_created)
        )
        .where(*which, outcomes.c.seq.between(job_groups.c.seq_from, job_groups.c.seq_to)),
        select(*of(group_jobs.c.seq, group_jobs.c.when_error))
        .select_from(
            job_groups.join(group_jobs, in_listing).join(events, events.c.seq == group_jobs.c.seq)
        )
        .where(*which),
    ]


def _job(seq: Any, when_error: Any) -> Sequence[Any]:
    edited = (
        select(edits.c.payload)
        .where(edits.c.destination == job_groups.c.destination, edits.c.seq == seq)
        .scalar_subquery()
    )
    columns: dict[Any, Any] = {
        events.c.payload: func.coalesce(edited, events.c.payload),
        jobs.c.when_error: when_error,
    }
    return [columns.get(column, column) for column in JOB_COLUMNS]


_JOBS_OF_GROUPS = union_all(
    *members(
        _job,
        job_groups.c.load == bindparam("load"),
        job_groups.c.destination == bindparam("destination"),
    )
).order_by(text("1"))


def waiting_groups(
    conn: Connection, destination: int, *, due_by: datetime | None = None, lane: int | None = None
) -> list[WaitingGroup]:
    """Job groups that wait, the longest due first, locked: those of a lane that are due by a time,
    or all.
    """
    found = _WAITING_GROUPS
    if lane is not None:
        found = found.where(job_groups.c.lane == lane, job_groups.c.due_at <= due_by)
    return [WaitingGroup(*row) for row in conn.execute(found, {"destination": destination})]


_WAITING_GROUPS = (
    select(*(job_groups.c[name] for name in WaitingGroup._fields))
    .where(job_groups.c.destination == bindparam("destination"), job_groups.c.load.is_(None))
    .order_by(job_groups.c.due_at, job_groups.c.id)
    .limit(_MAX_GROUPS)
    # Skipped, not waited for: an operator may be taking jobs out of them.
    .with_for_update(skip_locked=True)
)


def waiting_group_of(conn: Connection, destination: int, seq: int) -> WaitingGroup | None:
    """The job group in which a job waits, locked; `None` if it does not wait."""
    row = conn.execute(_WAITING_GROUP_OF, {"destination": destination, "seq": seq}).first()
    return WaitingGroup(*row) if row else None


_WAITING_GROUP_OF = (
    select(*(job_groups.c[name] for name in WaitingGroup._fields))
    .where(
        job_groups.c.destination == bindparam("destination"),
        job_groups.c.load.is_(None),
        job_groups.c.seq_from <= bindparam("seq"),
        job_groups.c.seq_to >= bindparam("seq"),
        job_groups.c.listing.is_(None)
        | exists().where(
            outcomes.c.listing == job_groups.c.listing, outcomes.c.seq == bindparam("seq")
        )
        | exists().where(
            group_jobs.c.destination == job_groups.c.destination,
            group_jobs.c.seq == bindparam("seq"),
            group_jobs.c.listing == job_groups.c.listing,
        ),
    )
    .with_for_update()
)


def last_load(of: Any, lane: int, *columns: Any) -> Select[Any]:
    """These columns of a lane's last load; `of` is the destination event's id.

    As a range of the index: by equalities, PostgreSQL's generic plan walks back through all loads.
    """
    key = tuple_(loads.c.destination, loads.c.lane, loads.c.id)
    return (
        select(*columns)
        .where(
            key >= tuple_(of, literal(lane), literal(0)),
            key < tuple_(of, literal(lane + 1), literal(0)),
        )
        .order_by(loads.c.destination.desc(), loads.c.lane.desc(), loads.c.id.desc())
        .limit(1)
    )


def succeeded_since(conn: Connection, destination: int, load_id: int) -> bool:
    """Whether a later load of the destination event was not rejected as a whole."""
    found = select(loads.c.id).where(
        loads.c.destination == destination, loads.c.id > load_id, loads.c.state == DONE
    )
    return conn.execute(found.limit(1)).first() is not None


def assign(conn: Connection, groups: Sequence[WaitingGroup], load_id: int) -> None:
    """Assign whole job groups to a load."""
    ids = [group.id for group in groups]
    conn.execute(update(job_groups).where(job_groups.c.id.in_(ids)).values(load=load_id))


def assign_part(
    conn: Connection, group: WaitingGroup, part: Portion, destination: int, load_id: int
) -> None:
    """Assign the first jobs of a job group to a load; the others keep waiting."""
    seqs = seqs_of(group, destination).limit(1).offset(part.jobs - 1)
    boundary = conn.execute(seqs).scalar_one()
    split_off(conn, group, group.seq_from, boundary, part.jobs, load_id, lost_loads=part.lost_loads)
    conn.execute(
        update(job_groups)
        .where(job_groups.c.id == group.id)
        .values(
            seq_from=boundary + 1,
            jobs=group.jobs - part.jobs,
            lost_loads=part.remainder_lost_loads,
            raised_in=group.raised_in if group.isolated else None,
        )
    )


def split_off(
    conn: Connection,
    group: WaitingGroup,
    seq_from: int,
    seq_to: int,
    count: int,
    load_id: int | None,
    *,
    lost_loads: int,
) -> int:
    """Split a part off a job group, as a group of its own; returns its id."""
    columns = [
        job_groups.c[name] for name in ("destination", "lane", "replay", "job_key", "listing")
    ]
    inherited = [
        job_groups.c[name]
        for name in ("attempts", "raised_in", "isolated", "consecutive_failures", "due_at")
    ]
    part = {
        "seq_from": literal(seq_from),
        "seq_to": literal(seq_to),
        "jobs": literal(count),
        "lost_loads": literal(lost_loads),
        "split_from": literal(group.id),
        "load": null() if load_id is None else literal(load_id),
    }
    values = select(*columns, *part.values(), *inherited).where(job_groups.c.id == group.id)
    names: list[Any] = [*columns, *part, *inherited]
    added = insert(job_groups).from_select(names, values).returning(job_groups.c.id)
    return int(conn.execute(added).scalar_one())


def separate_job(conn: Connection, group: WaitingGroup, seq: int, destination: int) -> WaitingGroup:
    """Split one job off a job group, as a group of its own."""
    if group.jobs == 1:
        return group
    seqs = list(conn.execute(seqs_of(group, destination)).scalars())
    before, after = seqs.index(seq), len(seqs) - seqs.index(seq) - 1
    if after:
        split_off(conn, group, seq + 1, group.seq_to, after, None, lost_loads=group.lost_loads)
    if not before:
        conn.execute(
            update(job_groups).where(job_groups.c.id == group.id).values(seq_to=seq, jobs=1)
        )
        return group._replace(seq_to=seq, jobs=1)
    group_id = split_off(conn, group, seq, seq, 1, None, lost_loads=group.lost_loads)
    conn.execute(
        update(job_groups).where(job_groups.c.id == group.id).values(seq_to=seq - 1, jobs=before)
    )
    return group._replace(id=group_id, seq_from=seq, seq_to=seq, jobs=1)


def seqs_of(group: WaitingGroup, destination: int) -> Select[Any]:
    """The sequence numbers of a job group's jobs, in order."""
    between = (group.seq_from, group.seq_to)
    if group.listing is None:
        mine = jobs.c.destination == destination
        return select(jobs.c.seq).where(mine, jobs.c.seq.between(*between)).order_by(jobs.c.seq)
    of_outcomes = outcomes.c.listing == group.listing
    of_replay = (group_jobs.c.destination == destination, group_jobs.c.listing == group.listing)
    listed = union_all(
        select(outcomes.c.seq).where(of_outcomes, outcomes.c.seq.between(*between)),
        select(group_jobs.c.seq).where(*of_replay, group_jobs.c.seq.between(*between)),
    ).subquery()
    return select(listed.c.seq).order_by(listed.c.seq)


def open_load(conn: Connection, values: Mapping[str, Any]) -> int:
    """Insert a load that is executing; returns its id."""
    return int(conn.execute(_OPEN, values).scalar_one())


_OPEN = insert(loads).values(state=EXECUTING).returning(loads.c.id)


def close_load(
    conn: Connection,
    load_id: int,
    state: int,
    now: datetime,
    error: str | None = None,
    discarded: int = 0,
) -> bool:
    """Close an executing load; `False` if it is not executing any more."""
    given = {"of": load_id, "to": state, "now": now, "why": error, "n": discarded}
    return conn.execute(_CLOSE, given).rowcount == 1


_CLOSE = (
    update(loads)
    .where(loads.c.id == bindparam("of"), loads.c.state == EXECUTING)
    .values(
        state=bindparam("to"),
        finished_at=bindparam("now", type_=loads.c.finished_at.type),
        error=bindparam("why"),
        discarded=bindparam("n"),
    )
)


def requeue(
    conn: Connection,
    load_id: int,
    due_at: datetime,
    *,
    lost_loads: int = 0,
    raised: tuple[int, bool] | None = None,
) -> None:
    """Queue the jobs of a closed load again.

    `lost_loads` is added to theirs; `raised` is the attempt that raised, and whether they are isolated
    from there on. A first load's jobs become a job group; else each group assigned to the load waits
    again: after an attempt in the load lane, whoever's it was, else where it was.
    """
    due = literal(due_at, job_groups.c.due_at.type)
    attempts, isolated = raised or (None, None)
    for source, mine in (
        (loads, loads.c.id == load_id),
        (job_groups, job_groups.c.load == load_id),
    ):
        had = source.c if source is job_groups else _NeverRun
        columns = {
            "destination": source.c.destination,
            "lane": had.lane if raised is None else literal(0),
            "replay": had.replay,
            "job_key": had.job_key,
            "listing": had.listing,
            "seq_from": source.c.seq_from,
            "seq_to": source.c.seq_to,
            "jobs": source.c.jobs,
            "attempts": had.attempts if attempts is None else literal(attempts),
            "lost_loads": had.lost_loads + lost_loads if raised is None else literal(0),
            "raised_in": had.raised_in if raised is None else literal(load_id),
            "isolated": had.isolated if isolated is None else literal(isolated),
            "consecutive_failures": had.consecutive_failures if raised is None else literal(0),
            "due_at": due,
        }
        values = select(*columns.values()).where(mine, source.c.seq_to.is_not(None))
        conn.execute(insert(job_groups).from_select(list(columns), values))


class _NeverRun:
    """What the columns of a job group are for jobs of a first load."""

    lane = literal(0)
    replay = null()
    job_key = null()
    listing = null()
    attempts = literal(0)
    lost_loads = literal(0)
    raised_in = null()
    isolated = false()
    consecutive_failures = literal(0)


class OutcomeRow(NamedTuple):
    """A row of `outcomes`."""

    load: int
    seq: int
    destination: int
    state: int
    error: str
    listing: int | None


def group_failed_jobs(
    conn: Connection, load: Load, destination: int, deviations: Sequence[Deviation], now: datetime
) -> Mapping[tuple[float, bool], int]:
    """Make a job group of the failed jobs for each delay, and for those that are isolated; their
    listings.
    """
    due: dict[tuple[float, bool], list[int]] = {}
    for deviation in deviations:
        if deviation.result is JobResult.FAILED:
            due.setdefault(_delay_and_isolation(deviation), []).append(deviation.seq)
    listings = {}
    for (delay, isolated), seqs in due.items():
        values = {
            "destination": destination,
            "seq_from": min(seqs),
            "seq_to": max(seqs),
            "jobs": len(seqs),
            "attempts": load.attempt,
            "raised_in": load.id if isolated else None,
            "isolated": isolated,
            "due_at": now + timedelta(seconds=delay),
            "replay": load.replay,
            "job_key": None if load.job_key == str(destination) else load.job_key,
        }
        group_id = conn.execute(_MAKE_GROUP, values).scalar_one()
        conn.execute(update(job_groups).where(job_groups.c.id == group_id).values(listing=group_id))
        listings[delay, isolated] = group_id
    return listings


_MAKE_GROUP = (
    insert(job_groups).values(lost_loads=0, consecutive_failures=0).returning(job_groups.c.id)
)


def outcome_rows(
    load: Load,
    destination: int,
    deviations: Sequence[Deviation],
    listings: Mapping[tuple[float, bool], int],
) -> list[OutcomeRow]:
    """The rows of the jobs of a load that did not succeed."""
    return [
        OutcomeRow(
            load.id, each.seq, destination, FAILED, each.error, listings[_delay_and_isolation(each)]
        )
        if each.result is JobResult.FAILED
        else OutcomeRow(load.id, each.seq, destination, DISCARDED, each.error, None)
        for each in deviations
    ]


def _delay_and_isolation(failed: Deviation) -> tuple[float, bool]:
    return failed.delay or 0.0, failed.isolated


def count_consecutive_failures(conn: Connection, load_id: int, failed: bool) -> None:
    """Count an isolated job in the group that it was split from: its failures in a row."""
    split_from = (
        select(job_groups.c.split_from).where(job_groups.c.load == load_id).scalar_subquery()
    )
    consecutive_failures = job_groups.c.consecutive_failures + 1 if failed else literal(0)
    conn.execute(
        update(job_groups)
        .where(job_groups.c.id == split_from)
        .values(consecutive_failures=consecutive_failures)
    )
