"""Jobs loaded by the scheduler, beside only reading and decoding them."""

import gc
import sqlite3
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, closing
from functools import partial
from types import MappingProxyType
from typing import Any

import msgspec
import psycopg

from benchmarks.measure import Effort, Figure, alternate, figure, timed
from benchmarks.pipeline import app, full, payload, requests
from benchmarks.stores import BATCH, Databases, fill, measured_on, opened, postgres, sqlite
from blacksmith_dagster import Event, Job
from blacksmith_dagster.scheduler import StandardScheduler, load
from blacksmith_dagster.scheduler.decoding import JobDecoder
from blacksmith_dagster.store import Store
from blacksmith_dagster.store.records import Lane, LoadVerdict
from blacksmith_dagster.store.tables import from_micros
from blacksmith_dagster.supervisor import open_supervisor

HISTORIES = (1_000_000, 5_000_000)


@measured_on(postgres, sqlite)
def drain(databases: Databases, effort: Effort) -> Iterator[Figure]:
    """The scheduler's rate, beside the rate of SELECT and msgspec."""
    count = effort.of(200_000)
    with databases.new() as url, opened(url) as store:
        _check_same_jobs(store)

        def loaded() -> float:
            receive(databases, store, count)
            return load_rate(store, count)

        def select(*, collect: bool = True) -> float:
            receive(databases, store, count)
            with closing(_read_jobs(store, collect=collect)) as batches:
                seconds, read = timed(lambda: sum(len(batch) for batch in batches))
            assert read == count, read
            load_rate(store, count)
            return count / seconds

        rates, limits, best = alternate(
            effort.rounds, loaded, select, lambda: select(collect=False)
        )
    what = f"drain, batches of {BATCH}"
    bound = databases.bound(0.75)
    yield figure(f"{what}; {databases.name}", rates, "jobs/s", limits=limits, at_least=bound)
    title = f"{what}, the limit's garbage collector paused; {databases.name}"
    yield figure(title, rates, "jobs/s", limits=best)


@measured_on(postgres, sqlite)
def history(databases: Databases, effort: Effort) -> Iterator[Figure]:
    """The scheduler's rate with a long history, beside the rate without one."""
    count = effort.of(200_000)
    with ExitStack() as stack:
        urls = [stack.enter_context(databases.new()) for _ in HISTORIES]
        for url, events in zip(urls, HISTORIES, strict=True):
            with opened(url) as store:
                fill(store, effort.of(events), payload=payload(0))
        without, *rates = alternate(
            effort.rounds,
            lambda: first_load_rate(databases, count),
            *(partial(_load_rate_at, databases, url, count) for url in urls),
        )
    for events, rate in zip(HISTORIES, rates, strict=True):
        what = f"drain after {effort.of(events):,} drained events, beside after none"
        bound = databases.bound(0.85)
        yield figure(f"{what}; {databases.name}", rate, "jobs/s", limits=without, at_least=bound)


def first_load_rate(databases: Databases, count: int) -> float:
    """Jobs per second of a new store."""
    with databases.new() as url:
        return _load_rate_at(databases, url, count)


def _load_rate_at(databases: Databases, url: str, count: int) -> float:
    with opened(url) as store:
        receive(databases, store, count)
        return load_rate(store, count)


def receive(databases: Databases, store: Store, count: int, *, jobs: bool = True) -> None:
    """Ingest events, with their jobs or without."""
    new = requests(BATCH, jobs=jobs)
    for _ in range(count // BATCH):
        store.log.append(new)
    databases.settle()


def load_rate(store: Store, count: int) -> float:
    """Jobs per second, from acquiring the lock to releasing it."""
    with (
        closing(open_supervisor(None, store.database)) as supervisor,
        closing(StandardScheduler()) as loads,
    ):
        seconds, summary = timed(lambda: load(app, full, loads, store=store, supervisor=supervisor))
    assert summary.tally.succeeded == count, summary
    return count / seconds


def _check_same_jobs(store: Store) -> None:
    """Check that the limit builds the same jobs as the scheduler."""
    store.log.append(requests(BATCH))
    token = store.loads.take_over(full.path, Lane.LOAD, "check", lambda: True)
    with closing(_read_jobs(store)) as batches:
        read = next(batches)
    load = store.loads.claim(token, BATCH, max_attempts=1)
    assert load is not None
    assert JobDecoder(app, full).decode(load, {}).jobs == read
    store.loads.record(load, LoadVerdict())


# ------------------------------------------------------------------------------------- the limit


_POSITION = "SELECT coalesce(max(position), 0) FROM loads WHERE destination = {id}"
_NEXT = (
    "SELECT events.seq, received_at, payload, key, context, version, sent_at, parent"
    " FROM jobs JOIN events ON events.seq = jobs.seq"
    f" WHERE destination = {{id}} AND jobs.seq > {{after}} ORDER BY jobs.seq LIMIT {BATCH}"
)


def _read_jobs(store: Store, *, collect: bool = True) -> Generator[list[Job[Any]]]:
    """Read the awaiting jobs of `sink/full`, as the scheduler would build them.

    Without `collect`, Python's garbage collector is paused while a batch is built: by default it
    visits each object several times, which takes longer than building them.
    """
    destination = store.database.destination(full.path)
    epoch, suffix = store.database.epochs._names[-1], f"-{destination}"
    decode = msgspec.json.Decoder().decode
    nothing: Mapping[str, Any] = MappingProxyType({})
    sqlite = store.database.engine.dialect.name == "sqlite"
    with closing(_connect(store)) as conn:
        cursor = conn.cursor() if sqlite else conn.cursor(binary=True)
        (after,) = cursor.execute(_POSITION.format(id=destination)).fetchone()
        statement = _NEXT.format(id=destination, after="?" if sqlite else "%s")
        while rows := cursor.execute(statement, (after,)).fetchall():
            after = rows[-1][0]
            batch = []
            if not collect:
                gc.disable()
            for seq, received_at, payload, key, _, version, sent_at, parent in rows:
                received = from_micros(received_at) if sqlite else received_at
                id_ = f"evt_{epoch}{seq:012x}"
                data = decode(payload)
                event = Event(data, key, sent_at, nothing, version, id_, received, parent)
                batch.append(Job(data, event, id_ + suffix, 1))
            gc.enable()
            yield batch


def _connect(store: Store) -> Any:
    url = store.database.engine.url
    if url.get_backend_name() == "sqlite":
        return sqlite3.connect(url.database or "")
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(plain, autocommit=True)
