"""How the tests of purges let events be old, and what they ask afterwards."""

import gzip
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import msgspec
from sqlalchemy import func, select

from blacksmith_dagster.errors import Gone
from blacksmith_dagster.pipeline.retention import Retention
from blacksmith_dagster.store import Store, tables
from blacksmith_dagster.store.interface import ArchivedEvent, FencingToken, LoadVerdict
from blacksmith_dagster.store.sql import SQLStore
from tests.contract.pipeline import departed

OUTCOME, UNDELIVERABLE = "warehouse/flights.discarded", "warehouse/undeliverable"
NOTHING, DAY = timedelta(0), timedelta(days=1)


def kept(
    events: timedelta | None, discarded: timedelta | None = NOTHING
) -> Mapping[str, Retention]:
    """Both event types of the application are kept for so long."""
    return dict.fromkeys((departed.path, OUTCOME), Retention(events, discarded))


NOW = kept(NOTHING)


def index_time(store: Store, ago: timedelta = NOTHING) -> None:
    """All that is in the store was received so long ago, or before."""
    assert isinstance(store, SQLStore)
    with store.writing() as conn:
        low, high = store._high_watermark(conn), store._sequence(conn)
        values = {"at": store._now(conn) - ago, "low": low, "high": high}
        conn.execute(tables.time_index.insert(), values)


def purged(store: Store, retention: Mapping[str, Retention] = NOW) -> int:
    """Purge; returns how many events were deleted one by one."""
    return sum(step.events for step in store.purge(retention))


def load_all(store: Store, token: FencingToken) -> None:
    """Load until nothing is due."""
    while load := store.claim(token, 1000, 3):
        store.record(load, LoadVerdict())


def gone(store: Store, ids: Sequence[str]) -> list[bool]:
    """Which of these events have been purged."""
    found = []
    for each in ids:
        try:
            store.event(each)
        except Gone:
            found.append(True)
        else:
            found.append(False)
    return found


def rows(store: Store) -> dict[str, int]:
    """How many rows each table of the log has."""
    assert isinstance(store, SQLStore)
    with store.reading() as conn:
        return {
            each.name: conn.execute(select(func.count()).select_from(each)).scalar_one()
            for each in (
                tables.events,
                tables.jobs,
                tables.loads,
                tables.job_groups,
                tables.outcomes,
            )
        }


def read(folder: Path) -> list[ArchivedEvent]:
    """The events of an archive, in the order of its files' names."""
    found: list[ArchivedEvent] = []
    for path in sorted(folder.iterdir()):
        assert path.name.endswith(".jsonl.gz")
        with gzip.open(path, "rb") as lines:
            found += [msgspec.json.decode(line, type=ArchivedEvent) for line in lines]
    return found
