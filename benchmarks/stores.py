"""Durable stores to measure on, and a log written past the store, to fill it quickly."""

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

from benchmarks.pipeline import app, each, half, happened
from blacksmith_dagster.store import open_store
from blacksmith_dagster.store.sql import SQLStore
from blacksmith_dagster.store.tables import DISCARDED, DONE, Instant
from tests.services.postgres import PostgresServer

BATCH = 1000


class Databases(Protocol):
    """Where stores are made. `name` is the database's, with its version."""

    name: str

    def create(self) -> str:
        """Make an empty store in which the application is registered; returns its URL."""
        ...

    def drop(self, url: str) -> None:
        """Remove a store."""
        ...

    def settle(self) -> None:
        """Have done now what is put off, so that the next measure does not pay for the last."""
        ...


class Postgres:
    """A server of our own, with PostgreSQL's own settings for fsync and commits."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        with psycopg.connect(server.url) as conn:
            shown = [
                conn.execute(f"SHOW {setting}").fetchone()[0]
                for setting in ("server_version", "fsync", "synchronous_commit")
            ]
        if shown[1:] != ["on", "on"]:
            raise RuntimeError(
                f"the server is not durable: fsync, synchronous_commit = {shown[1:]}"
            )
        self.name = f"PostgreSQL {shown[0].split()[0]}"

    def create(self) -> str:
        return _registered(self._server.create_database())

    def drop(self, url: str) -> None:
        self._server.drop_database(url)

    def settle(self) -> None:
        with psycopg.connect(self._server.url, autocommit=True) as conn:
            conn.execute("CHECKPOINT")


class SQLite:
    """Files, each in a folder of its own."""

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
    """A durable server that lives as long as the block."""
    server = PostgresServer(durable=True)
    try:
        server.start()
        yield Postgres(server)
    finally:
        server.close()


@contextmanager
def sqlite() -> Iterator[Databases]:
    """A temporary folder that lives as long as the block."""
    with tempfile.TemporaryDirectory(prefix="blacksmith-bench-") as folder:
        yield SQLite(Path(folder))


BOTH = (postgres, sqlite)


def opened(url: str) -> SQLStore:
    """The store at `url`, which the caller closes."""
    store = open_store(url)
    assert isinstance(store, SQLStore)
    return store


def fill(url: str, events: int, *, payload: str, drained: bool = True, discarded: int = 0) -> None:
    """Fill an empty store with events and their jobs.

    If `drained`, loads of 1000 have loaded all of them, and discarded some of each load.
    """
    with closing(opened(url)) as store:
        with store.writing() as conn:
            shared = {"at": datetime.now(UTC), "event_type": store._event_type(happened.path)}
            conn.execute(_EVENTS, shared | {"last": events, "payload": payload})
            for event, every in ((each, 1), (half, 2)):
                of = {"destination": store._destination(event.path), "every": every}
                conn.execute(_JOBS, of | {"last": events // every})
                if drained:
                    loads = {"last": events // every // BATCH, "at": shared["at"]}
                    conn.execute(_LOADS, of | loads | {"discarded": discarded})
                    if discarded:
                        conn.execute(_OUTCOMES, of | {"last": discarded})
        store.repair()  # moves the sequence past what was written
        with store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
            postgres = conn.dialect.name == "postgresql"
            conn.exec_driver_sql("VACUUM ANALYZE" if postgres else "ANALYZE")


def _registered(url: str) -> str:
    with closing(open_store(url, upgrade=True)) as store:
        store.register(app)
    return url


def _numbered(insert: str) -> TextClause:
    """An INSERT of rows made of `n.i`, which counts from 1 to the parameter `last`."""
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
    f" SELECT :destination, 0, {DONE}, 0, 1, (i - 1) * {BATCH} * :every + 1, i * {BATCH} * :every,"
    f" {BATCH}, :discarded, i * {BATCH} * :every, i * {BATCH}, :at, :at FROM n"
).bindparams(_AT)
_OUTCOMES = _numbered(
    "INSERT INTO outcomes (load, seq, destination, state, error)"
    f" SELECT id, seq_to - i * :every, destination, {DISCARDED}, 'no such thing'"
    " FROM loads, n WHERE destination = :destination"
)
