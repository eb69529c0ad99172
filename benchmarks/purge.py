"""Purges of expired events, and how they slow commits that run beside them."""

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path

from benchmarks.measure import Effort, Figure, alternate, figure, p99, temporary_folder, timed
from benchmarks.pipeline import app, happened, payload, requests
from benchmarks.stores import Databases, fill, measured_on, opened, postgres, sqlite
from blacksmith_dagster.pipeline.retention import Retention
from blacksmith_dagster.scheduler.purge import _PAUSE
from blacksmith_dagster.store import Store, tables
from blacksmith_dagster.store.partitions import STEP

WHOLE, ROWS = 5_000_000, 500_000
ROUNDS = 3  # each fills a new store
AT_ONCE = {happened.path: Retention(timedelta(0), timedelta(0))}


def purge(effort: Effort) -> Iterator[Figure]:
    """Seconds per table partition, events a second row by row, and commit latencies beside a purge."""
    yield from _whole(effort)
    yield from _row_by_row(effort)


@measured_on(postgres)
def _whole(databases: Databases, effort: Effort) -> Iterator[Figure]:
    count = effort.of(WHOLE)
    (rounds,) = alternate(ROUNDS, lambda: _dropped(databases, count))
    seconds, limits = zip(*rounds, strict=True)
    what = f"purge {count:,} drained events, a partition; {databases.name}"
    bounded = figure(what, seconds, "s", at_most=2)
    beside = figure(what, seconds, "s", limits=limits)
    yield replace(bounded, limit=beside.limit, ratio=beside.ratio)


@measured_on(postgres, sqlite)
def _row_by_row(databases: Databases, effort: Effort) -> Iterator[Figure]:
    count = effort.of(ROWS)
    (rounds,) = alternate(ROUNDS, lambda: _deleted(databases, count))
    rates, during, after = zip(*rounds, strict=True)
    what = f"of {count:,} drained events, row by row; {databases.name}"
    yield figure(f"purge {what}", rates, "events/s")
    yield figure(f"commits of one event, p99, beside a purge {what}", during, "ms", limits=after)


def _dropped(databases: Databases, count: int) -> tuple[float, float]:
    """Seconds to purge a table partition of drained events, and to remove files of its size."""
    with databases.new() as url, opened(url) as store:
        fill(store, count, payload=payload(0))
        with store.database.writing() as conn:
            store.database.set_sequence(conn, max(store.database.sequence(conn), STEP))
        _ready(store)
        with store.database.reading() as conn:
            size = conn.exec_driver_sql(_SIZE).scalar_one()
        databases.settle()
        seconds, steps = timed(lambda: list(store.log.purge(AT_ONCE)))
        assert sum(step.partitions for step in steps) == 1
        assert not store.log.newest()
    return seconds, _removed(int(size))


_SIZE = "SELECT pg_total_relation_size('events_0') + pg_total_relation_size('jobs_0')"
_SEGMENT = 1024**3  # the size of one file of a table


def _removed(size: int) -> float:
    """Seconds to remove files of this total size."""
    with temporary_folder() as folder:
        paths = [folder / str(n) for n in range(0, size, _SEGMENT)]
        for path in paths:
            with path.open("wb") as file:
                for _ in range(_SEGMENT // 2**20):
                    file.write(bytes(2**20))
                os.fsync(file.fileno())
        seconds, _ = timed(lambda: _unlink(paths))
        return seconds * size / (len(paths) * _SEGMENT)


def _unlink(paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink()


def _deleted(databases: Databases, count: int) -> tuple[float, float, float]:
    """Events purged a second, and the 99th percentile of commits during and after the purge, in ms."""
    with (
        databases.new() as url,
        opened(url) as store,
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as committer,
    ):
        fill(store, count, payload=payload(0))
        _ready(store)
        databases.settle()
        committer.submit(_commits, url, 0.1).result()
        started, purged, during = time.perf_counter(), 0, None
        for step in store.log.purge(AT_ONCE):
            during = during or committer.submit(_commits, url, 3.0)
            purged += step.events
            time.sleep(_PAUSE)
        seconds = time.perf_counter() - started
        assert during is not None
        assert purged == count, purged
        latencies = during.result(), committer.submit(_commits, url, 3.0).result()
    return count / seconds, *latencies


def _ready(store: Store) -> None:
    """Count all events and mark them as old."""
    store.maintain()
    with store.database.writing() as conn:
        now, low = store.database.now(conn), store.database.high_watermark(conn)
        conn.execute(tables.time_index.insert(), {"at": now, "low": low, "high": low})


def _commits(url: str, seconds: float) -> float:
    """The 99th percentile of commits of one event, in ms."""
    with opened(url) as store:
        store.register(app)
        new, latencies = requests(1), []
        ends = time.perf_counter() + seconds
        while time.perf_counter() < ends:
            latencies.append(1000 * timed(lambda: store.log.append(new))[0])
    return p99(latencies)
