"""Purges events that are past their retention, with their jobs, loads and outcomes.

A purge first raises the log starts, so that no replay begins below them, and then finds the events that
are still needed, in one snapshot. From then on that set only shrinks: events below a log start get no
new jobs. So all others are deleted in small transactions, and the next purge completes one that was
killed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    and_,
    bindparam,
    delete,
    exists,
    func,
    select,
    update,
)

from blacksmith_dagster.pipeline.retention import Retention
from blacksmith_dagster.store import maintenance
from blacksmith_dagster.store.archive import read_archived
from blacksmith_dagster.store.database import Database
from blacksmith_dagster.store.group_members import select_members
from blacksmith_dagster.store.lanes import last_loads
from blacksmith_dagster.store.partitions import Partition, Partitions
from blacksmith_dagster.store.records import Archive, Purgeable, PurgeStep, Window
from blacksmith_dagster.store.retention import NeededEvents, expiries, is_expired, needed_events
from blacksmith_dagster.store.statements import batched, query, upsert
from blacksmith_dagster.store.tables import (
    IS_DISCARDED,
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

_SPAN = 1_000_000  # sequence numbers that one statement searches
_PAGE = 50_000  # events that are archived together
_DELETED_EVENTS = 1_000  # in one transaction, while other writers wait
_DELETED_ROWS = 5_000  # job groups or loads, in one transaction


class Purge:
    """One purge of a store's log."""

    def __init__(self, database: Database, retention: Mapping[str, Retention]) -> None:
        maintenance.maintain(database)  # only events that the totals count are purged
        database.read_names()
        ids = database.event_types
        by_type = {ids[path]: kept_for for path, kept_for in retention.items() if path in ids}
        with database.reading() as conn:
            self._now = database.now(conn)
            self._expiries = expiries(conn, by_type, self._now)
        self._database = database
        self._destinations = sorted(database.destinations.values())
        self._start = min((expiry.swept for expiry in self._expiries), default=0)
        self._top = max((expiry.upto for expiry in self._expiries), default=0)
        self._needed = NeededEvents()

    def look(self) -> Sequence[Purgeable]:
        """How many events of each type would be removed. Changes nothing."""
        if not self._expiries:
            return []
        self._find_needed()
        expired: Counter[int] = Counter()
        removable: Counter[int] = Counter()
        with self._database.reading() as conn:
            for after in range(self._start, self._top, _PAGE):
                page = events.c.seq.between(after + 1, min(after + _PAGE, self._top))
                expired += _per_event_type(conn, page, is_expired(self._expiries))
                removable += _per_event_type(
                    conn, page, is_expired(self._expiries, self._needed.windows)
                )
            for part in batched(self._needed.seqs, _DELETED_ROWS):
                removable -= _per_event_type(
                    conn, events.c.seq.in_(part), is_expired(self._expiries, self._needed.windows)
                )
        return [
            Purgeable(
                self._database.event_type_path(expiry.event_type),
                expiry.before,
                removable[expiry.event_type],
                expired[expiry.event_type] - removable[expiry.event_type],
            )
            for expiry in self._expiries
        ]

    def run(self, archive: Archive | None) -> Iterator[PurgeStep]:
        """Remove the events that are expired and not needed, step by step."""
        partitions = self._database.partitions
        if partitions is not None:
            # What a killed purge has left.
            yield PurgeStep(postponed=partitions.drop_planned())
        if not self._expiries:
            return
        self._move_log_starts()
        self._find_needed()
        if partitions is not None:
            yield from self._drop(partitions, archive)
        for page in self._pages(self._start, self._top):
            if archive is not None:
                yield PurgeStep(file=archive.write(read_archived(self._database, page)))
            for part in batched(page, _DELETED_EVENTS):
                self._delete(part)
                yield PurgeStep(events=len(part))
        yield from self._sweep()
        self._move_swept()

    # -- log starts
    def _move_log_starts(self) -> None:
        with self._database.writing() as conn:
            for expiry in self._expiries:
                below = (
                    event_types.c.id == expiry.event_type,
                    event_types.c.purged_upto < expiry.upto,
                )
                log_start = {"purged_upto": expiry.upto, "purged_before": expiry.before}
                conn.execute(update(event_types).where(*below).values(log_start))

    def _move_swept(self) -> None:
        """Record the first remaining event of each type: the next purge begins there."""
        with self._database.writing() as conn:
            first_left: dict[int, int] = {}
            for part in reversed(list(batched(self._needed.seqs, _DELETED_ROWS))):
                first = select(events.c.event_type, func.min(events.c.seq)).where(
                    events.c.seq.in_(part)
                )
                first_left |= dict(conn.execute(first.group_by(events.c.event_type)).tuples().all())
            for expiry in self._expiries:
                firsts = [window.after + 1 for window in self._needed.windows]
                firsts.append(first_left.get(expiry.event_type, expiry.upto + 1))
                upto = min(expiry.upto, min(firsts) - 1)
                below = (event_types.c.id == expiry.event_type, event_types.c.swept_upto < upto)
                conn.execute(update(event_types).where(*below).values(swept_upto=upto))

    # -- selecting
    def _find_needed(self) -> None:
        # No name of a source or of its event has a dot.
        outcome_event_types = [
            event_type for path, event_type in self._database.event_types.items() if "." in path
        ]
        with self._database.snapshot() as conn:
            self._needed = needed_events(
                conn, self._expiries, self._destinations, outcome_event_types, self._now
            )

    def _is_removable(self, partition: Partition) -> bool:
        """Whether a partition has only events to remove."""
        first, last = partition.first, partition.last
        if last > self._top or self._needed.any_between(first, last):
            return False
        expired = [
            expiry.event_type for expiry in self._expiries if max(expiry.upto, expiry.swept) >= last
        ]
        with self._database.reading() as conn:
            received = conn.execute(select(event_totals.c.event_type).distinct()).scalars()
            others = set(received) - set(expired)
            of_others = (events.c.seq.between(first, last), events.c.event_type.in_(others))
            return conn.execute(select(events.c.seq).where(*of_others).limit(1)).first() is None

    def _pages(self, after: int, upto: int) -> Iterator[Sequence[int]]:
        """The sequence numbers of the events to remove, in order."""
        expired = is_expired(self._expiries, self._needed.windows)
        while after < upto:
            end = min(after + _SPAN, upto)
            in_span = (events.c.seq > after, events.c.seq <= end, expired)
            page = select(events.c.seq).where(*in_span).order_by(events.c.seq).limit(_PAGE)
            with self._database.reading() as conn:
                seqs = conn.execute(page).scalars().all()
            after = seqs[-1] if len(seqs) == _PAGE else end
            needed = set(self._needed.between(seqs[0], seqs[-1])) if seqs else ()
            if removable := [seq for seq in seqs if seq not in needed]:
                yield removable

    # -- removing
    def _drop(self, partitions: Partitions, archive: Archive | None) -> Iterator[PurgeStep]:
        """Drop the partitions that have only events to remove."""
        with self._database.reading() as conn:
            in_use = partitions.in_use(conn)
        for partition in filter(self._is_removable, in_use):
            if archive is not None:
                for page in self._pages(partition.first - 1, partition.last):
                    yield PurgeStep(file=archive.write(read_archived(self._database, page)))
            with self._database.writing() as conn:
                self._delete_job_records(conn, partition.contains)
                partitions.plan_drop(conn, partition)
            yield PurgeStep(partitions=1, postponed=partitions.drop_planned())
        with self._database.reading() as conn:
            planned = [
                Window(partition.first - 1, partition.last)
                for partition in partitions.planned_drops(conn)
            ]
        # Their jobs are deleted already, and they are dropped whole: don't delete their events singly.
        self._needed = NeededEvents(self._needed.seqs, [*self._needed.windows, *planned])

    def _delete(self, part: Sequence[int]) -> None:
        """Delete events and their jobs."""
        first, last = part[0], part[-1]
        needed = self._needed.between(first, last)
        # Name the events in the shorter of the two lists: a long one would take most of the time.
        removable: ColumnElement[bool] = events.c.seq.in_(part)
        if len(needed) < len(part):
            removable = and_(
                is_expired(self._expiries, self._needed.windows), events.c.seq.not_in(needed)
            )

        def without_event(seq: ColumnElement[int]) -> ColumnElement[bool]:
            return and_(seq.between(first, last), ~exists().where(events.c.seq == seq))

        with self._database.writing() as conn:
            conn.execute(delete(events).where(events.c.seq.between(first, last), removable))
            conn.execute(delete(jobs).where(*self._rows_of(jobs, without_event(jobs.c.seq))))
            self._delete_job_records(conn, without_event)

    def _delete_job_records(
        self, conn: Connection, condition: Callable[[ColumnElement[int]], ColumnElement[bool]]
    ) -> None:
        """Delete the rows about single jobs. Discarded jobs are counted in the totals from then on.

        `condition` takes the column of sequence numbers.
        """
        for table in (group_jobs, edits):
            conn.execute(delete(table).where(*self._rows_of(table, condition(table.c.seq))))
        discarded = (
            *self._rows_of(outcomes, condition(outcomes.c.seq)),
            IS_DISCARDED,
        )
        deletion = delete(outcomes).where(*discarded)
        rows = conn.execute(deletion.returning(outcomes.c.load, outcomes.c.destination)).all()
        if rows:
            per_load = Counter(row.load for row in rows)
            conn.execute(
                _SUBTRACT_DISCARDED, [{"load": load, "n": n} for load, n in per_load.items()]
            )
        for destination, n in Counter(row.destination for row in rows).items():
            values = {"destination": destination, "jobs": 0, "purged_discarded": n}
            added = upsert(conn, job_totals).values(values)
            more = {"purged_discarded": job_totals.c.purged_discarded + n}
            added = added.on_conflict_do_update(index_elements=["destination"], set_=more)
            conn.execute(added)

    def _rows_of(self, table: Any, condition: ColumnElement[bool]) -> Sequence[ColumnElement[bool]]:
        """Rows of a table of jobs, by all columns of its key, so that the index is used."""
        return table.c.destination.in_(self._destinations), condition

    # -- sweeping
    def _sweep(self) -> Iterator[PurgeStep]:
        """Delete the job groups and the loads that have no jobs left.

        A lane's last load stays, because it is the lane's state.
        """
        for destination in self._destinations:
            with self._database.reading() as conn:
                values = {
                    "destination": destination,
                    "start": self._start,
                    "top": self._top,
                    "last": last_loads(conn, destination).ids,
                }
                empty = _empty_groups(conn, values)
            for part in batched(empty, _DELETED_ROWS):
                with self._database.writing() as conn:
                    conn.execute(
                        delete(job_groups).where(job_groups.c.id.in_([row.id for row in part]))
                    )
                    has_group = exists().where(job_groups.c.load == loads.c.id)
                    ids = sorted({row.load for row in part})
                    _delete_loads(conn, loads.c.id.in_(ids), ~has_group)
                yield PurgeStep()
            with self._database.reading() as conn:
                empty_loads = select(loads.c.id).where(*_empty_loads(values)).order_by(loads.c.id)
                load_ids = conn.execute(empty_loads).scalars().all()
            for part in batched(load_ids, _DELETED_ROWS):
                with self._database.writing() as conn:
                    in_part = loads.c.id.between(part[0], part[-1])
                    _delete_loads(conn, in_part, *_empty_loads(values))
                yield PurgeStep()


