"""Finds the events past their retention, and those of them that are still needed. Only reads."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    bindparam,
    or_,
    select,
    true,
)

from blacksmith_dagster.errors import Gone
from blacksmith_dagster.pipeline.retention import Retention
from blacksmith_dagster.store.group_members import UNFINISHED_JOBS
from blacksmith_dagster.store.lanes import MAX_ID, last_loads
from blacksmith_dagster.store.records import Window
from blacksmith_dagster.store.statements import batched, query
from blacksmith_dagster.store.tables import (
    IS_DISCARDED,
    counter,
    event_types,
    events,
    jobs,
    loads,
    outcomes,
    replays,
    time_index,
)

_BATCH = 10_000  # sequence numbers in one statement
_REPLAY_IDLE_LIMIT = timedelta(days=7)  # an open replay that was idle longer holds no events back


class Expiry(NamedTuple):
    """How far the events of a type are past their retention.

    Events up to `upto` were received before `before`; up to `swept` none is left. An event stays if a
    job of it was discarded after `discarded_before`, or at any time if that is `None`.
    """

    event_type: int
    upto: int
    before: datetime
    swept: int
    discarded_before: datetime | None


def expiries(conn: Connection, retention: Mapping[int, Retention], now: datetime) -> list[Expiry]:
    """How far the events of each type are past their retention, by the time index.

    Event types that are kept forever are left out. Events that the totals do not count yet stay, or they
    would never be counted.
    """
    counted = conn.execute(select(counter.c.upto)).scalar_one()
    swept = dict(conn.execute(select(event_types.c.id, event_types.c.swept_upto)).tuples().all())
    expired = []
    for event_type, kept_for in sorted(retention.items()):
        if kept_for.events is None:
            continue
        old = select(time_index.c.at, time_index.c.low).where(
            time_index.c.at <= now - kept_for.events
        )
        row = conn.execute(old.order_by(time_index.c.at.desc()).limit(1)).first()
        if row is not None and min(row.low, counted) > swept[event_type]:
            since = None if kept_for.discarded is None else now - kept_for.discarded
            upto = min(row.low, counted)
            expired.append(Expiry(event_type, upto, row.at, swept[event_type], since))
    return expired


def is_expired(expiries: Sequence[Expiry], windows: Sequence[Window] = ()) -> ColumnElement[bool]:
    """Whether an event is past its retention, and outside these windows."""
    old = or_(
        *(
            and_(
                events.c.event_type == expiry.event_type,
                events.c.seq > expiry.swept,
                events.c.seq <= expiry.upto,
            )
            for expiry in expiries
        )
    )
    return and_(old, *(~events.c.seq.between(window.after + 1, window.upto) for window in windows))


def raise_if_purged(conn: Connection, type_ids: Sequence[int], after: int) -> None:
    """Raise `Gone` if events of these types with sequence numbers above `after` may have been purged.

    Their log starts stay locked until the transaction ends, so that a purge sees the jobs that the
    transaction makes of events above them.
    """
    log_starts = select(event_types.c.path, event_types.c.purged_before, event_types.c.purged_upto)
    locked = (
        log_starts.where(event_types.c.id.in_(type_ids))
        .order_by(event_types.c.id)
        .with_for_update(read=True)
    )
    gone = {path: before for path, before, upto in conn.execute(locked) if upto > after}
    if gone:
        raise Gone(
            f"events of this time have been purged: {kept_since(gone)}; begin with "
            f"{max(gone.values()).isoformat()}"
        )


def why_gone(conn: Connection, seq: int) -> str | None:
    """Since when events are kept, if a missing event may have been purged; `None` if it was not."""
    log_starts = select(event_types.c.path, event_types.c.purged_before).where(
        event_types.c.purged_upto >= seq
    )
    gone = dict(conn.execute(log_starts.order_by(event_types.c.id)).tuples().all())
    return kept_since(gone) if gone else None


def kept_since(gone: Mapping[str, datetime]) -> str:
    """Since when the events of each type are kept, as text."""
    paths_by_start: dict[datetime, list[str]] = {}
    for path, start in gone.items():
        paths_by_start.setdefault(start, []).append(path)
    kept = [
        f"{', '.join(paths)} since {start.isoformat()}"
        for start, paths in sorted(paths_by_start.items())
    ]
    return f"the store keeps {'; '.join(kept)}"


# ------------------------------------------------------------------------------------- needed


class NeededEvents(NamedTuple):
    """Events that must stay: `seqs`, in order, and those in `windows`."""

    seqs: Sequence[int] = ()
    windows: Sequence[Window] = ()

    def between(self, first: int, last: int) -> Sequence[int]:
        """The part of `seqs` from `first` to `last`."""
        return self.seqs[bisect_left(self.seqs, first) : bisect_right(self.seqs, last)]

    def any_between(self, first: int, last: int) -> bool:
        """Whether an event from `first` to `last` must stay."""
        in_window = any(window.after < last and first <= window.upto for window in self.windows)
        return in_window or bool(self.between(first, last))


def is_awaited(conn: Connection, destination: int, began_at: datetime, now: datetime) -> bool:
    """Whether a replay that has not ended still holds events back: it began, or loaded, recently."""
    last = last_loads(conn, destination).replayed_at
    return max(began_at, last or began_at) > now - _REPLAY_IDLE_LIMIT


def needed_events(
    conn: Connection,
    expiries: Sequence[Expiry],
    destinations: Sequence[int],
    outcome_event_types: Sequence[int],
    now: datetime,
) -> NeededEvents:
    """The events past their retention that must stay.

    These are the events with a pending job, or with a job that was discarded too recently; the parents
    of outcomes that stay; and the events that a replay has not reached yet. Call it in one snapshot: a
    pending job can be in several places, and moves from one to the next.
    """
    upto = max(expiry.upto for expiry in expiries)
    discarded_recently = _discarded_recently(expiries)
    windows = []
    needed: set[int] = set()
    parents: set[int] = set()
    for destination in destinations:
        last = last_loads(conn, destination)
        values = {
            "destination": destination,
            "position": last.position,
            "open": last.open,
            "after": 0,
            "upto": upto,
            "event_types": outcome_event_types,
        }
        needed.update(conn.execute(_PENDING, values).scalars())
        needed.update(conn.execute(discarded_recently, values).scalars())
        if outcome_event_types:
            of_all = values | {"upto": MAX_ID}
            parents.update(conn.execute(_PARENTS_OF_PENDING, of_all).scalars())
        windows += [
            Window(replay.planned_upto, replay.upto)
            for replay in conn.execute(_OPEN_REPLAYS, values)
            if is_awaited(conn, destination, replay.began_at, now)
        ]
    for window in windows:
        values = {**window._asdict(), "event_types": outcome_event_types}
        parents.update(conn.execute(_PARENTS_OF_WINDOW, values).scalars())
    parents |= _parents(conn, needed, outcome_event_types)
    while new_parents := parents - needed:
        needed |= new_parents
        parents = _parents(conn, new_parents, outcome_event_types)
    return NeededEvents(sorted(seq for seq in needed if seq <= upto), windows)


def _parents(conn: Connection, seqs: set[int], outcome_event_types: Sequence[int]) -> set[int]:
    parents = set[int]()
    for batch in batched(sorted(seqs), _BATCH):
        values = {"seqs": batch, "event_types": outcome_event_types}
        parents.update(conn.execute(_PARENTS, values).scalars())
    return parents


_destination: Any = bindparam("destination")
_outcome_types: Any = bindparam("event_types", expanding=True)
_upto: Any = bindparam("upto")
_PENDING_SQL = f"""
SELECT p.seq
  FROM (SELECT seq FROM jobs WHERE destination = :destination AND seq > :position
        UNION ALL
        {UNFINISHED_JOBS}) p
 WHERE p.seq <= :upto"""
# The pending jobs of a destination event up to a sequence number.
_PENDING = query(_PENDING_SQL, jobs.c.seq, lists=["open"])
# The parents of those of them that are outcomes.
_PARENTS_OF_PENDING = query(
    f"""
