"""`store.replays`: finds the candidates of a window, and makes job groups of those that are selected."""

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
    exists,
    func,
    insert,
    select,
    update,
)

from blacksmith_dagster.errors import FencedOut
from blacksmith_dagster.store import history
from blacksmith_dagster.store.database import Database, GroupJobRow
from blacksmith_dagster.store.group_members import (
    JOB_COLUMNS,
    STATE_COLUMNS,
    UNFINISHED_JOBS,
    select_retrying,
)
from blacksmith_dagster.store.lanes import last_loads, lock_lane
from blacksmith_dagster.store.records import (
    FencingToken,
    JobRow,
    JobState,
    Lane,
    Replay,
    ReplayCandidate,
    ReplayMode,
    ReplayPage,
    ReplayRequest,
    SelectedJob,
    Window,
)
from blacksmith_dagster.store.retention import is_awaited, raise_if_purged
from blacksmith_dagster.store.statements import batched, query, upsert
from blacksmith_dagster.store.tables import (
    IS_DISCARDED,
    OutcomeState,
    edits,
    events,
    group_jobs,
    job_groups,
    jobs,
    loads,
    outcomes,
    replays,
)
from blacksmith_dagster.store.waiting_groups import make_listing

_SPAN = 20_000  # sequence numbers that one page searches
_BATCH = 1_000  # values in one IN
_DENSE = 4  # read a whole range if it has at most this many sequence numbers per wanted one


class Replays:
    """The replays of all destination events. `destination` is the path of a destination event."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def begin(
        self,
        token: FencingToken,
        request: ReplayRequest,
        event_types: Sequence[str],
        run: str | None,
    ) -> Replay:
        """Begin a replay, or continue one with an equal request that has not ended.

        Jobs that other replays have left waiting move to the load lane. `event_types` are the types that
        the replay reads.

        Raises `FencedOut`; `Gone` if events that it has to read are purged.
        """
        database = self._database
        type_ids = [database.event_type(event_type) for event_type in event_types]
        with database.reading() as conn:
            after, upto = history.window(conn, request.start, request.end, database.sequence(conn))
        with database.writing() as conn:
            destination, lane = lock_lane(database, conn, token)
            window = Window(after, max(min(upto, database.high_watermark(conn)), after))
            replay_id = _begin(conn, destination, request, type_ids, window, lane.now, run)
            return self._replay(conn, token.destination, replay_id)

    def _replay(self, conn: Connection, path: str, replay_id: int) -> Replay:
        [row] = _find_replays(conn, self._database.destination(path), 1, replay_id)
        return _replay_from_row(row, path)

    def page(
        self, destination: str, request: ReplayRequest, event_types: Sequence[str], window: Window
    ) -> ReplayPage:
        """The first events of a window that a request's modes and filters select."""
        destination_id = self._database.destination(destination)
        type_ids = [self._database.event_type(event_type) for event_type in event_types]
        # In one snapshot: a job that is claimed between two queries would look like one that succeeded.
        with self._database.snapshot() as conn:
            rows, upto = _find_page(conn, destination_id, request, type_ids, window)
        ids = self._database.epochs.ids_of(row.seq for row in rows)
        paths = {number: self._database.event_type_path(number) for number in type_ids}
        return ReplayPage(
            [
                ReplayCandidate(seq, id_, paths[event_type], received_at, state, error)
                for id_, (seq, event_type, received_at, state, error) in zip(ids, rows, strict=True)
            ],
            upto,
        )

    def job_rows(self, destination: str, seqs: Sequence[int]) -> Sequence[JobRow]:
        """Events by their sequence numbers, in order, as jobs of a destination event."""
        destination_id = self._database.destination(destination)
        with self._database.reading() as conn:
            return self._database.job_rows(list(_job_rows_of(conn, destination_id, seqs)))

    def plan(
        self,
        token: FencingToken,
        replay: Replay,
        upto: int,
        selected: Sequence[SelectedJob],
        batch: int,
    ) -> Replay:
        """Put jobs into job groups of `batch` jobs for the replay lane; the replay advances to `upto`.

        Raises `FencedOut`.
        """
        with self._database.writing() as conn:
            destination, lane = lock_lane(self._database, conn, token)
            rows = _plan(conn, destination, replay, upto, selected, batch, lane.now)
            if rows:
                self._database.insert_group_jobs(conn, rows)
            return self._replay(conn, token.destination, replay.id)

    def end(self, token: FencingToken, replay: Replay) -> bool:
        """Record that a replay has ended; `False` if some of its jobs still wait to run.

        Raises `FencedOut`.
        """
        ended = update(replays).where(
            replays.c.id == replay.id, ~exists().where(*_is_waiting_group)
        )
        with self._database.writing() as conn:
            _, lane = lock_lane(self._database, conn, token)
            return conn.execute(ended.values(ended_at=lane.now)).rowcount == 1

    def newest(self, destination: str, limit: int = 100) -> Sequence[Replay]:
        """The replays of a destination event, the newest first."""
        with self._database.reading() as conn:
            rows = _find_replays(conn, self._database.destination(destination), limit)
        return [_replay_from_row(row, destination) for row in rows]

    def unsettled(self, destination: str, limit: int = 100) -> Sequence[JobState]:
        """The jobs of its last replay that are discarded, or wait to run again."""
        with self._database.reading() as conn:
            rows = _unsettled(conn, self._database.destination(destination), limit)
        return [
            history.job_state(
                self._database, destination, "discarded" if row.due_at is None else "retrying", row
            )
            for row in rows
        ]


