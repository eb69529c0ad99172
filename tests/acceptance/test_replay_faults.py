"""Replays that are killed, run twice, lose their database, or run beside other work.

The oracle: at the end every job of the window has succeeded or is discarded with an error, and each
is counted once per replay.
"""

import contextlib
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from blacksmith_dagster import Batch, Blacksmith, Destination, Event, Source
from blacksmith_dagster.destinations import SQLDestination
from blacksmith_dagster.scheduler import StandardScheduler, Tally
from blacksmith_dagster.scheduler import load as load_due
from blacksmith_dagster.scheduler.replay import ReplaySummary, replay
from blacksmith_dagster.store import Store, open_store
from blacksmith_dagster.store.records import NewEvent, NewJob, ReplayMode, ReplayRequest
from blacksmith_dagster.supervisor import open_supervisor
from tests.support.oracle import judge
from tests.support.pipelines.loading import FLIGHTS, Recording, departed
from tests.support.processes.loading_process import LoaderProcess, opened
from tests.support.services.postgres import PostgresServer

NOW = datetime.now(UTC)
WINDOW = ((NOW - timedelta(days=1)).isoformat(), (NOW + timedelta(days=1)).isoformat())
EVER = (NOW - timedelta(days=1), NOW + timedelta(days=1))
ALL = (ReplayMode.ALL,)


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with opened(store_url) as store:
        yield store


@pytest.fixture
def recording(tmp_path: Path) -> Iterator[Recording]:
    with contextlib.closing(Recording(tmp_path)) as recording:
        yield recording


def ingest_events(store: Store, data: Sequence[str], *to: str) -> list[str]:
    """Ingest an event per item of data, with jobs only for these destination events."""
    (ids,) = store.log.append(
        [[NewEvent(departed.path, payload, [NewJob(path) for path in to]) for payload in data]]
    )
    assert isinstance(ids, list)
    return ids


def replaying(store_url: str, recording: Recording, *modes: str) -> LoaderProcess:
    return LoaderProcess(
        store_url,
        recording.folder,
        FLIGHTS,
        *WINDOW,
        *(modes or ("missing", "failed")),
        main="tests.support.processes.replaying_main",
    )


def ended(process: LoaderProcess) -> None:
    """Wait until the replay has succeeded."""
    process.until(lambda: process.process.poll() is not None, 60)
    assert process.process.returncode == 0, process.log


def test_replay_killed_and_resumed(store: Store, store_url: str, recording: Recording) -> None:
    data = [f'{{"n": {n}}}' for n in range(3500)]
    for n in (700, 1700, 2700):
        data[n] = '{"n": 0, "do": "wait"}'
    data[2000] = '{"n": 2000, "do": "discard"}'
    ids = ingest_events(store, data)
    for n in (700, 1700, 2700):
        recording.hold.touch()
        with replaying(store_url, recording) as process:
            process.until(lambda n=n: recording.calls(ids[n]) > 0)  # type: ignore[misc]
            process.kill()
        recording.hold.unlink()
    with replaying(store_url, recording) as process:
        ended(process)
    result = judge(store, FLIGHTS, ids, recording.loaded())
    assert result.discarded == {ids[2000]}
    assert result.pending == set()
    assert len(recording.loaded()) == len(ids) - 1  # no job was loaded twice
    (row,) = store.replays.newest(FLIGHTS)
    assert (row.jobs, row.created_jobs, row.waiting) == (3500, 3500, 0)
    assert row.ended_at is not None


@pytest.mark.parametrize("seconds", [0.0, 3.0], ids=["at_once", "longer_than_its_lock_lives"])
def test_database_restarted_in_a_replay(
    durable_postgres: PostgresServer, recording: Recording, seconds: float
) -> None:
    url = durable_postgres.create_database()
    with opened(url) as store:
        data = [f'{{"n": {n}}}' for n in range(2500)]
        data[1500] = '{"n": 1500, "do": "wait"}'
        ids = ingest_events(store, data)
    recording.hold.touch()
    with replaying(url, recording) as process:
        process.until(lambda: recording.calls(ids[1500]) == 1)
        durable_postgres.kill()
        threading.Event().wait(seconds)
        durable_postgres.start()
        recording.hold.unlink()
        ended(process)
    with contextlib.closing(open_store(url)) as store:
        result = judge(store, FLIGHTS, ids, recording.loaded())
        assert result.succeeded == set(ids)
        (row,) = store.replays.newest(FLIGHTS)
        assert (row.jobs, row.waiting) == (2500, 0)


class Flowing:
    """Events that keep arriving until the block ends."""

    def __init__(self, store: Store, *to: str) -> None:
        self.ids: list[str] = []
        self._store, self.to = store, to
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._flow, daemon=True)

    def _flow(self) -> None:
        while not self._end.wait(0.005):
            self.ids += ingest_events(self._store, ['{"n": 1}'] * 5, *self.to)

    def __enter__(self) -> "Flowing":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(30)


