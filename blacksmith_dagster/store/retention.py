"""Which events are past their time, and which of those are still needed. Reads alone."""

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
    union_all,
)

from blacksmith_dagster.errors import Gone
from blacksmith_dagster.pipeline.retention import Retention
from blacksmith_dagster.store.claims import LANES
from blacksmith_dagster.store.interface import Lane, Window
from blacksmith_dagster.store.loads import last_load
from blacksmith_dagster.store.maintenance import batched
from blacksmith_dagster.store.tables import (
    DISCARDED,
    EXECUTING,
    counter,
    event_types,
    events,
    group_jobs,
    job_groups,
    jobs,
    loads,
    outcomes,
    replays,
    time_index,
)

_CHUNK = 10_000  # sequence numbers that one statement names
_REPLAY_AWAITED = timedelta(days=7)  # for which what a replay has yet to come to is kept for it


class Expiry(NamedTuple):
    """How far the events of a type are past their time.

    All up to `upto` were received before `before`; none is left up to `swept`. A job that was
    discarded after `discarded_before` holds its event back, any discarded one if that is `None`.
    """

    event_type: int
    upto: int
    before: datetime
    swept: int
    discarded_before: datetime | None


def expiries(conn: Connection, retention: Mapping[int, Retention], now: datetime) -> list[Expiry]:
    """How far each event type is past its time, by the time index; without those that are kept forever.

    What the counters have not come to stays: they would never count it.
    """
    counted = conn.execute(select(counter.c.upto)).scalar_one()
    swept = dict(conn.execute(select(event_types.c.id, event_types.c.swept_upto)).tuples().all())
    found = []
    for event_type, lasting in sorted(retention.items()):
        if lasting.events is None:
            continue
        old = select(time_index.c.at, time_index.c.low).where(
            time_index.c.at <= now - lasting.events
        )
        row = conn.execute(old.order_by(time_index.c.at.desc()).limit(1)).first()
        if row is not None and min(row.low, counted) > swept[event_type]:
            since = None if lasting.discarded is None else now - lasting.discarded
            found.append(
                Expiry(event_type, min(row.low, counted), row.at, swept[event_type], since)
            )
    return found


def is_expired(expiries: Sequence[Expiry], windows: Sequence[Window] = ()) -> ColumnElement[bool]:
    """Whether an event is past its time, and in none of these windows."""
    old = or_(
        *(
            and_(
                events.c.event_type == each.event_type,
                events.c.seq > each.swept,
                events.c.seq <= each.upto,
            )
            for each in expiries
        )
    )
    return and_(old, *(~events.c.seq.between(each.after + 1, each.upto) for each in windows))


