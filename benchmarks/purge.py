"""Purges of expired events, and how they slow commits that run beside them."""

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
from blacksmith_dagster.store import Store, tables
from blacksmith_dagster.store.partitions import STEP

WHOLE, ROWS = 5_000_000, 500_000
ROUNDS = 3  # each fills a new store
AT_ONCE = {happened.path: Retention(timedelta(0), timedelta(0))}


def purge(effort: Effort) -> Iterator[Figure]:
    """Seconds per table partition, events a second row by row, and commit latencies beside a purge."""
    with postgres() as databases:
        count = effort.of(WHOLE)
        seconds, limits = zip(*(_dropped(databases, count) for _ in range(ROUNDS)), strict=True)
        what = f"purge {count:,} drained events, a partition; {databases.name}"
        yield replace(
            at_most(what, seconds, 2, "s"),
            limit=shown(limits, "s"),
            ratio=f"{median(seconds) / median(limits):.2f}",
        )
    for backend in BOTH:
        with backend() as databases:
            count = effort.of(ROWS)
            rates, with_purge, without = [], [], []
            for _ in range(ROUNDS):
                rate, during, after = _deleted(databases, count)
                rates.append(rate)
                with_purge.append(during)
                without.append(after)
            what = f"of {count:,} drained events, row by row; {databases.name}"
            yield Figure(f"purge {what}", shown(rates, "events/s"))
            yield beside(
                f"commits of one event, p99, beside a purge {what}", with_purge, without, "ms"
            )


def _dropped(databases: Databases, count: int) -> tuple[float, float]:
    """Seconds to purge a table partition of drained events, and to remove files of its size."""
    url = databases.create()
    fill(url, count, payload=payload(0))
    with closing(opened(url)) as store:
        with store.database.writing() as conn:
            store.database.set_sequence(conn, max(store.database.sequence(conn), STEP))
        _ready(store)
        with store.database.reading() as conn:
            size = conn.exec_driver_sql(_SIZE).scalar_one()
        databases.settle()
        started = time.perf_counter()
        dropped = sum(step.partitions for step in store.log.purge(AT_ONCE))
        seconds = time.perf_counter() - started
        assert dropped == 1
        assert not store.log.newest()
    databases.drop(url)
    return seconds, _removed(int(size))


_SIZE = "SELECT pg_total_relation_size('events_0') + pg_total_relation_size('jobs_0')"
_SEGMENT = 1024**3  # the size of one file of a table


def _removed(size: int) -> float:
    """Seconds to remove files of this total size."""
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


def _deleted(databases: Databases, count: int) -> tuple[float, float, float]:
    """Events purged a second, and the 99th percentile of commits during and after the purge, in ms."""
    url = databases.create()
    fill(url, count, payload=payload(0))
    with (
        closing(opened(url)) as store,
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as committer,
    ):
        _ready(store)
        databases.settle()
        committer.submit(_commits, url, 0.1).result()
        started, purged = time.perf_counter(), 0
        during = None
        for step in store.log.purge(AT_ONCE):
            during = during or committer.submit(_commits, url, 3.0)
            purged += step.events
            time.sleep(_PAUSE)
        seconds = time.perf_counter() - started
        assert during is not None
        assert purged == count, purged
        latencies = during.result(), committer.submit(_commits, url, 3.0).result()
    databases.drop(url)
    return count / seconds, *latencies


def _ready(store: Store) -> None:
    """Count all events and mark them as old."""
    store.maintain()
    with store.database.writing() as conn:
        now, low = store.database.now(conn), store.database.high_watermark(conn)
        conn.execute(tables.time_index.insert(), {"at": now, "low": low, "high": low})


def _commits(url: str, seconds: float) -> float:
    """The 99th percentile of commits of one event, in ms."""
    with closing(opened(url)) as store:
        store.register(app)
        new, latencies = requests(1), []
        ends = time.perf_counter() + seconds
        while (started := time.perf_counter()) < ends:
            store.log.append(new)
            latencies.append(time.perf_counter() - started)
    return sorted(latencies)[len(latencies) * 99 // 100] * 1000
