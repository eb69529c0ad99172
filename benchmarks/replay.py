"""Replays: how fast they load and create jobs, find a window, and how they slow live loads."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from multiprocessing import get_context
from typing import Any

import msgspec
from sqlalchemy import insert

from benchmarks.drain import first_load_rate, receive
from benchmarks.measure import Effort, Figure, alternate, figure, p99, timed
from benchmarks.pipeline import app, full, half, happened, source
from benchmarks.stores import Databases, fill, measured_on, opened, postgres, sqlite
from blacksmith_dagster import Batch, Blacksmith, Destination, DestinationEvent
from blacksmith_dagster.scheduler import StandardScheduler
from blacksmith_dagster.scheduler.replay import ReplaySelector, ReplaySummary, plan_page
from blacksmith_dagster.scheduler.replay import replay as replay_window
from blacksmith_dagster.store import Store
from blacksmith_dagster.store.records import (
    Lane,
    NewEvent,
    NewJob,
    ReplayMode,
    ReplayRequest,
)
from blacksmith_dagster.store.tables import time_index
from blacksmith_dagster.supervisor import open_supervisor

MINUTES = 30 * 24 * 60
DAY = timedelta(days=1)


@measured_on(postgres, sqlite)
def replay(databases: Databases, effort: Effort) -> Iterator[Figure]:
    """The rate of a replay beside that of first loads of the same jobs, and the rate of planning."""
    count, name = effort.of(200_000), databases.name
    first, planned, whole = alternate(
        effort.rounds,
        lambda: first_load_rate(databases, count),
        lambda: _replay_rate(databases, count, planned=True),
        lambda: _replay_rate(databases, count, planned=False),
    )
    what, bound = f"replay of planned jobs, beside first loads; {name}", databases.bound(0.7)
    yield figure(what, planned, "jobs/s", limits=first, at_least=bound)
    yield figure(
        f"replay and its planning, beside first loads; {name}", whole, "jobs/s", limits=first
    )
    without_when, with_when = alternate(
        effort.rounds,
        lambda: _planning_rate(databases, count, full),
        lambda: _planning_rate(databases, count, half),
    )
    bound = databases.bound(100_000)
    yield figure(f"jobs made; {name}", without_when, "jobs/s", at_least=bound)
    yield figure(f"events asked by a `when`, half of them made; {name}", with_when, "events/s")


@measured_on(postgres, sqlite)
def window(databases: Databases, effort: Effort) -> Iterator[Figure]:
    """Milliseconds to find a day among 5M events; the time index has a row a minute for 30 days."""
    events, start = effort.of(5_000_000), datetime.now(UTC) - timedelta(minutes=MINUTES)
    minutes = ((start + timedelta(minutes=n), events * n // MINUTES) for n in range(MINUTES))
    rows = [{"at": at, "low": seq, "high": seq} for at, seq in minutes]
    milliseconds = []
    with databases.new() as url, opened(url) as store:
        fill(store, events, payload="{}")
        with store.database.writing() as conn:
            conn.execute(insert(time_index), rows)
        for day in range(1, 29):
            noon = start + timedelta(days=day)
            seconds, found = timed(partial(store.log.window, noon, noon + DAY))
            milliseconds.append(1000 * seconds)
            assert found.upto - found.after <= events / 29
    title = f"a day's window among {events:,} events; {databases.name}"
    yield figure(title, milliseconds, "ms", at_most=50)


@measured_on(postgres)
def live(databases: Databases, effort: Effort) -> Iterator[Figure]:
    """The p99 from an event's commit to its load, with and without a replay in another process."""
    with_replay, without = alternate(
        effort.rounds,
        lambda: _latency(databases, effort, replaying=True),
        lambda: _latency(databases, effort, replaying=False),
    )
    title = f"live p99 under a running replay, beside that without; {databases.name}"
    yield figure(title, with_replay, "ms", limits=without, at_most=2)