SELECT e.parent
  FROM ({_PENDING_SQL}) o CROSS JOIN events e
 WHERE e.seq = o.seq AND e.event_type IN :event_types AND e.parent IS NOT NULL""",
    events.c.parent,
    lists=["open", "event_types"],
)
_is_outcome = and_(events.c.event_type.in_(_outcome_types), events.c.parent.is_not(None))
_PARENTS = select(events.c.parent).where(
    _is_outcome, events.c.seq.in_(bindparam("seqs", expanding=True))
)
_PARENTS_OF_WINDOW = select(events.c.parent).where(
    _is_outcome, events.c.seq > bindparam("after"), events.c.seq <= _upto
)
_OPEN_REPLAYS = select(replays.c.planned_upto, replays.c.upto, replays.c.began_at).where(
    replays.c.destination == _destination,
    replays.c.ended_at.is_(None),
    replays.c.planned_upto < replays.c.upto,
    replays.c.planned_upto < _upto,
)


def _discarded_recently(expiries: Sequence[Expiry]) -> Any:
    """The events with a job that was discarded too recently to purge it."""
    recently = or_(
        *(
            and_(
                events.c.event_type == expiry.event_type,
                true()
                if expiry.discarded_before is None
                else loads.c.finished_at > expiry.discarded_before,
            )
            for expiry in expiries
        )
    )
    return (
        select(outcomes.c.seq)
        .join(events, events.c.seq == outcomes.c.seq)
        .join(loads, loads.c.id == outcomes.c.load)
        .where(
            outcomes.c.destination == _destination,
            IS_DISCARDED,
            or_(outcomes.c.seq <= _upto, events.c.event_type.in_(_outcome_types)),
            recently,
        )
    )
