"""Durable stores for benchmarks, and a fast way to fill them with events and jobs."""

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import psycopg
from sqlalchemy import TextClause, bindparam, text

from benchmarks.pipeline import app, full, half, happened
from blacksmith_dagster.store import Store, open_store
from blacksmith_dagster.store.tables import Instant
from tests.services.postgres import PostgresServer

BATCH = 1000


class Databases(Protocol):
    """Creates stores in one database system. `name` is the system's, with its version."""

    name: str

    def create(self) -> str:
        """Create an empty store with the application registered; returns its URL."""
        ...

    def drop(self, url: str) -> None:
        """Remove a store."""
        ...

    def settle(self) -> None:
        """Complete deferred writes now, so that the next measure does not pay for the last one."""
        ...


class Postgres:
    """A PostgreSQL server with default settings for fsync and commits."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        with psycopg.connect(server.url) as conn:
            settings = [
                conn.execute(f"SHOW {setting}").fetchone()[0]
                for setting in ("server_version", "fsync", "synchronous_commit")
            ]
        if settings[1:] != ["on", "on"]:
            raise RuntimeError(
                f"the server is not durable: fsync, synchronous_commit = {settings[1:]}"
            )
        self.name = f"PostgreSQL {settings[0].split()[0]}"

    def create(self) -> str:
        return _registered(self._server.create_database())

    def drop(self, url: str) -> None:
        self._server.drop_database(url)

    def settle(self) -> None:
        with psycopg.connect(self._server.url, autocommit=True) as conn:
            conn.execute("CHECKPOINT")


class SQLite:
    """SQLite files, each in its own folder."""

    name = f"SQLite {sqlite3.sqlite_version}"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def create(self) -> str:
        return _registered(f"sqlite:///{tempfile.mkdtemp(dir=self._folder)}/store.db")

    def drop(self, url: str) -> None:
        shutil.rmtree(Path(url.removeprefix("sqlite:///")).parent)

    def settle(self) -> None:
        pass


@contextmanager
def postgres() -> Iterator[Databases]:
    """A durable PostgreSQL server, until the block ends."""
    server = PostgresServer(durable=True)
    try:
        server.start()
        yield Postgres(server)
    finally:
        server.close()


@contextmanager
def sqlite() -> Iterator[Databases]:
    """A temporary folder of SQLite files, until the block ends."""
    with tempfile.TemporaryDirectory(prefix="blacksmith-bench-") as folder:
        yield SQLite(Path(folder))


BOTH = (postgres, sqlite)


def opened(url: str) -> Store:
    """Open the store at `url`; the caller closes it."""
    return open_store(url)


def fill(url: str, events: int, *, payload: str, drained: bool = True, discarded: int = 0) -> None:
    """Fill an empty store with events and their jobs, by SQL instead of through the store.

    If `drained`, loads of 1000 have loaded all jobs, of which each discarded `discarded`.
    """
    with closing(opened(url)) as store:
        with store.database.writing() as conn:
            shared = {
                "at": datetime.now(UTC),
                "event_type": store.database.event_type(happened.path),
            }
            conn.execute(_EVENTS, shared | {"last": events, "payload": payload})
            for event, every in ((full, 1), (half, 2)):
                lane = {"destination": store.database.destination(event.path), "every": every}
                conn.execute(_JOBS, lane | {"last": events // every})
                if drained:
                    loads = {"last": events // every // BATCH, "at": shared["at"]}
                    conn.execute(_LOADS, lane | loads | {"discarded": discarded})
                    if discarded:
                        conn.execute(_OUTCOMES, lane | {"last": discarded})
        store.repair()  # moves the sequence past the written rows
        with store.database.engine.connect().execution_options(
            isolation_level="AUTOCOMMIT"
        ) as conn:
            postgres = conn.dialect.name == "postgresql"
            conn.exec_driver_sql("VACUUM ANALYZE" if postgres else "ANALYZE")


def _registered(url: str) -> str:
    with closing(open_store(url, upgrade=True)) as store:
        store.register(app)
    return url


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
