"""Durable stores for benchmarks, and a fast way to fill them with events and jobs."""

import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeAlias

import psycopg
from sqlalchemy import TextClause, bindparam, text

from benchmarks.measure import Effort, Figure, temporary_folder
from benchmarks.pipeline import app, full, half, happened
from blacksmith_dagster.store import Store, open_store
from blacksmith_dagster.store.tables import Instant
from tests.support.services.postgres import PostgresServer

BATCH = 1000


@dataclass(frozen=True)
class Databases:
    """Creates databases in one system. `name` is the system's, with its version.

    `settle` completes deferred writes, so that the next measure does not pay for the last one.
    """

    name: str
    create: Callable[[], str]
    drop: Callable[[str], None]
    settle: Callable[[], object]

    @contextmanager
    def new(self) -> Iterator[str]:
        """The URL of an empty store with the application registered; it is dropped afterwards."""
        url = self.create()
        with closing(open_store(url, upgrade=True)) as store:
            store.register(app)
        yield url
        self.drop(url)

    def bound(self, value: float | None) -> float | None:
        """A bound that applies to PostgreSQL only."""
        return value if self.name.startswith("PostgreSQL") else None


@contextmanager
def postgres() -> Iterator[Databases]:
    """A PostgreSQL server with default settings for fsync and commits."""
    with closing(PostgresServer(durable=True)) as server:
        server.start()
        with psycopg.connect(server.url, autocommit=True) as conn:
            version, *durable = (
                conn.execute(f"SHOW {setting}").fetchall()[0][0]
                for setting in ("server_version", "fsync", "synchronous_commit")
            )
            if durable != ["on", "on"]:
                raise RuntimeError(
                    f"the server is not durable: fsync, synchronous_commit = {durable}"
                )
            name = f"PostgreSQL {version.split()[0]}"
            settle = partial(conn.execute, "CHECKPOINT")
            yield Databases(name, server.create_database, server.drop_database, settle)


@contextmanager
def sqlite() -> Iterator[Databases]:
    """SQLite files, each in its own temporary folder."""
    with temporary_folder() as folder:
        yield Databases(
            f"SQLite {sqlite3.sqlite_version}",
            lambda: f"sqlite:///{tempfile.mkdtemp(dir=folder)}/store.db",
            lambda url: shutil.rmtree(Path(url.removeprefix("sqlite:///")).parent),
            lambda: None,
        )


Measure: TypeAlias = Callable[[Databases, Effort], Iterator[Figure]]


def measured_on(
    *systems: Callable[[], AbstractContextManager[Databases]],
) -> Callable[[Measure], Callable[[Effort], Iterator[Figure]]]:
    """Run a benchmark on each database system in turn."""

    def decorate(measure: Measure) -> Callable[[Effort], Iterator[Figure]]:
        def benchmark(effort: Effort) -> Iterator[Figure]:
            for system in systems:
                with system() as databases:
                    yield from measure(databases, effort)

        return benchmark

    return decorate


def opened(url: str) -> closing[Store]:
    """Open the store at `url` until the block ends."""
    return closing(open_store(url))


def fill(
    store: Store, events: int, *, payload: str, drained: bool = True, discarded: int = 0
) -> None:
    """Fill an empty store with events and their jobs, by SQL instead of through the store.

    If `drained`, loads of 1000 have loaded all jobs, of which each discarded `discarded`.
    """
    database, at = store.database, datetime.now(UTC)
    with database.writing() as conn:
        kind = {"event_type": database.event_type(happened.path), "at": at}
        conn.execute(_EVENTS, kind | {"last": events, "payload": payload})
        for event, every in ((full, 1), (half, 2)):
            lane = {"destination": database.destination(event.path), "every": every}
            conn.execute(_JOBS, lane | {"last": events // every})
            if drained:
                loads = {"last": events // every // BATCH, "at": at, "discarded": discarded}
                conn.execute(_LOADS, lane | loads)
                if discarded:
                    conn.execute(_OUTCOMES, lane | {"last": discarded})
    store.repair()  # moves the sequence past the written rows
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.exec_driver_sql("VACUUM ANALYZE" if conn.dialect.name == "postgresql" else "ANALYZE")


def _numbered(insert: str) -> TextClause:
    """An INSERT ... SELECT from `n`, whose `n.i` counts from 1 to the parameter `last`."""
    counted = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :last) "
    return text(counted + insert)


_AT = bindparam("at", type_=Instant())
_EVENTS = _numbered(
    "INSERT INTO events (seq, event_type, received_at, payload) SELECT i, :event_type, :at, :payload "
    "FROM n"
).bindparams(_AT)
_JOBS = _numbered("INSERT INTO jobs (destination, seq) SELECT :destination, i * :every FROM n")
_LOADS = _numbered(
    "INSERT INTO loads (destination, lane, state, token, attempt, seq_from, seq_to, jobs,"
    " discarded, position, claimed, started_at, finished_at)"
    f" SELECT :destination, 'load', 'succeeded', 0, 1, (i - 1) * {BATCH} * :every + 1,"
    f" i * {BATCH} * :every, {BATCH}, :discarded, i * {BATCH} * :every, i * {BATCH}, :at, :at FROM n"
).bindparams(_AT)
_OUTCOMES = _numbered(
    "INSERT INTO outcomes (load, seq, destination, state, error)"
    " SELECT id, seq_to - i * :every, destination, 'discarded', 'no such thing'"
    " FROM loads, n WHERE destination = :destination"
)
