"""Row changes of a PostgreSQL table into a PostgreSQL store, beside the same stream without a store."""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from typing import Any

import psycopg

from benchmarks.measure import Effort, Figure, alternate, figure, timed
from benchmarks.pipeline import application
from benchmarks.stores import Databases, measured_on, opened, postgres
from blacksmith_dagster import Blacksmith, Listener
from blacksmith_dagster.ingest.changes import Changes
from blacksmith_dagster.ingest.ingest import Ingester
from blacksmith_dagster.sources import PostgresSource
from tests.support.services import Unavailable
from tests.support.services.postgres import PostgresServer

SLOT = "blacksmith_bench"

TABLE = """CREATE TABLE orders (
    id bigint PRIMARY KEY, customer int NOT NULL, state text NOT NULL, price numeric(10, 2),
    paid boolean, placed_at timestamptz NOT NULL, items jsonb, note text
)"""
WRITE = """DO $$ BEGIN
    FOR n IN 0..{rows} / 100 - 1 LOOP
        INSERT INTO orders SELECT n * 100 + i, i, 'placed', 18.99, false, now(),
            '[{{"sku": "G-32", "quantity": 2}}]', repeat('x', 400) FROM generate_series(1, 100) i;
        COMMIT;
    END LOOP;
END $$"""


@measured_on(postgres)
def cdc(databases: Databases, effort: Effort) -> Iterator[Figure]:
    """Changes a second; transactions of 100 rows, written before they are read. Two servers."""
    rows = effort.of(100_000)
    with closing(PostgresServer(durable=True)) as server:
        server.start()
        url = server.create_database()
        _run(url, TABLE, f"CREATE PUBLICATION {SLOT} FOR TABLE orders")

        def rate(read: Callable[[], None]) -> float:
            _run(
                url,
                f"SELECT pg_drop_replication_slot('{SLOT}') FROM pg_replication_slots",
                "TRUNCATE orders",
                f"SELECT pg_create_logical_replication_slot('{SLOT}', 'pgoutput')",
                WRITE.format(rows=rows),
                "CHECKPOINT",
            )
            databases.settle()
            seconds, _ = timed(read)
            _wait_until_free(url)
            return rows / seconds

        def into_store() -> float:
            with databases.new() as store_url:
                return rate(lambda: _store(url, store_url, rows))

        stored, decoded, received = alternate(
            effort.rounds,
            into_store,
            lambda: rate(lambda: _decode(url, rows)),
            lambda: rate(lambda: _receive(url)),
        )
    what = f"row changes into the store; {databases.name}"
    yield figure(what, stored, "changes/s", at_least=15_000)
    yield figure("the same, beside only decoding", stored, "changes/s", limits=decoded)
    yield figure("decoding, beside pg_recvlogical", decoded, "changes/s", limits=received)


def _pipeline(url: str) -> tuple[Blacksmith, Any]:
    source = PostgresSource("bench", url=url)
    changed = source.changes("changed", tables=["orders"], slot=SLOT)
    return application(source, [changed]), changed


def _store(url: str, store_url: str, rows: int) -> None:
    app, changed = _pipeline(url)
    with opened(store_url) as store:
        store.register(app)
        with closing(Changes(changed, Ingester(app, changed, store))) as changes:
            stored = 0
            while stored < rows:
                stored += changes.read(1.0) or 0


def _decode(url: str, rows: int) -> None:
    _, changed = _pipeline(url)
    with closing(changed(Listener())) as events:
        next(events)  # the cursor where the slot begins
        for _ in islice(events, rows):
            pass


def _receive(url: str) -> None:
    """The limit: PostgreSQL's own receiver, which writes to /dev/null."""
    program = shutil.which("pg_recvlogical")
    if program is None:
        raise Unavailable("pg_recvlogical", "not found; run `apt-get install postgresql-client`")
    with psycopg.connect(url) as connection:
        (end,) = connection.execute("SELECT pg_current_wal_flush_lsn()").fetchall()[0]
    options = {"proto_version": "1", "publication_names": SLOT}
    subprocess.run(
        [program, "-d", url, "--slot", SLOT, "--start", "--endpos", end, "-f", "/dev/null"]
        + [part for name, value in options.items() for part in ("-o", f"{name}={value}")],
        check=True,
        timeout=600,
    )


def _run(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def _wait_until_free(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        while connection.execute("SELECT FROM pg_replication_slots WHERE active").rowcount:
            time.sleep(0.01)