def refuse_purged(conn: Connection, of: Sequence[int], after: int) -> None:
    """Raise `Gone` if events of these types with higher numbers than `after` may be gone.

    Their log starts stay where they are until the transaction ends: what it makes of events above them,
    a purge finds.
    """
    log_starts = select(event_types.c.path, event_types.c.purged_before, event_types.c.purged_upto)
    locked = (
        log_starts.where(event_types.c.id.in_(of))
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
    """Why an event that is not there may have been purged, `None` if it was not."""
    log_starts = select(event_types.c.path, event_types.c.purged_before).where(
        event_types.c.purged_upto >= seq
    )
    gone = dict(conn.execute(log_starts.order_by(event_types.c.id)).tuples().all())
    return kept_since(gone) if gone else None


def kept_since(gone: Mapping[str, datetime]) -> str:
    """From when on events of each type are kept, for people."""
    since = [
        f"{', '.join(path for path, at in gone.items() if at == before)} since {before.isoformat()}"
        for before in sorted(set(gone.values()))
    ]
    return f"the store keeps {'; '.join(since)}"


# ------------------------------------------------------------------------------------- needed


class NeededEvents(NamedTuple):
    """Events that must stay: `seqs`, in order, and those in `windows`."""

    seqs: Sequence[int] = ()
    windows: Sequence[Window] = ()

    def between(self, first: int, last: int) -> Sequence[int]:
        """Those of `seqs` from `first` to `last`."""
        return self.seqs[bisect_left(self.seqs, first) : bisect_right(self.seqs, last)]

    def any_between(self, first: int, last: int) -> bool:
        """Whether an event from `first` to `last` must stay."""
        windows = any(each.after < last and first <= each.upto for each in self.windows)
        return windows or bool(self.between(first, last))


def is_awaited(conn: Connection, destination: int, began_at: datetime, now: datetime) -> bool:
    """Whether a replay that has not ended is still waited for: it began, or was at work, lately."""
    last = conn.execute(last_load(destination, LANES[Lane.REPLAY], loads.c.started_at)).scalar()
    return max(began_at, last or began_at) > now - _REPLAY_AWAITED


def needed_events(
    conn: Connection,
    expiries: Sequence[Expiry],
    destinations: Sequence[int],
    outcome_event_types: Sequence[int],
    now: datetime,
) -> NeededEvents:
    """The events past their time that must stay.

    Those of which a job waits or executes, those of which a job was discarded too lately, what
    outcomes among them came of, and what a replay has yet to come to. To be asked in one snapshot: a
    job is pending in many ways, and goes from one to the next.
    """
    upto = max(each.upto for each in expiries)
    lately = _discarded_lately(expiries)
    windows = []
    found: set[int] = set()
    parents: set[int] = set()
    for of in destinations:
        columns = (loads.c.id, loads.c.state, loads.c.position)
        last = {
            lane: conn.execute(last_load(of, lane, *columns)).first() for lane in LANES.values()
        }
        first = last[LANES[Lane.LOAD]]
        given = {
            "of": of,
            "upto": upto,
            "event_types": outcome_event_types,
            "after": first.position if first else 0,
            "open": [each.id for each in last.values() if each and each.state == EXECUTING],
        }
        found.update(conn.execute(_PENDING, given).scalars())
        found.update(conn.execute(lately, given).scalars())
        if outcome_event_types:
            parents.update(conn.execute(_PARENTS_OF_PENDING, given).scalars())
        windows += [
            Window(each.planned_upto, each.upto)
            for each in conn.execute(_REPLAYED, given)
            if is_awaited(conn, of, each.began_at, now)
        ]
    for window in windows:
        given = {**window._asdict(), "event_types": outcome_event_types}
        parents.update(conn.execute(_PARENTS_OF_WINDOW, given).scalars())
    parents |= _parents(conn, found, outcome_event_types)
    while fresh := parents - found:
        found |= fresh
        parents = _parents(conn, fresh, outcome_event_types)
    return NeededEvents(sorted(seq for seq in found if seq <= upto), windows)


def _parents(conn: Connection, seqs: set[int], outcome_event_types: Sequence[int]) -> set[int]:
    found = set[int]()
    for part in batched(sorted(seqs), _CHUNK):
        given = {"seqs": part, "event_types": outcome_event_types}
        found.update(conn.execute(_PARENTS, given).scalars())
    return found


_of: Any = bindparam("of")
_open: Any = bindparam("open", expanding=True)
_event_types: Any = bindparam("event_types", expanding=True)
_upto: Any = bindparam("upto")
_waits = and_(
    job_groups.c.destination == _of, or_(job_groups.c.load.is_(None), job_groups.c.load.in_(_open))
)
_in_group = (job_groups.c.seq_from, job_groups.c.seq_to)
_pending = union_all(
    select(jobs.c.seq).where(jobs.c.destination == _of, jobs.c.seq > bindparam("after")),
    select(jobs.c.seq)
    .join(loads, jobs.c.seq.between(loads.c.seq_from, loads.c.seq_to))
    .where(jobs.c.destination == _of, loads.c.id.in_(_open)),
    select(jobs.c.seq)
    .join(job_groups, jobs.c.seq.between(*_in_group))
    .where(jobs.c.destination == _of, _waits, job_groups.c.listing.is_(None)),
    select(outcomes.c.seq)
    .join(job_groups, outcomes.c.listing == job_groups.c.listing)
    .where(_waits, outcomes.c.seq.between(*_in_group)),
    select(group_jobs.c.seq)
    .join(job_groups, group_jobs.c.listing == job_groups.c.listing)
    .where(group_jobs.c.destination == _of, _waits, group_jobs.c.seq.between(*_in_group)),
).subquery()
_PENDING = select(_pending.c.seq).where(_pending.c.seq <= _upto)
_of_outcome = and_(events.c.event_type.in_(_event_types), events.c.parent.is_not(None))
_PARENTS_OF_PENDING = (
    select(events.c.parent).join(_pending, _pending.c.seq == events.c.seq).where(_of_outcome)
)
_PARENTS = select(events.c.parent).where(
    _of_outcome, events.c.seq.in_(bindparam("seqs", expanding=True))
)
_PARENTS_OF_WINDOW = select(events.c.parent).where(
    _of_outcome, events.c.seq > bindparam("after"), events.c.seq <= _upto
)
_REPLAYED = select(replays.c.planned_upto, replays.c.upto, replays.c.began_at).where(
    replays.c.destination == _of,
    replays.c.ended_at.is_(None),
    replays.c.planned_upto < replays.c.upto,
    replays.c.planned_upto < _upto,
)


def _discarded_lately(expiries: Sequence[Expiry]) -> Any:
    """The events of which a job was discarded too lately."""
    lately = or_(
        *(
            and_(
                events.c.event_type == each.event_type,
                true()
                if each.discarded_before is None
                else loads.c.finished_at > each.discarded_before,
            )
            for each in expiries
        )
    )
    return (
        select(outcomes.c.seq)
        .join(events, events.c.seq == outcomes.c.seq)
        .join(loads, loads.c.id == outcomes.c.load)
        .where(
            outcomes.c.destination == _of,
            outcomes.c.state == DISCARDED,
            or_(outcomes.c.seq <= _upto, events.c.event_type.in_(_event_types)),
            lately,
        )
    )