def test_window_that_still_receives_events(
    store: Store, store_url: str, recording: Recording
) -> None:
    """A window that ends in the future and still receives events is replayed completely."""
    with LoaderProcess(store_url, recording.folder) as loader:
        before = ingest_events(store, ['{"n": 1}'] * 2500, FLIGHTS)
        loader.until(lambda: store.counts.of(FLIGHTS).succeeded == 2500)
        with Flowing(store, FLIGHTS) as flowing, replaying(store_url, recording, "all") as process:
            ended(process)
            loader.until(lambda: len(flowing.ids) > 100)
        loader.until(lambda: store.counts.of(FLIGHTS).pending == 0)
        ids = before + flowing.ids
    result = judge(store, FLIGHTS, ids, recording.loaded())
    assert result.succeeded == set(ids)
    (row,) = store.replays.newest(FLIGHTS)
    # Once by the loader; and by the replay once more, if the loader was first.
    assert row.jobs >= 2500
    assert len(recording.loaded()) == len(ids) + row.jobs


def test_new_destination_while_events_flow(
    store: Store, store_url: str, recording: Recording
) -> None:
    """It is filled from history while new events arrive, before and after the gateway's restart."""
    history = ingest_events(store, ['{"n": 1}'] * 3000)
    with LoaderProcess(store_url, recording.folder) as loader:
        with Flowing(store) as flowing:
            loader.until(lambda: len(flowing.ids) > 50)
            flowing.to = (FLIGHTS,)  # the gateway was restarted
            ingested = len(flowing.ids)
            loader.until(lambda: len(flowing.ids) > ingested + 50)
            with replaying(store_url, recording) as process:
                ended(process)
            loader.until(lambda: len(flowing.ids) > ingested + 200)
        loader.until(lambda: store.counts.of(FLIGHTS).pending == 0)
    ids = history + flowing.ids
    result = judge(store, FLIGHTS, ids, recording.loaded())
    assert result.succeeded == set(ids)
    assert len(recording.loaded()) == len(ids)  # each once


# ------------------------------------------------------------------------------------ in one process


def run_replay(store: Store, app: Blacksmith, path: str, **request: Any) -> ReplaySummary:
    with contextlib.closing(open_supervisor(None, store.database)) as supervisor:
        event = app.destination_events[path]
        window = ReplayRequest(*EVER, **request)
        return replay(app, event, window, StandardScheduler(), store=store, supervisor=supervisor)


def load(store: Store, app: Blacksmith, path: str) -> None:
    with (
        contextlib.closing(open_supervisor(None, store.database)) as supervisor,
        contextlib.closing(StandardScheduler()) as scheduler,
    ):
        event = app.destination_events[path]
        load_due(app, event, scheduler, store=store, supervisor=supervisor)


def is_older(event: Event[Any]) -> bool:
    return bool(event.data["at"] == 1)


def test_replay_does_not_overwrite_newer_rows(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "warehouse.db"
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("create table flights (id integer primary key, at integer, gate text)")
    airport = Source("airport")
    warehouse = SQLDestination("warehouse", url=f"sqlite:///{file}")
    warehouse.table("flights", receives=airport.accept("departed"), key=["id"], sequence_by="at")
    app = Blacksmith(sources=[airport], destinations=[warehouse])
    store.register(app)
    ingest_events(
        store, ['{"id": 1, "at": 1, "gate": "A"}', '{"id": 2, "at": 1, "gate": "A"}'], FLIGHTS
    )
    ingest_events(store, ['{"id": 1, "at": 2, "gate": "B"}'], FLIGHTS)
    load(store, app, FLIGHTS)
    older = f"{__name__}:is_older"
    assert run_replay(store, app, FLIGHTS, modes=ALL, when=older).tally == Tally(succeeded=2)
    with contextlib.closing(sqlite3.connect(file)) as connection:
        rows = connection.execute("select * from flights order by id").fetchall()
    assert rows == [(1, 2, "B"), (2, 1, "A")]


def test_renamed_destination_event(store: Store) -> None:
    """Under its new name, its discarded jobs are loaded again with their keys and history."""
    keys: dict[str, list[str]] = {"flights": [], "departures": []}
    good: list[bool] = []

    def application(name: str, renamed_from: str | None) -> Blacksmith:
        airport = Source("airport")
        warehouse = Destination("warehouse")

        @warehouse.event(receives=airport.accept("departed"), name=name, renamed_from=renamed_from)
        def flights(batch: Batch[Any]) -> None:
            for job in batch:
                keys[name].append(job.key)
                if not good:
                    batch.discard(job, "not yet")

        return Blacksmith(sources=[airport], destinations=[warehouse])

    before = application("flights", None)
    store.register(before)
    ids = ingest_events(store, ['{"n": 1}'] * 3, FLIGHTS)
    load(store, before, FLIGHTS)
    after = application("departures", "flights")
    with contextlib.closing(open_store(_url_of(store))) as renamed:
        renamed.register(after)
        good.append(True)
        path = "warehouse/departures"
        assert run_replay(renamed, after, path).tally == Tally(succeeded=3)
        assert renamed.counts.of(path).succeeded == 3
        states = [
            entry.state
            for entry in renamed.history.transitions(ids[0])
            if entry.destination == path
        ]
    assert (states.count("discarded"), states[-1]) == (1, "succeeded")
    assert keys["departures"] == keys["flights"]


def _url_of(store: Store) -> str:
    return str(store.database.engine.url.render_as_string(hide_password=False))
