"""Jobs loaded by the scheduler, beside only reading and decoding them."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing

from benchmarks.measure import Effort, Figure, alternate, beside
from benchmarks.pipeline import app, full, payload, requests
from benchmarks.reading import read_jobs
from benchmarks.stores import BATCH, BOTH, Databases, fill, opened, postgres
from blacksmith_dagster.scheduler import StandardScheduler, load
from blacksmith_dagster.scheduler.decoding import JobDecoder
from blacksmith_dagster.store import Store
from blacksmith_dagster.store.records import Lane, LoadVerdict
from blacksmith_dagster.supervisor import open_supervisor

HISTORIES = (0, 1_000_000, 5_000_000)


def drain(effort: Effort) -> Iterator[Figure]:
    """The scheduler's rate, beside the rate of SELECT and msgspec."""
    count = effort.of(200_000)
    for backend in BOTH:
        with backend() as databases, closing(opened(databases.create())) as store:
            _check_same_jobs(store)

            def load(databases: Databases = databases, store: Store = store) -> float:
                _receive(databases, store, count)
                return _load(store, count)

            def select(
                databases: Databases = databases, store: Store = store, gc: bool = True
            ) -> float:
                _receive(databases, store, count)
                rate = _select(store, count, gc)
                _load(store, count)
                return rate

            rates, limits, best = alternate(
                effort.rounds, load, select, lambda read=select: read(gc=False)
            )
            bound = 0.75 if backend is postgres else None
            what = f"drain, batches of {BATCH}"
            yield beside(f"{what}; {databases.name}", rates, limits, "jobs/s", bound)
            title = f"{what}, the limit's garbage collector paused; {databases.name}"
            yield beside(title, rates, best, "jobs/s")


def history(effort: Effort) -> Iterator[Figure]:
    """The scheduler's rate with a long history, beside the rate without one."""
    count = effort.of(200_000)
    for backend in BOTH:
        with backend() as databases:
            measures = [_after(databases, effort.of(n) if n else 0, count) for n in HISTORIES]
            rates = alternate(effort.rounds, *measures)
            for events, rate in zip(HISTORIES[1:], rates[1:], strict=True):
                what = f"drain after {effort.of(events):,} drained events, beside after none"
                bound = 0.85 if backend is postgres else None
                yield beside(f"{what}; {databases.name}", rate, rates[0], "jobs/s", bound)


def _after(databases: Databases, drained: int, count: int) -> Callable[[], float]:
    filled = databases.create()
    if drained:
        fill(filled, drained, payload=payload(0))

    def load() -> float:
        url = filled if drained else databases.create()
        with closing(opened(url)) as store:
            _receive(databases, store, count)
            rate = _load(store, count)
        if not drained:
            databases.drop(url)
        return rate

    return load


def _receive(databases: Databases, store: Store, count: int) -> None:
    new = requests(BATCH)
    for _ in range(count // BATCH):
        store.log.append(new)
    databases.settle()


def _load(store: Store, count: int) -> float:
    """Jobs per second, from acquiring the lock to releasing it."""
    with (
        closing(open_supervisor(None, store.database)) as supervisor,
        closing(StandardScheduler()) as loads,
    ):
        started = time.perf_counter()
        summary = load(app, full, loads, store=store, supervisor=supervisor)
        seconds = time.perf_counter() - started
    assert summary.tally.succeeded == count, summary
    return count / seconds


def _select(store: Store, count: int, collect: bool) -> float:
    """Jobs per second that are only read and decoded."""
    with closing(read_jobs(store, collect=collect)) as batches:
        started = time.perf_counter()
        read = sum(len(batch) for batch in batches)
        seconds = time.perf_counter() - started
    assert read == count, read
    return count / seconds


def _check_same_jobs(store: Store) -> None:
    """Check that the limit builds the same jobs as the scheduler."""
    store.log.append(requests(BATCH))
    token = store.loads.take_over(full.path, Lane.LOAD, "check", lambda: True)
    with closing(read_jobs(store)) as batches:
        read = next(batches)
    load = store.loads.claim(token, BATCH, max_attempts=1)
    assert load is not None
    assert JobDecoder(app, full).decode(load, {}).jobs == read
    store.loads.record(load, LoadVerdict())