def _empty_groups(conn: Connection, values: Mapping[str, Any]) -> Sequence[Row[Any]]:
    """Job groups without jobs.

    A listing's first group stays until the last one is empty: its `due_at` is when the listing was made.
    """
    empty = conn.execute(_EMPTY_GROUPS, values).all()
    empty_per_listing = Counter(row.listing for row in empty if row.listing is not None)
    if not empty_per_listing:
        return empty
    groups_per_listing = select(job_groups.c.listing, func.count()).where(
        job_groups.c.destination == values["destination"]
    )
    existing = dict(conn.execute(groups_per_listing.group_by(job_groups.c.listing)).tuples().all())
    return [
        row
        for row in empty
        if row.id != row.listing or empty_per_listing[row.listing] == existing[row.listing]
    ]


def _delete_loads(conn: Connection, *conditions: ColumnElement[bool]) -> None:
    deleted = select(loads.c.id).where(loads.c.discarded == 0, *conditions)
    conn.execute(delete(outcomes).where(outcomes.c.load.in_(deleted)))
    conn.execute(delete(loads).where(loads.c.discarded == 0, *conditions))


def _empty_loads(values: Mapping[str, Any]) -> Sequence[ColumnElement[bool]]:
    """First loads that have no jobs left."""
    of_load = jobs.c.seq.between(loads.c.seq_from, loads.c.seq_to)
    return (
        loads.c.destination == values["destination"],
        loads.c.seq_to > values["start"],
        loads.c.seq_to <= values["top"],
        loads.c.id.not_in(values["last"]),
        ~exists().where(jobs.c.destination == loads.c.destination, of_load),
    )


