"""Helpers for tests of purges: make events old, purge, and read what is left."""

import gzip
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import msgspec
from sqlalchemy import func, select

from blacksmith_dagster.errors import Gone
from blacksmith_dagster.pipeline.retention import Retention
from blacksmith_dagster.store import Store, tables
from blacksmith_dagster.store.records import ArchivedEvent, FencingToken, LoadVerdict
from tests.support.pipelines.store import departed

OUTCOME, UNDELIVERABLE = "warehouse/flights.discarded", "warehouse/undeliverable"
NOTHING, DAY = timedelta(0), timedelta(days=1)


def kept(
    events: timedelta | None, discarded: timedelta | None = NOTHING
) -> Mapping[str, Retention]:
    """A retention of this length for both event types of the application."""
    return dict.fromkeys((departed.path, OUTCOME), Retention(events, discarded))


NOW = kept(NOTHING)


def index_time(store: Store, ago: timedelta = NOTHING) -> None:
    """Add a row to the time index: every event in the store was received this long ago or earlier."""
    with store.database.writing() as conn:
        low, high = store.database.high_watermark(conn), store.database.sequence(conn)
        values = {"at": store.database.now(conn) - ago, "low": low, "high": high}
        conn.execute(tables.time_index.insert(), values)


def purged(store: Store, retention: Mapping[str, Retention] = NOW) -> int:
    """Purge; returns how many events were deleted one by one."""
    return sum(step.events for step in store.log.purge(retention))


def load_all(store: Store, token: FencingToken) -> None:
    """Load until nothing is due."""
    while load := store.loads.claim(token, 1000, 3):
        store.loads.record(load, LoadVerdict())


def gone(store: Store, ids: Sequence[str]) -> list[bool]:
    """Which of these events have been purged."""
    purged_events = []
    for event_id in ids:
        try:
            store.log.event(event_id)
        except Gone:
            purged_events.append(True)
        else:
            purged_events.append(False)
    return purged_events


def rows(store: Store) -> dict[str, int]:
    """How many rows each table of the log has."""
    with store.database.reading() as conn:
        return {
            table.name: conn.execute(select(func.count()).select_from(table)).scalar_one()
            for table in (
                tables.events,
                tables.jobs,
                tables.loads,
                tables.job_groups,
                tables.outcomes,
            )
        }


def read(folder: Path) -> list[ArchivedEvent]:
    """The events of an archive, in the order of its files' names."""
    archived: list[ArchivedEvent] = []
    for path in sorted(folder.iterdir()):
        assert path.name.endswith(".jsonl.gz")
        with gzip.open(path, "rb") as lines:
            archived += [msgspec.json.decode(line, type=ArchivedEvent) for line in lines]
    return archived
