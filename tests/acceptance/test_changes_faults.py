"""Changes of a database under faults, with a real store: each committed change arrives once."""

import contextlib
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psycopg
import pytest

from blacksmith_dagster.sources import Change
from blacksmith_dagster.store import Store, open_store
from tests.support import randomness
from tests.support.processes.changing_main import URL, blacksmith, counted
from tests.support.processes.loading_process import LoaderProcess
from tests.support.services.postgres import PostgresServer


class Writer(threading.Thread):
    """Writes rows that are counted, some in the same transaction, until it is stopped.

    `accepted`: how many there are, as far as it knows; a commit without a response may have succeeded.
    """

    def __init__(self, url: str, randomly: random.Random) -> None:
        super().__init__(daemon=True)
        self._url = url
        self._randomly = randomly
        self._ending = threading.Event()
        self.accepted = 0

    def run(self) -> None:
        while not self._ending.is_set():
            with contextlib.suppress(psycopg.OperationalError), psycopg.connect(self._url) as conn:
                self.accepted = _last(conn)
                while not self._ending.is_set():
                    number = self._randomly.choice([1, 1, 1, 10, 1_000])
                    conn.execute(
                        "INSERT INTO counted SELECT generate_series(%s::int, %s::int)",
                        [self.accepted + 1, self.accepted + number],
                    )
                    conn.commit()
                    self.accepted += number
                    self._ending.wait(0.05)

    def end(self) -> int:
        """Returns how many rows there are."""
        self._ending.set()
        self.join()
        with psycopg.connect(self._url) as conn:
            return _last(conn)


def _last(conn: psycopg.Connection) -> int:
    row = conn.execute("SELECT coalesce(max(id), 0) FROM counted").fetchone()
    assert row is not None
    return int(row[0])


@pytest.fixture
def randomly() -> random.Random:
    return randomness.seeded()


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with contextlib.closing(open_store(store_url, upgrade=True)) as opened:
        opened.register(blacksmith)
        yield opened


def newest(store: Store) -> int:
    """The last row; the mark at a snapshot's end may follow it."""
    changes = [
        msgspec.json.decode(event.payload, type=Change)
        for event in store.log.newest(counted.path, 2)
    ]
    return max((change.new["id"] for change in changes if change.new is not None), default=0)


def snapshot_is_whole(store: Store) -> bool:
    """Whether changes are read by now."""
    return '"change"' in (store.log.cursor(f"cdc/{counted.path}") or "")


def numbers(store: Store) -> list[int]:
    """The rows of the changes in the store, in the order of their commits.

    Rows of an interrupted snapshot do not count: the snapshot was repeated, at another LSN.
    """
    changes = [
        msgspec.json.decode(event.payload, type=Change)
        for event in reversed(store.log.newest(counted.path, 1_000_000))
    ]
    whole = {change.lsn for change in changes if change.operation == "snapshot_completed"}
    return [
        change.new["id"]
        for change in changes
        if change.new is not None and (change.operation == "insert" or change.lsn in whole)
    ]


@pytest.mark.parametrize("killed", ["listener", "database", "both"])
def test_database_restarted_under_cdc(
    killed: str,
    durable_postgres: PostgresServer,
    store: Store,
    store_url: str,
    tmp_path: Path,
    randomly: random.Random,
) -> None:
    url = durable_postgres.create_database()
    with psycopg.connect(url) as conn:
        conn.execute("CREATE TABLE counted (id int PRIMARY KEY)")
        conn.execute("INSERT INTO counted SELECT generate_series(1, 100)")
    writer = Writer(url, randomly)
    env = {URL: url}
    main = "tests.support.processes.changing_main"
    with LoaderProcess(store_url, tmp_path, "", main=main, env=env) as process:
        writer.start()
        wanted = 0
        for turn in range(3):
            if turn:  # the first may interrupt the snapshot
                process.until(lambda: snapshot_is_whole(store))
            wanted = max(writer.accepted, wanted) + randomly.randint(1, 2_000)
            process.until(lambda: newest(store) >= wanted)  # noqa: B023
            if killed != "database":
                process.kill()
            if killed != "listener":
                randomly.choice([durable_postgres.kill, durable_postgres.stop])()
                durable_postgres.start()
            process.start_again_if_ended()
        last = writer.end()
        process.until(lambda: newest(store) == last)
        assert process.stop() == 0, process.log
    assert numbers(store) == list(range(1, last + 1))
