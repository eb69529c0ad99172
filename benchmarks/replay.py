"""Replays: how fast they drain and make jobs, how a window is found, and what live loads feel of it."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from typing import Any

from sqlalchemy import insert

from benchmarks.drain import _load, _receive
from benchmarks.measure import Effort, Figure, alternate, at_least, at_most, beside, shown
from benchmarks.pipeline import app, each, half, happened, payload, source
from benchmarks.stores import BATCH, BOTH, Databases, fill, opened, postgres
from blacksmith_dagster import Batch, Blacksmith, Destination, DestinationEvent
from blacksmith_dagster.scheduler.executor import Executor
from blacksmith_dagster.scheduler.loader import Loader
from blacksmith_dagster.scheduler.replay import ReplaySelector
from blacksmith_dagster.scheduler.replay import replay as replay_window
from blacksmith_dagster.store.interface import (
    Lane,
    NewEvent,
    NewJob,
    ReplayMode,
    ReplayRequest,
    Window,
)
from blacksmith_dagster.store.sql import SQLStore
from blacksmith_dagster.store.tables import time_index
from blacksmith_dagster.supervisor import open_supervisor

MINUTES = 30 * 24 * 60


def replay(effort: Effort) -> Iterator[Figure]:
    """The rate of a replay beside that of first loads of the same jobs, and of making jobs."""
    count = effort.of(200_000)
    for databases in BOTH:
        with databases() as made:
            first, drained, whole = alternate(
                effort.rounds,
                lambda made=made: _fresh(made, count),
                lambda made=made: _replayed(made, count, planned=True),
                lambda made=made: _replayed(made, count, planned=False),
            )
            bound = 0.7 if databases is postgres else None
            what = f"replay of planned jobs, beside first loads; {made.name}"
            yield beside(what, drained, first, "jobs/s", bound)
            title = f"replay and its planning, beside first loads; {made.name}"
            yield beside(title, whole, first, "jobs/s")
            plain, asked = alternate(
                effort.rounds,
                lambda made=made: _made(made, count, each),
                lambda made=made: _made(made, count, half),
            )
            if databases is postgres:
                yield at_least(f"jobs made; {made.name}", plain, 100_000, "jobs/s")
            else:
                yield Figure(f"jobs made; {made.name}", shown(plain, "jobs/s"))
            yield Figure(
                f"events asked by a `when`, half of them made; {made.name}",
                shown(asked, "events/s"),
            )


def window(effort: Effort) -> Iterator[Figure]:
    """How long it takes to find a day among 5M events, a row of the time index a minute for 30 days."""
    events = effort.of(5_000_000)
    for databases in BOTH:
        with databases() as made:
            url = made.create()
            fill(url, events, payload="{}")
            end = datetime.now(UTC)
            start = end - timedelta(minutes=MINUTES)
            with closing(opened(url)) as store:
                with store.writing() as conn:
                    rows = [
                        {"at": start + timedelta(minutes=n), "low": at, "high": at}
                        for n in range(MINUTES)
                        for at in (events * n // MINUTES,)
                    ]
                    conn.execute(insert(time_index), rows)
                took = []
                for day in range(1, 29):
                    noon = start + timedelta(days=day)
                    began = time.perf_counter()
                    found = store.window(noon, noon + timedelta(days=1))
                    took.append((time.perf_counter() - began) * 1000)
                    assert found.upto - found.after <= events / 29
            title = f"a day's window among {events:,} events; {made.name}"
            yield at_most(title, took, 50, "ms")


def live(effort: Effort) -> Iterator[Figure]:
    """The p99 from an event's commit to its destination, beside a replay in another process."""
    with postgres() as made:
        beside_it, alone = alternate(
            effort.rounds,
            lambda: _latency(made, effort, replaying=True),
            lambda: _latency(made, effort, replaying=False),
        )
        title = f"live p99 under a running replay, beside that without; {made.name}"
        ratio = sorted(beside_it)[len(beside_it) // 2] / sorted(alone)[len(alone) // 2]
        yield Figure(
            title, shown(beside_it, "ms"), shown(alone, "ms"), f"{ratio:.2f}", "≤ 2.00", ratio <= 2
        )


def _fresh(made: Databases, count: int) -> float:
    url = made.create()
    with closing(opened(url)) as store:
        _receive(made, store, count)
        rate = _load(store, count)
    made.drop(url)
    return rate


def _request() -> ReplayRequest:
    now = datetime.now(UTC)
    return ReplayRequest(now - timedelta(days=1), now + timedelta(days=1))


def _without_jobs(made: Databases, store: SQLStore, count: int) -> None:
    new = [[NewEvent(happened.path, payload(n))] for n in range(BATCH)]
    for _ in range(count // BATCH):
        store.ingest(new)
    made.settle()


def _replayed(made: Databases, count: int, *, planned: bool) -> float:
    url, request = made.create(), _request()
    with closing(opened(url)) as store, closing(open_supervisor(None, store)) as supervisor:
        _without_jobs(made, store, count)
        if planned:
            _plan(store, each, request, "run")
            made.settle()
        began = time.perf_counter()
        summary = replay_window(app, each, request, store=store, supervisor=supervisor, run="run")
        seconds = time.perf_counter() - began
    assert summary.tally.succeeded == count, summary
    made.drop(url)
    return count / seconds


def _made(made: Databases, count: int, event: DestinationEvent[Any]) -> float:
    url = made.create()
    with closing(opened(url)) as store:
        _without_jobs(made, store, count)
        began = time.perf_counter()
        _plan(store, event, _request(), "run")
        seconds = time.perf_counter() - began
    made.drop(url)
    return count / seconds


def _plan(store: SQLStore, event: DestinationEvent[Any], request: ReplayRequest, run: str) -> None:
    selector = ReplaySelector(app, event, request)
    token = store.take_over(event.path, Lane.REPLAY, run, lambda: True)
    at = store.begin_replay(token, request, selector.event_types, run)
    while at.planned_upto < at.upto:
        window = Window(at.planned_upto, at.upto)
        page = store.replay_page(event.path, request, selector.event_types, window)
        selected = selector.select(page.candidates, store)
        at = store.plan(token, at, page.upto, selected, event.batch)


# ------------------------------------------------------------------------------------- live loads


_sink = Destination("sink")
_arrived: list[tuple[float, float]] = []


@_sink.event(receives=happened, name="each")
def _note(batch: Batch[Any]) -> None:
    """Note when live events arrive; those of history bear no time."""
    now = time.time()
    _arrived.extend((job.data["n"], now) for job in batch if job.data["n"] > 1e9)


_live_app = Blacksmith(sources=[source], destinations=[_sink], since="2026-01-01")


def _latency(made: Databases, effort: Effort, *, replaying: bool) -> float:
    """The 99th percentile in ms of 50 events a second, loaded by a loop that looks each 2 ms."""
    url = made.create()
    seconds = max(effort.seconds / 5, 3)
    _arrived.clear()
    with (
        closing(opened(url)) as store,
        closing(open_supervisor(None, store)) as supervisor,
        closing(Executor()) as executor,
    ):
        _without_jobs(made, store, 200_000 if replaying else 1000)
        lease = supervisor.acquire(f"load/{each.path}", "live")
        assert lease is not None
        token = store.take_over(each.path, Lane.LOAD, lease.id, lease.confirm)
        loader = Loader(_live_app, _note, store=store, executor=executor)
        stop = threading.Event()

        def load() -> None:
            while not stop.wait(0.002):
                loader.drain(token, lease, stop, lambda _: None)

        loading = threading.Thread(target=load)
        loading.start()
        other = get_context("spawn").Process(target=_replay_all, args=(url,))
        if replaying:
            other.start()
            while not any(found.jobs for found in store.replays(each.path)):
                time.sleep(0.05)
        ends = time.time() + seconds
        while time.time() < ends:
            sent = time.time()
            event = NewEvent(happened.path, f'{{"n": {sent!r}}}', [NewJob(each.path)])
            store.ingest([[event]])
            time.sleep(0.02)
        assert not replaying or other.is_alive(), "the replay has ended before the measure"
        stop.set()
        loading.join()
        if replaying:
            other.kill()
            other.join()
    made.drop(url)
    took = sorted((arrived - sent) * 1000 for sent, arrived in _arrived)
    return took[len(took) * 99 // 100]


def _replay_all(url: str) -> None:
    with closing(opened(url)) as store, closing(open_supervisor(None, store)) as supervisor:
        store.register(app)
        request = ReplayRequest(
            datetime.now(UTC) - timedelta(days=1), datetime.now(UTC), (ReplayMode.MISSING,)
        )
        replay_window(app, each, request, store=store, supervisor=supervisor)
