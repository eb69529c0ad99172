"""Events ingested in commits of several sizes, beside the same rows copied into bare tables."""

import multiprocessing
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from multiprocessing.synchronize import Barrier
from typing import TypeAlias

import psycopg

from benchmarks.measure import Effort, Figure, alternate, figure, timed
from benchmarks.pipeline import requests
from benchmarks.stores import Databases, measured_on, opened, postgres, sqlite
from blacksmith_dagster.store import open_store

COLUMNS = "seq, event_type, received_at, payload, key, context, version, sent_at, parent"
SHAPES = [(1, 1000, 0.40), (1, 200, None), (1, 50, None), (4, 200, None), (4, 50, None)]

Commit: TypeAlias = Callable[[], None]
Prepare: TypeAlias = Callable[[str, int], Commit]
Row: TypeAlias = tuple[object, ...]


@measured_on(postgres, sqlite)
def ingest(databases: Databases, effort: Effort) -> Iterator[Figure]:
    """The store's rate, beside the rate of COPY (on SQLite, of INSERT)."""
    for writers, commit, bound in SHAPES:
        with databases.new() as url:
            _make_bare_tables(url)

            measures = [
                partial(_rate, databases, prepare, url, writers, commit, effort.of(200_000))
                for prepare in (_into_store, _into_bare_tables)
            ]
            stored, bare = alternate(effort.rounds, *measures)
        what = f"ingest, {writers} writer{'s' if writers > 1 else ''}, commits of {commit}"
        required = databases.bound(bound)
        yield figure(
            f"{what}; {databases.name}", stored, "events/s", limits=bare, at_least=required
        )


def _rate(
    databases: Databases, prepare: Prepare, url: str, writers: int, commit: int, events: int
) -> float:
    """Events per second that processes commit in total, each over its own connection."""
    databases.settle()
    spawn = multiprocessing.get_context("spawn")
    together = spawn.Barrier(writers + 1)
    times = events // writers // commit
    processes = [
        spawn.Process(target=_write, args=(prepare, url, commit, times, together), daemon=True)
        for _ in range(writers)
    ]
    for process in processes:
        process.start()
    together.wait(timeout=60)
    seconds, _ = timed(lambda: together.wait(timeout=600))
    for process in processes:
        process.join()
    return times * commit * writers / seconds


def _write(prepare: Prepare, url: str, commit: int, times: int, together: Barrier) -> None:
    write = prepare(url, commit)
    write()  # the first one prepares statements and fills caches
    together.wait()
    for _ in range(times):
        write()
    together.wait()


def _into_store(url: str, commit: int) -> Commit:
    store, new = open_store(url), requests(commit)

    def write() -> None:
        store.log.append(new)

    return write


def _into_bare_tables(url: str, commit: int) -> Commit:
    """The limit: prepared rows, no index, no numbering."""
    new, now = [event for (event,) in requests(commit)], datetime.now(UTC).isoformat()
    events = [(seq, 1, now, event.payload, *[None] * 5) for seq, event in enumerate(new)]
    jobs = [(n, seq, None) for seq, event in enumerate(new) for n, _ in enumerate(event.jobs)]
    return (_insert if url.startswith("sqlite") else _copy)(url, events, jobs)


def _copy(url: str, events: Sequence[Row], jobs: Sequence[Row]) -> Commit:
    conn = psycopg.connect(url)
    ready = [
        (f"COPY bare_events ({COLUMNS}) FROM STDIN", _copy_text(events)),
        ("COPY bare_jobs FROM STDIN", _copy_text(jobs)),
    ]

    def write() -> None:
        with conn.cursor() as cursor:
            for statement, block in ready:
                with cursor.copy(statement) as copy:
                    copy.write(block)
        conn.commit()

    return write


def _copy_text(rows: Sequence[Row]) -> bytes:
    lines = ("\t".join("\\N" if v is None else str(v) for v in row) for row in rows)
    return "".join(f"{line}\n" for line in lines).encode()


def _insert(url: str, events: Sequence[Row], jobs: Sequence[Row]) -> Commit:
    conn = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None, timeout=60)
    conn.execute("PRAGMA synchronous = FULL")

    def write() -> None:
        conn.execute("BEGIN IMMEDIATE")
        conn.executemany("INSERT INTO bare_events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", events)
        conn.executemany("INSERT INTO bare_jobs VALUES (?, ?, ?)", jobs)
        conn.execute("COMMIT")

    return write


def _make_bare_tables(url: str) -> None:
    """The store's columns without its indexes."""
    with opened(url) as store, store.database.writing() as conn:
        for table in ("events", "jobs"):
            create = f"CREATE TABLE bare_{table} "
            like = f"(LIKE {table})" if conn.dialect.name == "postgresql" else ""
            conn.exec_driver_sql(create + (like or f"AS SELECT * FROM {table} WHERE 0"))