# ------------------------------------------------------------------------------------- the replay


def _begin(
    conn: Connection,
    destination: int,
    request: ReplayRequest,
    event_types: Sequence[int],
    window: Window,
    now: datetime,
    run: str | None,
) -> int:
    """Continue the open replay with the same request, or begin a new one; returns its id.

    Raises `Gone` if events of these types that it has not reached yet are purged.
    """
    encoded = msgspec.json.encode(request).decode()
    same = (replays.c.destination == destination, replays.c.request == encoded)
    unended = (
        select(replays.c.id, replays.c.planned_upto, replays.c.began_at)
        .where(*same, replays.c.ended_at.is_(None))
        .order_by(replays.c.id.desc())
    )
    row = conn.execute(unended).first()
    if row is None or not is_awaited(conn, destination, row.began_at, now):
        raise_if_purged(conn, event_types, window.after if row is None else row.planned_upto)
    replay_id = None if row is None else row.id
    if replay_id is None:
        values = {
            "destination": destination,
            "request": encoded,
            "after": window.after,
            "upto": window.upto,
            "planned_upto": window.after,
            "jobs": 0,
            "created_jobs": 0,
            "began_at": now,
        }
        replay_id = conn.execute(insert(replays).returning(replays.c.id), values).scalar_one()
    conn.execute(update(replays).where(replays.c.id == replay_id).values(run=run))
    of_other_replays = (
        job_groups.c.destination == destination,
        job_groups.c.lane == Lane.REPLAY,
        job_groups.c.load.is_(None),
        job_groups.c.replay != replay_id,
    )
    conn.execute(update(job_groups).where(*of_other_replays).values(lane=Lane.LOAD))
    return int(replay_id)


_is_waiting_group = (
    job_groups.c.destination == replays.c.destination,
    job_groups.c.lane == Lane.REPLAY,
    job_groups.c.load.is_(None),
    job_groups.c.replay == replays.c.id,
)
_waiting_jobs = (
    select(func.coalesce(func.sum(job_groups.c.jobs), 0))
    .where(*_is_waiting_group)
    .scalar_subquery()
)


def _find_replays(
    conn: Connection, destination: int, limit: int, replay: int | None = None
) -> list[Row[Any]]:
    """The rows of replays, the newest first, each with how many of its jobs are `waiting`."""
    statement = select(replays, _waiting_jobs.label("waiting")).where(
        replays.c.destination == destination
    )
    if replay is not None:
        statement = statement.where(replays.c.id == replay)
    return list(conn.execute(statement.order_by(replays.c.id.desc()).limit(limit)))


def _replay_from_row(row: Row[Any], path: str) -> Replay:
    """A row of `_find_replays` as a replay."""
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


# ------------------------------------------------------------------------------------- candidates


def _pending(conn: Connection, destination: int, window: Window) -> tuple[int, set[int]]:
    """The position of the load lane, and the jobs up to it that wait to run again or are running.

    Call this before reading the candidates: after it, only a replay can make another job pending.
    """
    last = last_loads(conn, destination)
    values = {"destination": destination, "open": last.open, **window._asdict()}
    return last.position, set(conn.execute(_UNFINISHED, values).scalars())


