"""Purges and replays: what a replay needs stays, purged events are not replayed, and the rows that
replays have left go too."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import func, select, update

from blacksmith_dagster.errors import Gone
from blacksmith_dagster.pipeline.event import JobResult
from blacksmith_dagster.store import Store, tables
from blacksmith_dagster.store.archive import FolderArchive
from blacksmith_dagster.store.records import (
    ArchivedJob,
    Deviation,
    LoadVerdict,
    NewEvent,
    NewJob,
    Replay,
    SelectedJob,
)
from tests.support.pipelines.store import (
    FLIGHTS,
    SEATS,
    claimed,
    departed,
    ingest_events,
    take_over,
)
from tests.support.purging import DAY, NOW, OUTCOME, gone, index_time, kept, load_all, purged, read
from tests.support.replays import ALL, MISSING, drain, plan, replaying


def begin(store: Store, to: str = FLIGHTS) -> Replay:
    """Begin a replay that plans nothing yet."""
    return store.replays.begin(replaying(store, to), MISSING, [departed.path], "run")


def begun(store: Store, ago: timedelta) -> None:
    """Set the beginning of all replays and loads to this long ago."""
    with store.database.writing() as conn:
        at = store.database.now(conn) - ago
        conn.execute(update(tables.replays).values(began_at=at))
        conn.execute(update(tables.loads).values(started_at=at))


def test_events_that_a_replay_has_not_reached_stay(store: Store) -> None:
    ids = ingest_events(store, 6, to=())
    token = replaying(store)
    replay = store.replays.begin(token, MISSING, [departed.path], "run")
    index_time(store)
    assert [row[2:] for row in store.log.purgeable(NOW)][:1] == [(0, 6)]
    assert purged(store) == 0
    seqs = [store.log.event(event_id).seq for event_id in ids]
    half = [SelectedJob(seq, "missing") for seq in seqs[:2]]
    replay = store.replays.plan(token, replay, seqs[2], half, 10)
    # The third was not selected, and the replay has passed it: it goes.
    assert purged(store) == 1
    assert gone(store, ids) == [False, False, True, False, False, False]
    drain(store, token)
    assert purged(store) == 2
    rest = [SelectedJob(seq, "missing") for seq in seqs[3:]]
    replay = store.replays.plan(token, replay, replay.upto, rest, 10)
    assert purged(store) == 0, "they wait in a job group"
    drain(store, token)
    assert store.replays.end(token, replay)
    counts = store.counts.of(FLIGHTS)
    assert purged(store) == 3
    assert all(gone(store, ids))
    assert store.counts.of(FLIGHTS) == counts
    assert counts.succeeded == 5


def test_what_replays_have_left_goes_with_the_events(store: Store, tmp_path: Path) -> None:
    ids = ingest_events(store, 5)
    load = claimed(store, take_over(store))
    store.loads.record(load, LoadVerdict([Deviation(load.rows[0].seq, JobResult.DISCARDED, "no")]))
    token = replaying(store)
    replay = plan(store, token, ALL, 2, changed={ids[1]: '{"n":"edited"}'})
    again = claimed(store, token)
    store.loads.record(
        again, LoadVerdict([Deviation(again.rows[1].seq, JobResult.DISCARDED, "never")])
    )
    drain(store, token)
    assert store.replays.end(token, replay)
    ingest_events(store, 1)
    load_all(store, take_over(store, "another"))
    index_time(store)
    counts = store.counts.of(FLIGHTS)
    assert (counts.succeeded, counts.discarded) == (5, 1)
    list(store.log.purge(NOW, FolderArchive(str(tmp_path / "archive"))))
    edited = msgspec.Raw(b'{"n":"edited"}')
    archived = read(tmp_path / "archive")
    assert [event.jobs for event in archived[:3]] == [
        [ArchivedJob(FLIGHTS, "succeeded")],
        [ArchivedJob(FLIGHTS, "discarded", "never", edited)],
        [ArchivedJob(FLIGHTS, "succeeded")],
    ]
    counts = store.counts.of(FLIGHTS)
    assert (counts.succeeded, counts.discarded, counts.pending) == (5, 0, 0)
    with store.database.reading() as conn:
        for table in (tables.group_jobs, tables.edits, tables.outcomes):
            assert conn.execute(select(func.count()).select_from(table)).scalar_one() == 0
        assert conn.execute(select(func.count()).select_from(tables.loads)).scalar_one() == 2


def test_the_history_of_what_stays_of_a_replays_list_stays(store: Store) -> None:
    """Also if the listing was split, and its first part has gone."""
    ids = ingest_events(store, 4, to=())
    token = replaying(store)
    plan(store, token, MISSING)
    for _ in range(3):
        claimed(store, token)
        token = replaying(store)
    halves = [claimed(store, token)]
    lost = LoadVerdict([Deviation(row.seq, JobResult.DISCARDED, "no") for row in halves[0].rows])
    store.loads.record(halves[0], lost)
    while load := store.loads.claim(token, 100, 3):
        halves.append(load)
        store.loads.record(load, LoadVerdict())
    assert len(halves) > 1
    index_time(store)
    before = [store.history.transitions(event_id) for event_id in ids]
    assert purged(store, kept(timedelta(0), DAY)) == 4 - len(halves[0].rows)
    there = [not is_gone for is_gone in gone(store, ids)]
    assert any(there)
    assert [
        store.history.transitions(event_id)
        for event_id, stays in zip(ids, there, strict=True)
        if stays
    ] == [history for history, stays in zip(before, there, strict=True) if stays]


def test_what_the_outcomes_of_a_replays_window_came_of_stays(store: Store) -> None:
    ids = ingest_events(store, 2)
    load_all(store, take_over(store))
    index_time(store)
    store.log.append([[NewEvent(OUTCOME, "{}", [NewJob(SEATS)], parent=ids[0])]])
    load_all(store, take_over(store, to=SEATS))
    token = replaying(store, SEATS)
    store.replays.begin(token, ALL, [OUTCOME], "run")
    assert purged(store) == 0, "all of it is in the window"
    with pytest.raises(Gone):
        begin(store)
    begun(store, 8 * DAY)
    assert purged(store) == 2


def test_a_window_below_the_log_start_is_not_begun(store: Store) -> None:
    ingest_events(store, 2, to=())
    index_time(store)
    assert purged(store) == 2
    with pytest.raises(Gone, match=rf"{departed.path}.* since .*; begin with"):
        begin(store)
    assert store.replays.newest(FLIGHTS) == []
    now = datetime.now(UTC)
    later = msgspec.structs.replace(MISSING, start=now, end=now + DAY)
    store.replays.begin(replaying(store), later, [departed.path], "run")


def test_a_replay_that_was_left_for_a_week_holds_nothing(store: Store) -> None:
    ids = ingest_events(store, 3, to=())
    begin(store)
    index_time(store)
    begun(store, 6 * DAY)
    assert purged(store) == 0
    assert begin(store).id == store.replays.newest(FLIGHTS)[0].id, "the replay continues"
    begun(store, 8 * DAY)
    assert purged(store) == 3
    assert all(gone(store, ids))
    with pytest.raises(Gone):
        begin(store)
