"""A listener for tests of CDC, which keeps events and their cursor as a store does."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import psycopg

from blacksmith_dagster import Event, Listener, SourceEvent
from blacksmith_dagster.errors import Unavailable
from blacksmith_dagster.sources import Change
from tests.support.waiting import until

Changes = SourceEvent[Change, Listener, Iterable[Event[Change]]]

RESPONDS_SOON = "?options=-c%20wal_sender_timeout%3D2s"
"""Makes the server request a report every second instead of every half minute."""

PATIENCE = 60.0


class Ledger:
    """Keeps the data of events and their cursor in one step, as a store does.

    - `held`: while it is set, yielded events are read but not kept.
    - `stop_after`: stop abruptly once this many events are kept; later ones are lost.
    """

    def __init__(self) -> None:
        self.data: list[Any] = []
        self.cursor: str = "null"
        self.held = threading.Event()
        self.stop_after: int | None = None
        self.error: BaseException | None = None
        self.listener = Listener()

    @contextmanager
    def listening(self, event: Changes, *, retried: bool = False) -> Iterator[None]:
        """Listen for `event` in a thread; if `retried`, again after each `Unavailable`."""
        stop = threading.Event()

        def listen() -> None:
            while True:
                try:
                    return self._keep_events(event, stop)
                except Unavailable as error:
                    if not retried:
                        self.error = error
                        return None
                    stop.wait(0.1)
                except BaseException as error:  # noqa: BLE001 - raised by `wait`
                    self.error = error
                    return None

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(PATIENCE)
            assert not thread.is_alive()

    def listen(self, event: Changes) -> BaseException | None:
        """Listen until an error ends it; returns the error."""
        self.error = None
        with self.listening(event):
            self.wait(lambda: self.error is not None)
        return self.error

    def wait(self, condition: Callable[[], Any]) -> None:
        """Wait for a condition; raises the error that ended the listening."""

        def is_true() -> Any:
            if (value := condition()) or self.error is None:
                return value
            raise self.error

        until(is_true, PATIENCE, lambda: f"{len(self.data)} were kept")

    def wait_for(self, number: int) -> Sequence[Any]:
        """The first `number` events, once they are kept; there may not be more."""
        self.wait(lambda: len(self.data) >= number)
        assert len(self.data) == number, self.data[number:]
        return self.data

    def _keep_events(self, event: Changes, stop: threading.Event) -> None:
        listener = self.listener = Listener(msgspec.json.decode(self.cursor), stop)
        pending: list[Any] = []
        events = iter(event(listener))
        try:
            for item in events:
                pending += [item.data] if isinstance(item, Event) else []
                cursor = msgspec.json.encode(listener.cursor).decode()
                if self.held.is_set():
                    continue
                self.data += pending
                self.cursor, pending = cursor, []
                listener.committed = msgspec.json.decode(cursor)
                if self.stop_after is not None and len(self.data) >= self.stop_after:
                    return
        finally:
            events.close()  # type: ignore[attr-defined]


def shown(changes: Iterable[Change]) -> list[tuple[str, str, Any, Any]]:
    """The parts that a test compares: operation, table, old, new."""
    return [(change.operation, change.table, change.old, change.new) for change in changes]


def run(url: str, *statements: str) -> None:
    """Run each statement in its own transaction."""
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def ask(url: str, query: str) -> Any:
    """The first column of a query's only row."""
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(query).fetchone()
        assert row is not None
        return row[0]


def confirmed(url: str) -> int:
    """The confirmed position in the log of the database's only slot, as a number."""
    return int(ask(url, "SELECT confirmed_flush_lsn - '0/0' FROM pg_replication_slots"))


def wait_until_free(url: str) -> None:
    """Wait until no session streams from a slot of this database."""
    query = (
        "SELECT count(*) FROM pg_replication_slots WHERE active AND database = current_database()"
    )
    until(lambda: ask(url, query) == 0, PATIENCE)
