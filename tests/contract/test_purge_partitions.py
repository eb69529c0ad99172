"""PostgreSQL's table partitions of the log are dropped whole when nothing needs their events."""

import threading
import time
from collections.abc import Iterator
from datetime import timedelta

import psycopg
import pytest

from blacksmith_dagster.pipeline.event import JobResult
from blacksmith_dagster.pipeline.retention import Retention
from blacksmith_dagster.store import Store, open_store, partitions
from blacksmith_dagster.store.partitions import STEP, Partitions
from blacksmith_dagster.store.records import Deviation, LoadVerdict, NewEvent, PurgeStep
from tests.support.pipelines.store import (
    FLIGHTS,
    SEATS,
    app,
    claimed,
    departed,
    event_ids,
    ingest_events,
    new_event,
    take_over,
)
from tests.support.purging import NOW, OUTCOME, gone, index_time, kept, load_all, rows

OLD = 6  # events that are in the first partition


@pytest.fixture
def store(postgres_url: str) -> Iterator[Store]:
    """A store whose next events are the last of the first partition."""
    opened = open_store(postgres_url, upgrade=True)
    opened.register(app)
    with opened.database.writing() as conn:
        opened.database.set_sequence(conn, STEP - 1 - OLD)
    yield opened
    opened.close()


def tables(store: Store) -> list[str]:
    """The tables of partitions that exist, attached or not."""
    partitions_sql = (
        r"SELECT relname FROM pg_class WHERE relkind = 'r' AND relname ~ '^(events|jobs)_\d+$'"
    )
    with store.database.reading() as conn:
        return sorted(conn.exec_driver_sql(partitions_sql).scalars())


ALL = [f"{table}_{n}" for table in ("events", "jobs") for n in (0, 1, 2, 3)]
LATER = [table for table in ALL if not table.endswith("_0")]


def total(steps: Iterator[PurgeStep]) -> tuple[int, int]:
    """How many events were deleted one by one, and how many partitions dropped."""
    done = list(steps)
    return sum(step.events for step in done), sum(step.partitions for step in done)


def test_a_partition_that_nothing_needs_is_dropped(store: Store) -> None:
    old = ingest_events(store, OLD, to=[FLIGHTS, SEATS])
    young = ingest_events(store, 3, to=[FLIGHTS, SEATS])
    for path in (FLIGHTS, SEATS):
        token = take_over(store, to=path)
        while load := store.loads.claim(token, 4, 3):
            store.loads.record(load, LoadVerdict())
    index_time(store)
    later = ingest_events(store, 2, to=())
    counts = store.counts.of(FLIGHTS)
    store.maintain()
    assert tables(store) == ALL
    assert total(store.log.purge(NOW)) == (3, 1)
    assert tables(store) == LATER
    assert all(gone(store, [*old, *young]))
    assert not any(gone(store, later))
    assert rows(store) == {"events": 2, "jobs": 0, "loads": 2, "job_groups": 0, "outcomes": 0}
    assert store.counts.of(FLIGHTS) == counts
    store.ready()
    store.maintain()
    assert tables(store) == LATER, "a dropped partition is not created again"


def test_a_partition_with_an_event_that_is_needed_stays(store: Store) -> None:
    old = ingest_events(store, OLD)
    young = ingest_events(store, 3, to=())
    token = take_over(store)
    load = claimed(store, token)
    later = Deviation(load.rows[2].seq, JobResult.FAILED, "later", 86_400.0)
    discarded = Deviation(load.rows[3].seq, JobResult.DISCARDED, "no")
    store.loads.record(load, LoadVerdict([later, discarded]))
    index_time(store)
    ingest_events(store, 1, to=())
    assert total(store.log.purge(kept(timedelta(0), None))) == (OLD - 2 + len(young), 0)
    assert tables(store) == ALL
    assert gone(store, old) == [True, True, False, False, True, True]
    again = take_over(store, "another")
    waits = store.loads.claim_for_discard(again, "no", 10)
    assert waits
    store.loads.record(waits, LoadVerdict())
    assert total(store.log.purge(kept(timedelta(0), None))) == (1, 0)
    assert total(store.log.purge(NOW)) == (0, 1)
    assert tables(store) == LATER


