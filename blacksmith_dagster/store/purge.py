"""Removing events that are past their time, with all that is told of them.

First the log starts are moved, so that no replay begins below them; then what is still needed is looked
for, in one snapshot. From there on it only becomes less: what is below a log start gets no new jobs.
So the rest is deleted in small transactions, and a purge that was killed is completed by the next.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    and_,
    bindparam,
    delete,
    exists,
    func,
    or_,
    select,
    update,
)

from blacksmith_dagster.pipeline.retention import Retention
from blacksmith_dagster.store.archived import archived
from blacksmith_dagster.store.claims import LANES
from blacksmith_dagster.store.interface import (
    Archive,
    Purgeable,
    PurgeStep,
    Window,
)
from blacksmith_dagster.store.loads import last_load
from blacksmith_dagster.store.maintenance import batched, upsert
from blacksmith_dagster.store.partitions import Partition, Partitions
from blacksmith_dagster.store.retention import NeededEvents, expiries, is_expired, needed_events
from blacksmith_dagster.store.tables import (
    DISCARDED,
    edits,
    event_totals,
    event_types,
    events,
    group_jobs,
    job_groups,
    job_totals,
    jobs,
    loads,
    outcomes,
)

if TYPE_CHECKING:
    from blacksmith_dagster.store.sql import SQLStore

_SPAN = 1_000_000  # sequence numbers that are looked through at once
_PAGE = 50_000  # events that are archived together
_AT_ONCE = 1_000  # events that are deleted in one transaction: others wait to write
_AT_LAST = 5_000  # job groups, or loads, that are


class Purge:
    """One purge of a store: what is past its time, and what of it is still needed."""

    def __init__(self, store: SQLStore, retention: Mapping[str, Retention]) -> None:
        store.maintain()  # what has not been counted is not purged
        store._read_names()
        known = store._event_types
        of = {known[path]: lasting for path, lasting in retention.items() if path in known}
        with store.reading() as conn:
            self._now = store._now(conn)
            self._expiries = expiries(conn, of, self._now)
        self._store = store
        self._destinations = sorted(store._destinations.values())
        self._start = min((each.swept for each in self._expiries), default=0)
        self._top = max((each.upto for each in self._expiries), default=0)
        self._needed = NeededEvents()

    def look(self) -> Sequence[Purgeable]:
        """What would go. Changes nothing."""
        if not self._expiries:
            return []
        self._find_needed()
        old: Counter[int] = Counter()
        going: Counter[int] = Counter()
        with self._store.reading() as conn:
            for after in range(self._start, self._top, _PAGE):
                page = events.c.seq.between(after + 1, min(after + _PAGE, self._top))
                old += _per_event_type(conn, page, is_expired(self._expiries))
                going += _per_event_type(
                    conn, page, is_expired(self._expiries, self._needed.windows)
                )
            for part in batched(self._needed.seqs, _AT_LAST):
                going -= _per_event_type(
                    conn, events.c.seq.in_(part), is_expired(self._expiries, self._needed.windows)
                )
        return [
            Purgeable(
                self._store._event_type_paths[each.event_type],
                each.before,
                going[each.event_type],
                old[each.event_type] - going[each.event_type],
            )
            for each in self._expiries
        ]

    def run(self, archive: Archive | None) -> Iterator[PurgeStep]:
        """Remove what is past its time, step by step."""
        partitions = self._store.partitions
        if partitions is not None:
            # What a purge that was killed has left.
            yield PurgeStep(postponed=partitions.drop_planned())
        if not self._expiries:
            return
        self._move_log_starts()
        self._find_needed()
        if partitions is not None:
            yield from self._drop(partitions, archive)
        for page in self._pages(self._start, self._top):
            if archive is not None:
                yield PurgeStep(file=archive.write(archived(self._store, page)))
            for part in batched(page, _AT_ONCE):
                self._delete(part)
                yield PurgeStep(events=len(part))
        yield from self._sweep()
        self._move_swept()

    # -- the log starts
    def _move_log_starts(self) -> None:
        with self._store.writing() as conn:
            for each in self._expiries:
                mine = (event_types.c.id == each.event_type, event_types.c.purged_upto < each.upto)
                log_start = {"purged_upto": each.upto, "purged_before": each.before}
                conn.execute(update(event_types).where(*mine).values(log_start))

    def _move_swept(self) -> None:
        """Let the next purge begin where this one has left something."""
        with self._store.writing() as conn:
            left: dict[int, int] = {}
            for part in reversed(list(batched(self._needed.seqs, _AT_LAST))):
                first = select(events.c.event_type, func.min(events.c.seq)).where(
                    events.c.seq.in_(part)
                )
                left |= dict(conn.execute(first.group_by(events.c.event_type)).tuples().all())
            for each in self._expiries:
                firsts = [window.after + 1 for window in self._needed.windows]
                firsts.append(left.get(each.event_type, each.upto + 1))
                upto = min(each.upto, min(firsts) - 1)
                mine = (event_types.c.id == each.event_type, event_types.c.swept_upto < upto)
                conn.execute(update(event_types).where(*mine).values(swept_upto=upto))

    # -- what stays, and what goes
    def _find_needed(self) -> None:
        # No name of a source or of its event has a dot.
        outcome_event_types = [
            event_type for path, event_type in self._store._event_types.items() if "." in path
        ]
        with self._store.snapshot() as conn:
            self._needed = needed_events(
                conn, self._expiries, self._destinations, outcome_event_types, self._now
            )

    def _is_whole(self, partition: Partition) -> bool:
        """Whether a partition holds nothing but what is to go."""
        first, last = partition.first, partition.last
        if last > self._top or self._needed.any_between(first, last):
            return False
        expired = [each.event_type for each in self._expiries if max(each.upto, each.swept) >= last]
        with self._store.reading() as conn:
            received = conn.execute(select(event_totals.c.event_type).distinct()).scalars()
            others = set(received) - set(expired)
            of_others = (events.c.seq.between(first, last), events.c.event_type.in_(others))
            return conn.execute(select(events.c.seq).where(*of_others).limit(1)).first() is None

    def _pages(self, after: int, upto: int) -> Iterator[Sequence[int]]:
        """The events that are to go, in order: their sequence numbers."""
        old = is_expired(self._expiries, self._needed.windows)
        while after < upto:
            end = min(after + _SPAN, upto)
            found = select(events.c.seq).where(events.c.seq > after, events.c.seq <= end, old)
            with self._store.reading() as conn:
                seqs = conn.execute(found.order_by(events.c.seq).limit(_PAGE)).scalars().all()
            after = seqs[-1] if len(seqs) == _PAGE else end
            stay = set(self._needed.between(seqs[0], seqs[-1])) if seqs else ()
            if page := [seq for seq in seqs if seq not in stay]:
                yield page

    # -- removing
    def _drop(self, partitions: Partitions, archive: Archive | None) -> Iterator[PurgeStep]:
        """Drop the partitions that hold nothing but what is to go."""
        with self._store.reading() as conn:
            listed = partitions.listed(conn)
        for partition in filter(self._is_whole, listed):
            if archive is not None:
                for page in self._pages(partition.first - 1, partition.last):
                    yield PurgeStep(file=archive.write(archived(self._store, page)))
            with self._store.writing() as conn:
                self._forget(conn, partition.holds)
                partitions.plan_drop(conn, partition)
            yield PurgeStep(partitions=1, postponed=partitions.drop_planned())
        with self._store.reading() as conn:
            left = [Window(each.first - 1, each.last) for each in partitions.planned_drops(conn)]
        # They have lost their jobs already, and go as a whole.
        self._needed = NeededEvents(self._needed.seqs, [*self._needed.windows, *left])

    def _delete(self, part: Sequence[int]) -> None:
        """Delete events and their jobs."""
        first, last = part[0], part[-1]
        stay = self._needed.between(first, last)
        # By whichever list is the shorter: a long one takes longer than the rest.
        going: ColumnElement[bool] = events.c.seq.in_(part)
        if len(stay) < len(part):
            going = and_(
                is_expired(self._expiries, self._needed.windows), events.c.seq.not_in(stay)
            )

        def without_event(seq: ColumnElement[int]) -> ColumnElement[bool]:
            return and_(seq.between(first, last), ~exists().where(events.c.seq == seq))

        with self._store.writing() as conn:
            conn.execute(delete(events).where(events.c.seq.between(first, last), going))
            conn.execute(delete(jobs).where(*self._of(jobs, without_event(jobs.c.seq))))
            self._forget(conn, without_event)

    def _forget(
        self, conn: Connection, which: Callable[[ColumnElement[int]], ColumnElement[bool]]
    ) -> None:
        """Delete what is told of jobs by event. The discarded are in the totals from then on."""
        for table in (group_jobs, edits):
            conn.execute(delete(table).where(*self._of(table, which(table.c.seq))))
        mine = (*self._of(outcomes, which(outcomes.c.seq)), outcomes.c.state == DISCARDED)
        gone = delete(outcomes).where(*mine)
        rows = conn.execute(gone.returning(outcomes.c.load, outcomes.c.destination)).all()
        if rows:
            per_load = Counter(row.load for row in rows)
            conn.execute(_LESS, [{"of": load, "n": n} for load, n in per_load.items()])
        for destination, n in Counter(row.destination for row in rows).items():
            values = {"destination": destination, "jobs": 0, "purged_discarded": n}
            added = upsert(conn, job_totals).values(values)
            more = {"purged_discarded": job_totals.c.purged_discarded + n}
            added = added.on_conflict_do_update(index_elements=["destination"], set_=more)
            conn.execute(added)

    def _of(self, table: Any, which: ColumnElement[bool]) -> Sequence[ColumnElement[bool]]:
        """Rows of a table of jobs, by the whole of its key."""
        return table.c.destination.in_(self._destinations), which

    # -- what nothing needs any more
    def _sweep(self) -> Iterator[PurgeStep]:
        """Delete the job groups and the loads that have no job left.

        A lane's last load stays: it is the lane's state.
        """
        for of in self._destinations:
            with self._store.reading() as conn:
                last = [
                    conn.execute(last_load(of, lane, loads.c.id)).scalar()
                    for lane in LANES.values()
                ]
                given = {
                    "of": of,
                    "start": self._start,
                    "top": self._top,
                    "last": [load for load in last if load],
                }
                empty = _empty_groups(conn, given)
            for part in batched(empty, _AT_LAST):
                with self._store.writing() as conn:
                    conn.execute(
                        delete(job_groups).where(job_groups.c.id.in_([each.id for each in part]))
                    )
                    taken = exists().where(job_groups.c.load == loads.c.id)
                    ids = sorted({each.load for each in part})
                    _delete_loads(conn, loads.c.id.in_(ids), ~taken)
                yield PurgeStep()
            with self._store.reading() as conn:
                found = select(loads.c.id).where(*_empty_loads(given)).order_by(loads.c.id)
                numbers = conn.execute(found).scalars().all()
            for some in batched(numbers, _AT_LAST):
                with self._store.writing() as conn:
                    some_of_them = loads.c.id.between(some[0], some[-1])
                    _delete_loads(conn, some_of_them, *_empty_loads(given))
                yield PurgeStep()


def _empty_groups(conn: Connection, given: Mapping[str, Any]) -> Sequence[Row[Any]]:
    """Job groups without a job. The one that a listing began with tells when it did: it goes with the
    last.
    """
    empty = conn.execute(_EMPTY_GROUPS, given).all()
    per_listing = Counter(each.listing for each in empty if each.listing is not None)
    if not per_listing:
        return empty
    of_listings = select(job_groups.c.listing, func.count()).where(
        job_groups.c.destination == given["of"]
    )
    there = dict(conn.execute(of_listings.group_by(job_groups.c.listing)).tuples().all())
    return [
        each
        for each in empty
        if each.id != each.listing or per_listing[each.listing] == there[each.listing]
    ]


def _delete_loads(conn: Connection, *where: ColumnElement[bool]) -> None:
    gone = select(loads.c.id).where(loads.c.discarded == 0, *where)
    conn.execute(delete(outcomes).where(outcomes.c.load.in_(gone)))
    conn.execute(delete(loads).where(loads.c.discarded == 0, *where))


def _empty_loads(given: Mapping[str, Any]) -> Sequence[ColumnElement[bool]]:
    """First loads none of whose jobs is left."""
    of_load = jobs.c.seq.between(loads.c.seq_from, loads.c.seq_to)
    return (
        loads.c.destination == given["of"],
        loads.c.seq_to > given["start"],
        loads.c.seq_to <= given["top"],
        loads.c.id.not_in(given["last"]),
        ~exists().where(jobs.c.destination == loads.c.destination, of_load),
    )


def _per_event_type(conn: Connection, *where: ColumnElement[bool]) -> Counter[int]:
    found = select(events.c.event_type, func.count()).where(*where).group_by(events.c.event_type)
    return Counter(dict(conn.execute(found).tuples().all()))


_LESS = (
    update(loads)
    .where(loads.c.id == bindparam("of"))
    .values(discarded=loads.c.discarded - bindparam("n"))
)
_of: Any = bindparam("of")
_last: Any = bindparam("last", expanding=True)
_in_group = (job_groups.c.seq_from, job_groups.c.seq_to)
_left_in_group = or_(
    and_(
        job_groups.c.listing.is_(None),
        exists().where(
            jobs.c.destination == job_groups.c.destination, jobs.c.seq.between(*_in_group)
        ),
    ),
    exists().where(
        outcomes.c.listing == job_groups.c.listing,
        outcomes.c.seq.between(*_in_group),
        events.c.seq == outcomes.c.seq,
    ),
    exists().where(
        group_jobs.c.destination == job_groups.c.destination,
        group_jobs.c.seq.between(*_in_group),
        group_jobs.c.listing == job_groups.c.listing,
    ),
)
_EMPTY_GROUPS = select(job_groups.c.id, job_groups.c.load, job_groups.c.listing).where(
    job_groups.c.destination == _of,
    job_groups.c.seq_to > bindparam("start"),
    job_groups.c.seq_to <= bindparam("top"),
    job_groups.c.load.is_not(None),
    job_groups.c.load.not_in(_last),
    ~_left_in_group,
)
