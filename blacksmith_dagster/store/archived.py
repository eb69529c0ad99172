"""What an archive is told of events: themselves, and what became of their jobs. Reads alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec
from sqlalchemy import Connection, and_, select, union

from blacksmith_dagster.store.interface import NOTHING, ArchivedEvent, ArchivedJob
from blacksmith_dagster.store.maintenance import batched
from blacksmith_dagster.store.tables import DISCARDED, edits, events, group_jobs, jobs, outcomes

if TYPE_CHECKING:
    from blacksmith_dagster.store.sql import SQLStore

_AT_ONCE = 5_000  # events that one statement names


def archived(store: SQLStore, page: Sequence[int]) -> Sequence[ArchivedEvent]:
    """Events and what became of their jobs, for the archive."""
    id_of, event_type_paths = store._epochs.id_of, store._event_type_paths
    found = []
    with store.reading() as conn:
        for part in batched(page, _AT_ONCE):
            made = _jobs_of(store, conn, part)
            rows = select(events).where(events.c.seq.in_(part)).order_by(events.c.seq)
            found += [
                ArchivedEvent(
                    id_of(row.seq),
                    event_type_paths[row.event_type],
                    row.received_at,
                    _raw(row.payload),
                    row.key,
                    _raw(row.context),
                    row.version,
                    row.sent_at,
                    None if row.parent is None else id_of(row.parent),
                    made.get(row.seq, ()),
                )
                for row in conn.execute(rows)
            ]
    return found


def _jobs_of(
    store: SQLStore, conn: Connection, part: Sequence[int]
) -> Mapping[int, Sequence[ArchivedJob]]:
    """What became of the jobs of events, be they ones that a replay has made."""
    paths = {number: path for path, number in store._destinations.items()}
    why = (
        select(outcomes.c.destination, outcomes.c.seq, outcomes.c.error)
        .where(
            outcomes.c.destination.in_(paths),
            outcomes.c.seq.in_(part),
            outcomes.c.state == DISCARDED,
        )
        .subquery()
    )
    has = union(
        *(
            select(table.c.destination, table.c.seq).where(
                table.c.destination.in_(paths), table.c.seq.in_(part)
            )
            for table in (jobs, group_jobs)
        )
    ).subquery()
    of, seq_of = has.c.destination, has.c.seq
    rows = (
        select(of, seq_of, why.c.error, edits.c.payload)
        .select_from(has)
        .outerjoin(why, and_(why.c.destination == of, why.c.seq == seq_of))
        .outerjoin(edits, and_(edits.c.destination == of, edits.c.seq == seq_of))
        .order_by(of)
    )
    found: dict[int, list[ArchivedJob]] = {}
    for destination, seq, error, edited in conn.execute(rows):
        state = "succeeded" if error is None else "discarded"
        job = ArchivedJob(paths[destination], state, error, _raw(edited))
        found.setdefault(seq, []).append(job)
    return found


def _raw(text: str | None) -> msgspec.Raw:
    """JSON as it was kept, though in one line."""
    if text is None:
        return NOTHING
    lines = "\n" in text or "\r" in text
    return msgspec.Raw(msgspec.json.format(text, indent=-1) if lines else text)