def _request(*modes: ReplayMode) -> ReplayRequest:
    now = datetime.now(UTC)
    request = ReplayRequest(now - DAY, now + DAY)
    return msgspec.structs.replace(request, modes=modes) if modes else request


def _replay_rate(databases: Databases, count: int, *, planned: bool) -> float:
    request = _request()
    with databases.new() as url, opened(url) as store:
        receive(databases, store, count, jobs=False)
        if planned:
            _plan(store, full, request)
            databases.settle()
        seconds, summary = timed(lambda: _replay(store, request))
    assert summary.tally.succeeded == count, summary
    return count / seconds


def _replay(store: Store, request: ReplayRequest) -> ReplaySummary:
    with (
        closing(open_supervisor(None, store.database)) as supervisor,
        closing(StandardScheduler()) as scheduler,
    ):
        return replay_window(
            app, full, request, scheduler, store=store, supervisor=supervisor, run="run"
        )


def _planning_rate(databases: Databases, count: int, event: DestinationEvent[Any]) -> float:
    with databases.new() as url, opened(url) as store:
        receive(databases, store, count, jobs=False)
        return count / timed(lambda: _plan(store, event, _request()))[0]


def _plan(store: Store, event: DestinationEvent[Any], request: ReplayRequest) -> None:
    selector = ReplaySelector(app, event, request)
    token = store.loads.take_over(event.path, Lane.REPLAY, "run", lambda: True)
    progress = store.replays.begin(token, request, selector.event_types, "run")
    while progress.planned_upto < progress.upto:
        progress = plan_page(progress, token, selector, event.batch_size, store)


# ------------------------------------------------------------------------------------- live loads


_sink = Destination("sink")
_arrived: list[tuple[float, float]] = []


@_sink.event(receives=happened, name="full")
def _record_arrivals(batch: Batch[Any]) -> None:
    """Record when live events arrive; historical events carry no time."""
    now = time.time()
    _arrived.extend((job.data["n"], now) for job in batch if job.data["n"] > 1e9)


_live_app = Blacksmith(sources=[source], destinations=[_sink])


def _latency(databases: Databases, effort: Effort, *, replaying: bool) -> float:
    """The 99th percentile in ms at 50 events a second, loaded by a loop that checks every 2 ms."""
    _arrived.clear()
    with (
        databases.new() as url,
        opened(url) as store,
        closing(open_supervisor(None, store.database)) as supervisor,
        closing(StandardScheduler()) as scheduler,
    ):
        receive(databases, store, 200_000 if replaying else 1000, jobs=False)
        lease = supervisor.acquire(f"load/{full.path}", "live")
        assert lease is not None
        token = store.loads.take_over(full.path, Lane.LOAD, lease.id, lease.confirm)
        stop = threading.Event()
        drain = partial(scheduler.drain, _live_app, _record_arrivals, store=store, run=None)

        def load() -> None:
            while not stop.wait(0.002):
                drain(token=token, lease=lease, stop=stop, report=lambda _: None)

        loading_thread = threading.Thread(target=load)
        loading_thread.start()
        replayer = get_context("spawn").Process(target=_replay_all, args=(url,))
        if replaying:
            replayer.start()
            while not any(replay.jobs for replay in store.replays.newest(full.path)):
                time.sleep(0.05)
        ends = time.time() + max(effort.seconds / 5, 3)
        while (sent := time.time()) < ends:
            event = NewEvent(happened.path, f'{{"n": {sent!r}}}', [NewJob(full.path)])
            store.log.append([[event]])
            time.sleep(0.02)
        assert not replaying or replayer.is_alive(), "the replay ended before the measurement"
        stop.set()
        loading_thread.join()
        if replaying:
            replayer.kill()
            replayer.join()
    return p99([(arrived - sent) * 1000 for sent, arrived in _arrived])


def _replay_all(url: str) -> None:
    with opened(url) as store:
        store.register(app)
        _replay(store, _request(ReplayMode.MISSING))