_UNFINISHED = query(UNFINISHED_JOBS, jobs.c.seq, lists=["open"])


class _CandidateRow(NamedTuple):
    """An event of a window, as `ReplayCandidate` has it."""

    seq: int
    event_type: int
    received_at: datetime
    state: str
    error: str | None


def _find_page(
    conn: Connection,
    destination: int,
    request: ReplayRequest,
    event_types: Sequence[int],
    window: Window,
) -> tuple[list[_CandidateRow], int]:
    """The first events of a window that a request's modes and filters select, and the sequence number
    up to which the window was searched."""
    # Discarded jobs have an index; all other modes read the log.
    if set(request.modes) == {ReplayMode.FAILED} or request.error is not None:
        return _find_discarded(conn, destination, request, event_types, window)
    part = Window(window.after, min(window.upto, window.after + _SPAN))
    return list(_find_in_log(conn, destination, request, event_types, part)), part.upto


def _find_discarded(
    conn: Connection,
    destination: int,
    request: ReplayRequest,
    event_types: Sequence[int],
    window: Window,
) -> tuple[list[_CandidateRow], int]:
    """Candidates by the index of discarded jobs.

    None of them is pending: the transaction that replays a job also ends its state 'discarded'.
    """
    statement = select(outcomes.c.seq, outcomes.c.error).where(
        *_is_discarded(destination), outcomes.c.seq > window.after, outcomes.c.seq <= window.upto
    )
    if request.error is not None:
        statement = statement.where(outcomes.c.error.contains(request.error, autoescape=True))
    errors = dict(conn.execute(statement.order_by(outcomes.c.seq).limit(_BATCH)).tuples().all())
    upto = max(errors) if len(errors) == _BATCH else window.upto
    selected = _select_requested(request, event_types).where(events.c.seq.in_(errors))
    return [
        _CandidateRow(seq, event_type, received_at, "discarded", errors[seq])
        for seq, event_type, received_at in conn.execute(selected.order_by(events.c.seq)).tuples()
    ], upto


def _find_in_log(
    conn: Connection,
    destination: int,
    request: ReplayRequest,
    event_types: Sequence[int],
    window: Window,
) -> Iterator[_CandidateRow]:
    """Candidates by the log.

    Each table's range is read by itself and joined here: a SQL join would look up each event in each
    table.
    """
    position, pending = _pending(conn, destination, window)

    def between(column: Any) -> Any:
        return and_(column > window.after, column <= window.upto)

    log_jobs = select(jobs.c.seq).where(jobs.c.destination == destination, between(jobs.c.seq))
    created_jobs = select(group_jobs.c.seq).where(
        group_jobs.c.destination == destination, between(group_jobs.c.seq), group_jobs.c.created
    )
    in_log = set(conn.execute(log_jobs).scalars())
    created = set(conn.execute(created_jobs).scalars())
    discarded = select(outcomes.c.seq, outcomes.c.error).where(
        *_is_discarded(destination), between(outcomes.c.seq)
    )
    errors = dict(conn.execute(discarded).tuples().all())
    modes = set(request.modes)
    wanted = {"missing"} if ReplayMode.MISSING in modes else set()
    wanted |= {"discarded"} if ReplayMode.FAILED in modes else set()
    selected = _select_requested(request, event_types).where(between(events.c.seq))
    for seq, event_type, received_at in conn.execute(selected.order_by(events.c.seq)).tuples():
        if (seq in in_log and seq > position) or seq in pending:
            state = "pending"
        elif seq in errors:
            state = "discarded"
        else:
            state = "succeeded" if seq in in_log or seq in created else "missing"
        if ReplayMode.ALL in modes or state in wanted:
            yield _CandidateRow(seq, event_type, received_at, state, errors.get(seq))


def _is_discarded(destination: int) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return outcomes.c.destination == destination, IS_DISCARDED


def _select_requested(request: ReplayRequest, event_types: Sequence[int]) -> Select[Any]:
    statement = select(events.c.seq, events.c.event_type, events.c.received_at).where(
        events.c.event_type.in_(event_types),
        events.c.received_at >= request.start,
        events.c.received_at < request.end,
    )
    if request.version is not None:
        statement = statement.where(events.c.version == request.version)
    return statement


