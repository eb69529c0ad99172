"""Replays: how fast they load and create jobs, find a window, and how they slow live loads."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from multiprocessing import get_context
from statistics import median
from typing import Any

from sqlalchemy import insert

from benchmarks.drain import _load, _receive
from benchmarks.measure import Effort, Figure, alternate, at_least, at_most, beside, shown
from benchmarks.pipeline import app, full, half, happened, payload, source
from benchmarks.stores import BATCH, BOTH, Databases, fill, opened, postgres
from blacksmith_dagster import Batch, Blacksmith, Destination, DestinationEvent
from blacksmith_dagster.scheduler import StandardScheduler
from blacksmith_dagster.scheduler.replay import ReplaySelector, plan_page
from blacksmith_dagster.scheduler.replay import replay as replay_window
from blacksmith_dagster.store import Store
from blacksmith_dagster.store.records import Lane, NewEvent, NewJob, ReplayMode, ReplayRequest
from blacksmith_dagster.store.tables import time_index
from blacksmith_dagster.supervisor import open_supervisor

MINUTES = 30 * 24 * 60


def replay(effort: Effort) -> Iterator[Figure]:
    """The rate of a replay beside that of first loads of the same jobs, and the rate of planning."""
    count = effort.of(200_000)
    for backend in BOTH:
        with backend() as databases:
            first, drained, whole = alternate(
                effort.rounds,
                lambda databases=databases: _first_load_rate(databases, count),
                lambda databases=databases: _replay_rate(databases, count, planned=True),
                lambda databases=databases: _replay_rate(databases, count, planned=False),
            )
            bound = 0.7 if backend is postgres else None
            what = f"replay of planned jobs, beside first loads; {databases.name}"
            yield beside(what, drained, first, "jobs/s", bound)
            title = f"replay and its planning, beside first loads; {databases.name}"
            yield beside(title, whole, first, "jobs/s")
            without_when, with_when = alternate(
                effort.rounds,
                lambda databases=databases: _planning_rate(databases, count, full),
                lambda databases=databases: _planning_rate(databases, count, half),
            )
            if backend is postgres:
                yield at_least(f"jobs made; {databases.name}", without_when, 100_000, "jobs/s")
            else:
                yield Figure(f"jobs made; {databases.name}", shown(without_when, "jobs/s"))
            yield Figure(
                f"events asked by a `when`, half of them made; {databases.name}",
                shown(with_when, "events/s"),
            )


def window(effort: Effort) -> Iterator[Figure]:
    """Milliseconds to find a day among 5M events; the time index has a row a minute for 30 days."""
    events = effort.of(5_000_000)
    for backend in BOTH:
        with backend() as databases:
            url = databases.create()
            fill(url, events, payload="{}")
            end = datetime.now(UTC)
            start = end - timedelta(minutes=MINUTES)
            with closing(opened(url)) as store:
                with store.database.writing() as conn:
                    rows = [
                        {"at": start + timedelta(minutes=n), "low": seq, "high": seq}
                        for n in range(MINUTES)
                        for seq in (events * n // MINUTES,)
                    ]
                    conn.execute(insert(time_index), rows)
                milliseconds = []
                for day in range(1, 29):
                    noon = start + timedelta(days=day)
                    began = time.perf_counter()
                    day_window = store.log.window(noon, noon + timedelta(days=1))
                    milliseconds.append((time.perf_counter() - began) * 1000)
                    assert day_window.upto - day_window.after <= events / 29
            title = f"a day's window among {events:,} events; {databases.name}"
            yield at_most(title, milliseconds, 50, "ms")


def live(effort: Effort) -> Iterator[Figure]:
    """The p99 from an event's commit to its load, with and without a replay in another process."""
    with postgres() as databases:
        with_replay, without = alternate(
            effort.rounds,
            lambda: _latency(databases, effort, replaying=True),
            lambda: _latency(databases, effort, replaying=False),
        )
        title = f"live p99 under a running replay, beside that without; {databases.name}"
        ratio = median(with_replay) / median(without)
        yield Figure(
            title,
            shown(with_replay, "ms"),
            shown(without, "ms"),
            f"{ratio:.2f}",
            "≤ 2.00",
            ratio <= 2,
        )


def _first_load_rate(databases: Databases, count: int) -> float:
    url = databases.create()
    with closing(opened(url)) as store:
        _receive(databases, store, count)
        rate = _load(store, count)
    databases.drop(url)
    return rate


def _request() -> ReplayRequest:
    now = datetime.now(UTC)
    return ReplayRequest(now - timedelta(days=1), now + timedelta(days=1))


def _without_jobs(databases: Databases, store: Store, count: int) -> None:
    new = [[NewEvent(happened.path, payload(n))] for n in range(BATCH)]
    for _ in range(count // BATCH):
        store.log.append(new)
    databases.settle()


def _replay_rate(databases: Databases, count: int, *, planned: bool) -> float:
    url, request = databases.create(), _request()
    with (
        closing(opened(url)) as store,
        closing(open_supervisor(None, store.database)) as supervisor,
    ):
        _without_jobs(databases, store, count)
        if planned:
            _plan(store, full, request, "run")
            databases.settle()
        began = time.perf_counter()
        summary = replay_window(app, full, request, store=store, supervisor=supervisor, run="run")
        seconds = time.perf_counter() - began
    assert summary.tally.succeeded == count, summary
    databases.drop(url)
    return count / seconds


def _planning_rate(databases: Databases, count: int, event: DestinationEvent[Any]) -> float:
    url = databases.create()
    with closing(opened(url)) as store:
        _without_jobs(databases, store, count)
        began = time.perf_counter()
        _plan(store, event, _request(), "run")
        seconds = time.perf_counter() - began
    databases.drop(url)
    return count / seconds


def _plan(store: Store, event: DestinationEvent[Any], request: ReplayRequest, run: str) -> None:
    selector = ReplaySelector(app, event, request)
    token = store.loads.take_over(event.path, Lane.REPLAY, run, lambda: True)
    progress = store.replays.begin(token, request, selector.event_types, run)
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
    url = databases.create()
    seconds = max(effort.seconds / 5, 3)
    _arrived.clear()
    with (
        closing(opened(url)) as store,
        closing(open_supervisor(None, store.database)) as supervisor,
        closing(StandardScheduler()) as scheduler,
    ):
        _without_jobs(databases, store, 200_000 if replaying else 1000)
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
        ends = time.time() + seconds
        while time.time() < ends:
            sent = time.time()
            event = NewEvent(happened.path, f'{{"n": {sent!r}}}', [NewJob(full.path)])
            store.log.append([[event]])
            time.sleep(0.02)
        assert not replaying or replayer.is_alive(), "the replay ended before the measurement"
        stop.set()
        loading_thread.join()
        if replaying:
            replayer.kill()
            replayer.join()
    databases.drop(url)
    latencies = sorted((arrived - sent) * 1000 for sent, arrived in _arrived)
    return latencies[len(latencies) * 99 // 100]


def _replay_all(url: str) -> None:
    with (
        closing(opened(url)) as store,
        closing(open_supervisor(None, store.database)) as supervisor,
    ):
        store.register(app)
        request = ReplayRequest(
            datetime.now(UTC) - timedelta(days=1), datetime.now(UTC), (ReplayMode.MISSING,)
        )
        replay_window(app, full, request, StandardScheduler(), store=store, supervisor=supervisor)