def _per_event_type(conn: Connection, *where: ColumnElement[bool]) -> Counter[int]:
    counts = select(events.c.event_type, func.count()).where(*where).group_by(events.c.event_type)
    return Counter(dict(conn.execute(counts).tuples().all()))


_SUBTRACT_DISCARDED = (
    update(loads)
    .where(loads.c.id == bindparam("load"))
    .values(discarded=loads.c.discarded - bindparam("n"))
)
# A job that failed into a listing stays there, so look whether its event is left. As a value, not as a
# join: PostgreSQL would read all events for each group.
_LEFT = select_members(
    "m.seq", "g.id = t.id AND (SELECT e.seq FROM events e WHERE e.seq = m.seq) IS NOT NULL"
)
# The job groups in a range of the log that a load has taken, and that have no jobs left.
_EMPTY_GROUPS = query(
    f"""
SELECT t.id, t.load, t.listing
  FROM job_groups t
 WHERE t.destination = :destination AND t.seq_to > :start AND t.seq_to <= :top
   AND t.load IS NOT NULL AND t.load NOT IN :last AND NOT EXISTS (SELECT 1 FROM ({_LEFT}) m)""",
    job_groups.c.id,
    job_groups.c.load,
    job_groups.c.listing,
    lists=["last"],
)
