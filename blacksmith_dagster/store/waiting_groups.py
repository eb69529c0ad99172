"""The statements that make, choose, split and requeue job groups, in a transaction that has locked
the lane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    Connection,
    Text,
    bindparam,
    false,
    insert,
    literal,
    null,
    select,
    text,
    update,
)

from blacksmith_dagster.pipeline.event import JobResult
from blacksmith_dagster.store.database import OutcomeRow
from blacksmith_dagster.store.group_members import NTH_SEQ_OF_GROUP, SEQS_OF_GROUP, select_members
from blacksmith_dagster.store.job_groups import Portion, WaitingGroup
from blacksmith_dagster.store.records import Deviation, Lane, Load
from blacksmith_dagster.store.tables import OutcomeState, job_groups, loads

_MAX_GROUPS = 1000  # job groups read for one load

# ----------------------------------------------------------------------------- waiting groups


def waiting_groups(
    conn: Connection,
    destination: int,
    *,
    due_by: datetime | None = None,
    lane: Lane | None = None,
    marked: bool = False,
) -> list[WaitingGroup]:
    """Waiting job groups, the longest due first, locked: those of a lane that are due by a time, those
    marked to be discarded, or all.
    """
    statement = _WAITING_GROUPS
    if lane is not None:
        statement = statement.where(job_groups.c.lane == lane, job_groups.c.due_at <= due_by)
    if marked:
        statement = statement.where(job_groups.c.discard_reason.is_not(None))
    return [WaitingGroup(*row) for row in conn.execute(statement, {"destination": destination})]


_WAITING_GROUPS = (
    select(*(job_groups.c[name] for name in WaitingGroup._fields))
    .where(job_groups.c.destination == bindparam("destination"), job_groups.c.load.is_(None))
    .order_by(job_groups.c.due_at, job_groups.c.id)
    .limit(_MAX_GROUPS)
    # SKIP LOCKED: someone may be discarding jobs of a group, and a claim need not wait for that.
    .with_for_update(skip_locked=True)
)


def mark(conn: Connection, destination: int, seq: int, reason: str, now: datetime) -> bool:
    """Mark a job to be discarded, in a group of its own that is due in the load lane.

    `False` if the job does not wait.
    """
    row = conn.execute(_WAITING_GROUP_OF, {"destination": destination, "seq": seq}).first()
    if row is None:
        return False
    group_id = separate_job(conn, WaitingGroup(*row), seq)
    values = {"lane": Lane.LOAD, "due_at": now, "discard_reason": reason}
    conn.execute(update(job_groups).where(job_groups.c.id == group_id).values(values))
    return True


_IS_MEMBER = select_members(
    "g.id",
    "g.destination = :destination AND g.load IS NULL AND m.seq = :seq"
    " AND g.seq_from <= :seq AND g.seq_to >= :seq",
)
_WAITING_GROUP_OF = (
    select(*(job_groups.c[name] for name in WaitingGroup._fields))
    .where(
        # PostgreSQL checks these again on the row that it has locked.
        job_groups.c.load.is_(None),
        job_groups.c.seq_from <= bindparam("seq"),
        job_groups.c.seq_to >= bindparam("seq"),
        text(f"job_groups.id IN ({_IS_MEMBER})"),
    )
    .with_for_update()
)


def assign(conn: Connection, groups: Sequence[WaitingGroup], load_id: int) -> None:
    """Assign whole job groups to a load."""
    ids = [group.id for group in groups]
    conn.execute(update(job_groups).where(job_groups.c.id.in_(ids)).values(load=load_id))


def assign_part(conn: Connection, group: WaitingGroup, part: Portion, load_id: int) -> None:
    """Assign the first jobs of a job group to a load; the others keep waiting."""
    nth = {"group": group.id, "before": part.jobs - 1}
    boundary = conn.execute(NTH_SEQ_OF_GROUP, nth).scalar_one()
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


def separate_job(conn: Connection, group: WaitingGroup, seq: int) -> int:
    """Split one job off a job group, as a group of its own; returns its id."""
    if group.jobs == 1:
        return group.id
    seqs = conn.execute(SEQS_OF_GROUP, {"group": group.id}).scalars().all()
    before, after = seqs.index(seq), len(seqs) - seqs.index(seq) - 1
    if after:
        split_off(conn, group, seq + 1, group.seq_to, after, None, lost_loads=group.lost_loads)
    if not before:
        conn.execute(
            update(job_groups).where(job_groups.c.id == group.id).values(seq_to=seq, jobs=1)
        )
        return group.id
    group_id = split_off(conn, group, seq, seq, 1, None, lost_loads=group.lost_loads)
    conn.execute(
        update(job_groups).where(job_groups.c.id == group.id).values(seq_to=seq - 1, jobs=before)
    )
    return group_id


def requeue(
    conn: Connection,
    load_id: int,
    due_at: datetime,
    *,
    lost_loads: int = 0,
    raised: tuple[int, bool] | None = None,
) -> None:
    """Queue the jobs of a closed load again.

    The range of a first load becomes a job group; otherwise each group assigned to the load is copied
    as a waiting one. The assigned rows stay, as the history of their jobs.

    `lost_loads` is added to the groups' own. `raised`, of a load that failed as a whole, is the number
    of its attempt and whether its jobs are isolated from now on: they then wait in the load lane,
    whichever lane attempted them. Otherwise they stay in the lane where they were.
    """
    due = literal(due_at, job_groups.c.due_at.type)
    attempts, isolated = raised or (None, None)
    for source, of_load in (
        (loads, loads.c.id == load_id),
        (job_groups, job_groups.c.load == load_id),
    ):
        before = source.c if source is job_groups else _NeverRun
        columns = {
            "destination": source.c.destination,
            "lane": before.lane if raised is None else literal(Lane.LOAD, Text()),
            "replay": before.replay,
            "job_key": before.job_key,
            "listing": before.listing,
            "seq_from": source.c.seq_from,
            "seq_to": source.c.seq_to,
            "jobs": source.c.jobs,
            "attempts": before.attempts if attempts is None else literal(attempts),
            "lost_loads": before.lost_loads + lost_loads if raised is None else literal(0),
            "raised_in": before.raised_in if raised is None else literal(load_id),
            "isolated": before.isolated if isolated is None else literal(isolated),
            "consecutive_failures": (before.consecutive_failures if raised is None else literal(0)),
            "due_at": due,
            "discard_reason": before.discard_reason,
        }
        values = select(*columns.values()).where(of_load, source.c.seq_to.is_not(None))
        conn.execute(insert(job_groups).from_select(list(columns), values))


class _NeverRun:
    """The columns of a job group for the jobs of a first load, which has no group yet."""

    lane = literal(Lane.LOAD, Text())
    replay = null()
    job_key = null()
    listing = null()
    attempts = literal(0)
    lost_loads = literal(0)
    raised_in = null()
    isolated = false()
    consecutive_failures = literal(0)
    discard_reason = null()


def group_failed_jobs(
    conn: Connection, load: Load, destination: int, deviations: Sequence[Deviation], now: datetime
) -> Mapping[tuple[float, bool], int]:
    """Make a job group of the failed jobs for each (delay, isolated); returns the groups' listings."""
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
        listings[delay, isolated] = make_listing(conn, {"lane": Lane.LOAD, **values})
    return listings