def _job_rows_of(conn: Connection, destination: int, seqs: Sequence[int]) -> Iterator[Any]:
    """Events as rows of JOB_COLUMNS, with the `when_error` of their jobs, if they have any."""
    job_of_event = and_(jobs.c.destination == destination, jobs.c.seq == events.c.seq)
    statement = select(*JOB_COLUMNS).select_from(events.outerjoin(jobs, job_of_event))
    for batch in batched(seqs, _BATCH):
        wanted, span = set(batch), batch[-1] - batch[0]
        # A list of numbers costs more than reading a few rows too many.
        dense = span < _DENSE * len(batch)
        in_batch = events.c.seq.between(batch[0], batch[-1]) if dense else events.c.seq.in_(batch)
        rows = conn.execute(statement.where(in_batch).order_by(events.c.seq))
        yield from (row for row in rows if row.seq in wanted)


def _unsettled(conn: Connection, destination: int, limit: int) -> Sequence[Row[Any]]:
    """Jobs of the last replay that wait for a retry, or are discarded (without `due_at`)."""
    return conn.execute(_UNSETTLED, {"destination": destination, "limit": limit}).all()


_UNSETTLED = query(
    f"""
{select_retrying("g.replay = (SELECT max(id) FROM replays WHERE destination = :destination)")}
UNION ALL
SELECT e.seq, e.event_type, e.received_at, l.attempt, o.error, NULL
  FROM outcomes o JOIN events e ON e.seq = o.seq JOIN loads l ON l.id = o.load
 WHERE o.destination = :destination AND o.state = 'discarded'
   AND EXISTS (
       SELECT 1 FROM group_jobs r JOIN job_groups g ON g.id = r.listing
        WHERE r.destination = :destination AND r.seq = o.seq
          AND g.replay = (SELECT max(id) FROM replays WHERE destination = :destination))
 ORDER BY 1 LIMIT :limit""",
    *STATE_COLUMNS,
)


# ------------------------------------------------------------------------------------- planning


def _plan(
    conn: Connection,
    destination: int,
    replay: Replay,
    upto: int,
    selected: Sequence[SelectedJob],
    batch: int,
    now: datetime,
) -> list[GroupJobRow]:
    """Make job groups of the selected jobs; returns the rows of `group_jobs`, for the caller to insert.

    Raises `FencedOut` if another process has planned this replay further.
    """
    created_jobs = sum(job.state == "missing" for job in selected)
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
        raise FencedOut(f"{replay.destination}: another process is planning replay {replay.id}")
    _mark_replayed(conn, destination, [job.seq for job in selected if job.state == "discarded"])
    edited = [
        {"destination": destination, "seq": job.seq, "payload": job.payload}
        for job in selected
        if job.payload is not None
    ]
    if edited:
        added = upsert(conn, edits)
        key, latest = ["destination", "seq"], {"payload": added.excluded.payload}
        conn.execute(added.on_conflict_do_update(index_elements=key, set_=latest), edited)
    rows = []
    for part in batched(selected, batch):
        values: dict[str, Any] = {
            "destination": destination,
            "lane": Lane.REPLAY,
            "replay": replay.id,
            "job_key": f"{destination}-{replay.id}" if replay.request.new_key else None,
            "seq_from": part[0].seq,
            "seq_to": part[-1].seq,
            "jobs": len(part),
            "attempts": 0,
            "isolated": False,
            "due_at": now,
        }
        listing = make_listing(conn, values)
        rows += [
            GroupJobRow(destination, job.seq, listing, job.state == "missing", job.when_error)
            for job in part
        ]
    return rows


def _mark_replayed(conn: Connection, destination: int, seqs: Sequence[int]) -> None:
    """Mark discarded jobs as replayed: they no longer count as discarded."""
    per_load: Counter[int] = Counter()
    for part in batched(seqs, _BATCH):
        replayed = (
            update(outcomes)
            .where(
                outcomes.c.destination == destination,
                IS_DISCARDED,
                outcomes.c.seq.in_(part),
            )
            .values(state=OutcomeState.REPLAYED)
            .returning(outcomes.c.load)
        )
        per_load.update(conn.execute(replayed).scalars())
    for load_id, number in per_load.items():
        discarded = loads.c.discarded - number
        conn.execute(update(loads).where(loads.c.id == load_id).values(discarded=discarded))
