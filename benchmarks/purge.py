"""Events that nothing needs any more: how long until they are gone, and what ingest feels of it."""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.measure import Effort, Figure, at_most, beside, shown
from benchmarks.pipeline import app, happened, payload, requests
from benchmarks.stores import BOTH, Databases, fill, opened, postgres
from blacksmith_dagster.pipeline.retention import Retention
from blacksmith_dagster.scheduler.purge import _PAUSE
from blacksmith_dagster.store import tables
from blacksmith_dagster.store.partitions import STEP
from blacksmith_dagster.store.sql import SQLStore

WHOLE, ROWS = 5_000_000, 500_000
ROUNDS = 3  # each fills a store anew
AT_ONCE = {happened.path: Retention(timedelta(0), timedelta(0))}


def purge(effort: Effort) -> Iterator[Figure]:
    """Seconds for a partition, events a second for rows, and the commits beside."""
    with postgres() as made:
        count = effort.of(WHOLE)
        seconds, limits = zip(*(_dropped(made, count) for _ in range(ROUNDS)), strict=True)
        what = f"purge {count:,} drained events, a partition; {made.name}"
        yield replace(
            at_most(what, seconds, 2, "s"),
            limit=shown(limits, "s"),
            ratio=f"{median(seconds) / median(limits):.2f}",
        )
    for databases in BOTH:
        with databases() as made:
            count = effort.of(ROWS)
            rates, with_purge, without = [], [], []
            for _ in range(ROUNDS):
                rate, during, after = _deleted(made, count)
                rates.append(rate)
                with_purge.append(during)
                without.append(after)
            what = f"of {count:,} drained events, row by row; {made.name}"
            yield Figure(f"purge {what}", shown(rates, "events/s"))
            yield beside(
                f"commits of one event, p99, beside a purge {what}", with_purge, without, "ms"
            )


def _dropped(made: Databases, count: int) -> tuple[float, float]:
    """Seconds to purge a partition of drained events, and to remove files of its size."""
    url = made.create()
    fill(url, count, payload=payload(0))
    with closing(opened(url)) as store:
        with store.writing() as conn:
            store._set_sequence(conn, max(store._sequence(conn), STEP))
        _ready(store)
        with store.reading() as conn:
            size = conn.exec_driver_sql(_SIZE).scalar_one()
        made.settle()
        started = time.perf_counter()
        dropped = sum(step.partitions for step in store.purge(AT_ONCE))
        seconds = time.perf_counter() - started
        assert dropped == 1
        assert not store.events()
    made.drop(url)
    return seconds, _removed(int(size))


_SIZE = "SELECT pg_total_relation_size('events_0') + pg_total_relation_size('jobs_0')"
_SEGMENT = 1024**3  # of the files of a table


def _removed(size: int) -> float:
    """Seconds to remove files of this size in all."""
    with TemporaryDirectory(prefix="blacksmith-bench-") as folder:
        paths = [Path(folder) / str(n) for n in range(0, size, _SEGMENT)]
        for path in paths:
            with path.open("wb") as file:
                for _ in range(_SEGMENT // 2**20):
                    file.write(bytes(2**20))
                os.fsync(file.fileno())
        started = time.perf_counter()
        for path in paths:
            path.unlink()
        return (time.perf_counter() - started) * size / (len(paths) * _SEGMENT)


def _deleted(made: Databases, count: int) -> tuple[float, float, float]:
    """Events purged a second, and the 99th percentile of commits beside and without, in ms."""
    url = made.create()
    fill(url, count, payload=payload(0))
    with (
        closing(opened(url)) as store,
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as others,
    ):
        _ready(store)
        made.settle()
        others.submit(_commits, url, 0.1).result()
        started, gone = time.perf_counter(), 0
        during = None
        for step in store.purge(AT_ONCE):
            during = during or others.submit(_commits, url, 3.0)
            gone += step.events
            time.sleep(_PAUSE)
        seconds = time.perf_counter() - started
        assert during is not None
        assert gone == count, gone
        latencies = during.result(), others.submit(_commits, url, 3.0).result()
    made.drop(url)
    return count / seconds, *latencies


def _ready(store: SQLStore) -> None:
    """Count all that is there, and mark it as old."""
    store.maintain()
    with store.writing() as conn:
        now, low = store._now(conn), store._high_watermark(conn)
        conn.execute(tables.time_index.insert(), {"at": now, "low": low, "high": low})


def _commits(url: str, seconds: float) -> float:
    """The 99th percentile of commits of one event, in ms."""
    with closing(opened(url)) as store:
        store.register(app)
        new, took = requests(1), []
        ends = time.perf_counter() + seconds
        while (started := time.perf_counter()) < ends:
            store.ingest(new)
            took.append(time.perf_counter() - started)
    return sorted(took)[len(took) * 99 // 100] * 1000