def make_listing(conn: Connection, values: Mapping[str, Any]) -> int:
    """Make a job group with a listing of its own, whose number is the group's id; returns it."""
    listing: int = conn.execute(_MAKE_GROUP, values).scalar_one()
    conn.execute(update(job_groups).where(job_groups.c.id == listing).values(listing=listing))
    return listing


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
    rows = []
    for deviation in deviations:
        state, listing = OutcomeState.DISCARDED, None
        if deviation.result is JobResult.FAILED:
            state, listing = OutcomeState.FAILED, listings[_delay_and_isolation(deviation)]
        rows.append(
            OutcomeRow(load.id, deviation.seq, destination, state, deviation.error, listing)
        )
    return rows


def _delay_and_isolation(failed: Deviation) -> tuple[float, bool]:
    return failed.delay or 0.0, failed.isolated


def count_consecutive_failures(conn: Connection, load_id: int, failed: bool) -> None:
    """Count the result of an isolated job in the group that it was split from: failures in a row."""
    split_from = (
        select(job_groups.c.split_from).where(job_groups.c.load == load_id).scalar_subquery()
    )
    consecutive_failures = job_groups.c.consecutive_failures + 1 if failed else literal(0)
    conn.execute(
        update(job_groups)
        .where(job_groups.c.id == split_from)
        .values(consecutive_failures=consecutive_failures)
    )
