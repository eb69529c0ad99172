"""Replays: which events of a window have a job, and in what state, and the job groups made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    and_,
    bindparam,
    cast,
    exists,
    func,
    insert,
    null,
    or_,
    select,
    text,
    union_all,
    update,
)

from blacksmith_dagster.errors import FencedOut
from blacksmith_dagster.store.claims import LANES
from blacksmith_dagster.store.interface import (
    Lane,
    Replay,
    ReplayMode,
    ReplayRequest,
    SelectedJob,
    Window,
)
from blacksmith_dagster.store.loads import JOB_COLUMNS, last_load, members
from blacksmith_dagster.store.maintenance import batched, upsert
from blacksmith_dagster.store.questions import RETRY_ERROR
from blacksmith_dagster.store.retention import is_awaited, refuse_purged
from blacksmith_dagster.store.tables import (
    DISCARDED,
    DONE,
    EXECUTING,
    REPLAYED,
    edits,
    events,
    group_jobs,
    job_groups,
    jobs,
    loads,
    outcomes,
    replays,
)

_SPAN = 20_000  # sequence numbers that are looked through at once
_AT_ONCE = 1_000  # values in one IN
_DENSE = 4  # so many numbers for each that is wanted
_LOOKED_AT = 20  # loads that show the pace


class GroupJob(NamedTuple):
    """A row of `group_jobs`."""

    destination: int
    seq: int
    listing: int
    created: bool
    when_error: str | None


# ------------------------------------------------------------------------------------- the replay


def begin(
    conn: Connection,
    destination: int,
    request: ReplayRequest,
    event_types: Sequence[int],
    window: Window,
    now: datetime,
    run: str | None,
) -> int:
    """The replay that was asked for with these words and has not ended, or a new one; its id.

    Raises `Gone` if events of these types are gone that it has yet to come to.
    """
    asked = msgspec.json.encode(request).decode()
    same = (replays.c.destination == destination, replays.c.request == asked)
    found = select(replays.c.id, replays.c.planned_upto, replays.c.began_at)
    found = found.where(*same, replays.c.ended_at.is_(None)).order_by(replays.c.id.desc())
    row = conn.execute(found).first()
    if row is None or not is_awaited(conn, destination, row.began_at, now):
        refuse_purged(conn, event_types, window.after if row is None else row.planned_upto)
    begun = None if row is None else row.id
    if begun is None:
        values = {
            "destination": destination,
            "request": asked,
            "after": window.after,
            "upto": window.upto,
            "planned_upto": window.after,
            "jobs": 0,
            "created_jobs": 0,
            "began_at": now,
        }
        begun = conn.execute(insert(replays).returning(replays.c.id), values).scalar_one()
    conn.execute(update(replays).where(replays.c.id == begun).values(run=run))
    left = (
        job_groups.c.destination == destination,
        job_groups.c.lane == LANES[Lane.REPLAY],
        job_groups.c.load.is_(None),
        job_groups.c.replay != begun,
    )
    conn.execute(update(job_groups).where(*left).values(lane=LANES[Lane.LOAD]))
    return int(begun)


_still_waiting = (
    job_groups.c.destination == replays.c.destination,
    job_groups.c.lane == LANES[Lane.REPLAY],
    job_groups.c.load.is_(None),
    job_groups.c.replay == replays.c.id,
)
_waiting = (
    select(func.coalesce(func.sum(job_groups.c.jobs), 0)).where(*_still_waiting).scalar_subquery()
)


def find_replays(
    conn: Connection, destination: int, limit: int, replay: int | None = None
) -> list[Row[Any]]:
    """The rows of replays, the newest first, each with how many of its jobs are `waiting`."""
    found = select(replays, _waiting.label("waiting")).where(replays.c.destination == destination)
    if replay is not None:
        found = found.where(replays.c.id == replay)
    return list(conn.execute(found.order_by(replays.c.id.desc()).limit(limit)))


def replay_from_row(row: Row[Any], path: str) -> Replay:
    """The replay that a row of the table holds."""
    return Replay(
        row.id,
        path,
        msgspec.json.decode(row.request, type=ReplayRequest),
        row.after,
        row.upto,
        row.planned_upto,
        row.jobs,
        row.created_jobs,
        row.waiting,
        row.began_at,
        row.ended_at,
        row.run,
    )


def end(conn: Connection, replay: Replay, now: datetime) -> bool:
    """Note its end, unless jobs of it wait."""
    ended = (
        update(replays)
        .where(replays.c.id == replay.id, ~exists().where(*_still_waiting))
        .values(ended_at=now)
    )
    return conn.execute(ended).rowcount == 1


# ------------------------------------------------------------------------------------- candidates


def _pending(conn: Connection, destination: int, window: Window) -> tuple[int, set[int]]:
    """Where the load lane stands, and which jobs before that wait to run again, or are running.

    It is read before the candidates: what is not pending now will not be, unless a replay has it so.
    """
    columns = (loads.c.id, loads.c.state, loads.c.position, loads.c.seq_from, loads.c.seq_to)
    last = {
        lane: conn.execute(last_load(destination, number, *columns)).first()
        for lane, number in LANES.items()
    }
    first = last[Lane.LOAD]
    opened = [each for each in last.values() if each and each.state == EXECUTING]
    seq_of = bindparam("after") < job_groups.c.seq_to
    mine = (job_groups.c.destination == destination, seq_of, job_groups.c.seq_from <= window.upto)
    given = {"after": window.after}
    held: ColumnElement[bool] = job_groups.c.load.is_(None)
    if opened:
        held = or_(held, job_groups.c.load.in_([each.id for each in opened]))
    busy = set(conn.execute(union_all(*members(_seq, *mine, held)), given).scalars())
    for each in opened:
        if each.seq_to is not None:
            new = select(jobs.c.seq).where(
                jobs.c.destination == destination, jobs.c.seq.between(each.seq_from, each.seq_to)
            )
            busy |= set(conn.execute(new).scalars())
    return (first.position if first else 0), busy


def _seq(seq: Any, _: Any) -> Sequence[Any]:
    return [seq]


class CandidateRow(NamedTuple):
    """An event of a window, as `ReplayCandidate` has it."""

    seq: int
    event_type: int
    received_at: datetime
    state: str
    error: str | None


def find_page(
    conn: Connection,
    destination: int,
    request: ReplayRequest,
    event_types: Sequence[int],
    window: Window,
) -> tuple[list[CandidateRow], int]:
    """The first events of a window that a request's modes and filters select, and up to which number
    they were looked for."""
    # What is discarded is indexed; else the log is gone through.
    if set(request.modes) == {ReplayMode.FAILED} or request.error is not None:
        return _discarded(conn, destination, request, event_types, window)
    part = Window(window.after, min(window.upto, window.after + _SPAN))
    return list(_of_log(conn, destination, request, event_types, part)), part.upto


def _discarded(
    conn: Connection,
    destination: int,
    request: ReplayRequest,
    event_types: Sequence[int],
    window: Window,
) -> tuple[list[CandidateRow], int]:
    """What is discarded is not pending: the transaction that replays it says so."""
    found = select(outcomes.c.seq, outcomes.c.error).where(
        *_is_discarded(destination), outcomes.c.seq > window.after, outcomes.c.seq <= window.upto
    )
    if request.error is not None:
        found = found.where(outcomes.c.error.contains(request.error, autoescape=True))
    errors = dict(conn.execute(found.order_by(outcomes.c.seq).limit(_AT_ONCE)).tuples().all())
    upto = max(errors) if len(errors) == _AT_ONCE else window.upto
    chosen = _of_window(request, event_types).where(events.c.seq.in_(errors)).order_by(events.c.seq)
    return [
        CandidateRow(seq, event_type, received_at, "discarded", errors[seq])
        for seq, event_type, received_at in conn.execute(chosen).tuples()
    ], upto


def _of_log(
    conn: Connection,
    destination: int,
    request: ReplayRequest,
    event_types: Sequence[int],
    window: Window,
) -> Iterator[CandidateRow]:
    """Ranges are read one by one and put together here: joined, each event would be looked up in
    each."""
    position, busy = _pending(conn, destination, window)

    def between(column: Any) -> Any:
        return and_(column > window.after, column <= window.upto)

    log = select(jobs.c.seq).where(jobs.c.destination == destination, between(jobs.c.seq))
    later = select(group_jobs.c.seq).where(
        group_jobs.c.destination == destination, between(group_jobs.c.seq), group_jobs.c.created
    )
    of_log, created = set(conn.execute(log).scalars()), set(conn.execute(later).scalars())
    discarded = select(outcomes.c.seq, outcomes.c.error).where(
        *_is_discarded(destination), between(outcomes.c.seq)
    )
    errors = dict(conn.execute(discarded).tuples().all())
    modes = set(request.modes)
    wanted = {"missing"} if ReplayMode.MISSING in modes else set()
    wanted |= {"discarded"} if ReplayMode.FAILED in modes else set()
    chosen = _of_window(request, event_types).where(between(events.c.seq)).order_by(events.c.seq)
    for seq, event_type, received_at in conn.execute(chosen).tuples():
        if (seq in of_log and seq > position) or seq in busy:
            state = "pending"
        elif seq in errors:
            state = "discarded"
        else:
            state = "succeeded" if seq in of_log or seq in created else "missing"
        if ReplayMode.ALL in modes or state in wanted:
            yield CandidateRow(seq, event_type, received_at, state, errors.get(seq))


def _is_discarded(destination: int) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return outcomes.c.destination == destination, outcomes.c.state == DISCARDED


def _of_window(request: ReplayRequest, event_types: Sequence[int]) -> Select[Any]:
    chosen = select(events.c.seq, events.c.event_type, events.c.received_at).where(
        events.c.event_type.in_(event_types),
        events.c.received_at >= request.start,
        events.c.received_at < request.end,
    )
    return chosen if request.version is None else chosen.where(events.c.version == request.version)


def rows_of(conn: Connection, destination: int, seqs: Sequence[int]) -> Iterator[Any]:
    """Events as rows of JOB_COLUMNS."""
    of_log = and_(jobs.c.destination == destination, jobs.c.seq == events.c.seq)
    every = select(*JOB_COLUMNS).select_from(events.outerjoin(jobs, of_log))
    for part in batched(seqs, _AT_ONCE):
        wanted, span = set(part), part[-1] - part[0]
        # A list of numbers costs more than to read some too many.
        dense = span < _DENSE * len(part)
        some = events.c.seq.between(part[0], part[-1]) if dense else events.c.seq.in_(part)
        rows = conn.execute(every.where(some).order_by(events.c.seq))
        yield from (row for row in rows if row.seq in wanted)


def pace(conn: Connection, destination: int) -> float | None:
    """Jobs a second in the last loads."""
    last = (
        select(loads.c.jobs, loads.c.started_at, loads.c.finished_at)
        .where(loads.c.destination == destination, loads.c.state == DONE)
        .order_by(loads.c.id.desc())
        .limit(_LOOKED_AT)
    )
    rows = conn.execute(last).all()
    took = sum((row.finished_at - row.started_at).total_seconds() for row in rows)
    return sum(row.jobs for row in rows) / took if took > 0 else None


def unsettled(conn: Connection, destination: int, limit: int) -> Sequence[Row[Any]]:
    """Jobs of the last replay that wait for a retry, or are discarded (without `due_at`)."""
    last = conn.execute(
        select(func.max(replays.c.id)).where(replays.c.destination == destination)
    ).scalar()
    if last is None:
        return []
    columns = (events.c.seq, events.c.event_type, events.c.received_at)
    waits = members(
        lambda *_: [
            *columns,
            job_groups.c.attempts.label("attempts"),
            RETRY_ERROR,
            job_groups.c.due_at.label("due_at"),
        ],
        job_groups.c.destination == destination,
        job_groups.c.replay == last,
        job_groups.c.load.is_(None),
    )
    listed = exists().where(
        group_jobs.c.destination == destination,
        group_jobs.c.seq == outcomes.c.seq,
        group_jobs.c.listing.in_(select(job_groups.c.id).where(job_groups.c.replay == last)),
    )
    gone = (
        select(*columns, loads.c.attempt, outcomes.c.error, cast(null(), job_groups.c.due_at.type))
        .select_from(
            outcomes.join(events, events.c.seq == outcomes.c.seq).join(
                loads, loads.c.id == outcomes.c.load
            )
        )
        .where(outcomes.c.destination == destination, outcomes.c.state == DISCARDED, listed)
    )
    return conn.execute(union_all(*waits, gone).order_by(text("1")).limit(limit)).all()


# ------------------------------------------------------------------------------------- planning


def plan(
    conn: Connection,
    destination: int,
    replay: Replay,
    upto: int,
    selected: Sequence[SelectedJob],
    batch: int,
    now: datetime,
) -> list[GroupJob]:
    """Make job groups of the selected jobs, whose rows the caller inserts; raises `FencedOut` if the
    replay has been planned on by another.
    """
    created_jobs = sum(each.state == "missing" for each in selected)
    moved = (
        update(replays)
        .where(replays.c.id == replay.id, replays.c.planned_upto == replay.planned_upto)
        .values(
            planned_upto=upto,
            jobs=replays.c.jobs + len(selected),
            created_jobs=replays.c.created_jobs + created_jobs,
        )
    )
    if conn.execute(moved).rowcount != 1:
        raise FencedOut(
            f"{replay.destination}: replay {replay.id} was planned on by another process"
        )
    _mark_replayed(conn, destination, [each.seq for each in selected if each.state == "discarded"])
    edited = [
        {"destination": destination, "seq": each.seq, "payload": each.payload}
        for each in selected
        if each.payload is not None
    ]
    if edited:
        added = upsert(conn, edits)
        new = {"payload": added.excluded.payload}
        key = ["destination", "seq"]
        conn.execute(added.on_conflict_do_update(index_elements=key, set_=new), edited)
    rows = []
    for part in batched(selected, batch):
        values: dict[str, Any] = {
            "destination": destination,
            "lane": LANES[Lane.REPLAY],
            "replay": replay.id,
            "job_key": f"{destination}-{replay.id}" if replay.request.new_key else None,
            "seq_from": part[0].seq,
            "seq_to": part[-1].seq,
            "jobs": len(part),
            "due_at": now,
        }
        of = conn.execute(_MAKE, values).scalar_one()
        conn.execute(update(job_groups).where(job_groups.c.id == of).values(listing=of))
        rows += [
            GroupJob(destination, each.seq, of, each.state == "missing", each.when_error)
            for each in part
        ]
    return rows


_MAKE = (
    insert(job_groups)
    .values(attempts=0, lost_loads=0, isolated=False, consecutive_failures=0)
    .returning(job_groups.c.id)
)


def _mark_replayed(conn: Connection, destination: int, seqs: Sequence[int]) -> None:
    """Mark discarded jobs as replayed: they no longer count as discarded."""
    fewer: Counter[int] = Counter()
    for part in batched(seqs, _AT_ONCE):
        replayed = (
            update(outcomes)
            .where(
                outcomes.c.destination == destination,
                outcomes.c.state == DISCARDED,
                outcomes.c.seq.in_(part),
            )
            .values(state=REPLAYED)
            .returning(outcomes.c.load)
        )
        fewer.update(conn.execute(replayed).scalars())
    for load, number in fewer.items():
        less = loads.c.discarded - number
        conn.execute(update(loads).where(loads.c.id == load).values(discarded=less))