def test_a_partition_with_an_event_of_a_type_that_is_kept_stays(store: Store) -> None:
    old = ingest_events(store, OLD - 1, to=())
    [[outcome]] = event_ids(store.log.append([[NewEvent(OUTCOME, "{}")]]))
    ingest_events(store, 3, to=())
    index_time(store)
    ingest_events(store, 1, to=())
    only_departed = {departed.path: Retention(timedelta(0), timedelta(0))}
    assert total(store.log.purge(only_departed)) == (OLD - 1 + 3, 0)
    assert tables(store) == ALL
    assert gone(store, [*old, outcome]) == [True] * (OLD - 1) + [False]
    assert total(store.log.purge(NOW)) == (0, 1)
    assert tables(store) == LATER


def test_a_purge_that_was_killed_before_the_drop_is_completed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = ingest_events(store, OLD)
    ingest_events(store, 3, to=())
    load = claimed(store, take_over(store))
    store.loads.record(load, LoadVerdict([Deviation(load.rows[0].seq, JobResult.DISCARDED, "no")]))
    index_time(store)
    ingest_events(store, 1, to=())

    def killed(_: Partitions) -> None:
        raise SystemExit

    with monkeypatch.context() as patched:
        steps = store.log.purge(NOW)
        next(steps)
        patched.setattr(Partitions, "drop_planned", killed)
        with pytest.raises(SystemExit):
            next(steps)
    assert tables(store) == ALL
    assert total(store.log.purge(NOW)) == (3, 0)
    assert tables(store) == LATER
    assert all(gone(store, old))
    counts = store.counts.of(FLIGHTS)
    assert (counts.succeeded, counts.discarded, counts.pending) == (OLD - 1, 0, 0)


def test_events_that_cannot_be_detached_are_left_to_the_next_purge(
    store: Store, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their jobs are deleted already; they must not be deleted singly, like events without jobs."""
    monkeypatch.setattr(partitions, "_WAIT", "200ms")
    old = ingest_events(store, OLD)
    load_all(store, take_over(store))
    ingest_events(store, 3, to=())
    index_time(store)
    ingest_events(store, 1, to=())
    store.maintain()  # it creates partitions, which would wait for the lock below
    with psycopg.connect(postgres_url) as another:
        another.execute("LOCK TABLE ONLY events IN SHARE UPDATE EXCLUSIVE MODE")
        *_, step = (step for step in store.log.purge(NOW) if step.postponed is not None)
        assert step.postponed == ["events_0"]
        assert total(store.log.purge(NOW)) == (0, 0)
        assert gone(store, old) == [False] * OLD
    assert total(store.log.purge(NOW)) == (0, 0)
    assert all(gone(store, old))
    assert tables(store) == LATER


def test_a_table_of_another_is_not_dropped(store: Store, postgres_url: str) -> None:
    """Whatever its name is: the store drops only the tables that it has marked."""
    with psycopg.connect(postgres_url) as other:
        other.execute("CREATE TABLE events_2026 (n int)")
        other.execute("CREATE TABLE jobs_7 (n int)")
    ingest_events(store, OLD + 1, to=())
    index_time(store)
    ingest_events(store, 1, to=())
    assert total(store.log.purge(NOW)) == (1, 1)
    assert set(tables(store)) == {*LATER, "events_2026", "jobs_7"}


def test_a_reader_postpones_a_drop_and_ingest_goes_on(
    store: Store, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "_WAIT", "500ms")
    ingest_events(store, OLD + 1, to=())
    index_time(store)
    ingest_events(store, 1, to=())
    slowest, over = 0.0, threading.Event()

    def ingest() -> None:
        nonlocal slowest
        while not over.is_set():
            started = time.monotonic()
            store.log.append([[new_event(to=())]])
            slowest = max(slowest, time.monotonic() - started)

    with psycopg.connect(postgres_url) as reader:
        reader.execute("SELECT count(*) FROM events, jobs")
        beside = threading.Thread(target=ingest)
        beside.start()
        *_, step = (step for step in store.log.purge(NOW) if step.postponed is not None)
        over.set()
        beside.join()
    assert step.postponed == ["jobs_0", "events_0"]
    print(f"slowest ingest {slowest:.3f} s")
    assert slowest < 0.4, "a commit has waited for the reader"
    assert total(store.log.purge(NOW)) == (0, 0)
    assert tables(store) == LATER
