"""Listening, on every store: what generators yield is stored once, together with its cursor."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from blacksmith_dagster import (
    CDC,
    Blacksmith,
    Destination,
    Event,
    Listener,
    Message,
    Schedule,
    Source,
    Subscription,
)
from blacksmith_dagster.ingest import changes as changes_module
from blacksmith_dagster.ingest import listeners as listeners_module
from blacksmith_dagster.ingest.ingest import Ingester
from blacksmith_dagster.ingest.listeners import Listeners
from blacksmith_dagster.ingest.subscription import Messages
from blacksmith_dagster.pubsub import PubSub
from blacksmith_dagster.pubsub.interface import Received
from blacksmith_dagster.store import Store, open_store
from blacksmith_dagster.store.records import Cursor, ListenerStatus
from blacksmith_dagster.supervisor import Supervisor, open_supervisor
from tests.support.waiting import until

CHANGED = "shop/changed"
READER = f"cdc/{CHANGED}"
LOCK = f"listen/{CHANGED}"

Generate = Callable[[Listener], Iterator[Any]]


class Shop:
    """A source with one event, which the test generates, on a store with its locks."""

    def __init__(self, url: str) -> None:
        self.store: Store = open_store(url, upgrade=True)
        self.supervisor: Supervisor = open_supervisor(None, self.store.database)
        self.notified: set[str] = set()
        self.reported = 0
        self._started: list[Listeners] = []

    def listen(self, generate: Generate, holder: str = "the test") -> Listeners:
        """Start to listen to a generator."""
        shop = Source("shop")
        shop.event(CDC(), name="changed")(generate)
        shop.child("line")
        lake = Destination("lake", schedule=Schedule(realtime=True))
        lake.event(receives=shop.events["changed"], name="changes")(lambda _: None)
        app = Blacksmith(sources=[shop], destinations=[lake])
        self.store.register(app)

        def report(_: Any, number: int) -> None:
            self.reported += number

        listeners = Listeners(
            app,
            shop,
            store=self.store,
            supervisor=self.supervisor,
            pubsub=None,
            holder=holder,
            notify=self.notified.update,
            report=report,
        )
        listeners.start()
        self._started.append(listeners)
        return listeners

    @property
    def kept(self) -> list[str]:
        """The data of the stored events, in order."""
        return [event.payload for event in reversed(self.store.log.newest(CHANGED, limit=100_000))]

    @property
    def noted(self) -> ListenerStatus:
        """The listener's status in the store."""
        (status,) = self.store.log.listeners()
        return status

    def close(self) -> None:
        for listeners in self._started:
            listeners.stop()
        self.supervisor.close()
        self.store.close()


@pytest.fixture
def shop(store_url: str) -> Iterator[Shop]:
    with contextlib.closing(Shop(store_url)) as shop:
        yield shop


class Log:
    """A log that is read from the cursor on, as a database's is: lines of numbers."""

    def __init__(self, lines: int = 0) -> None:
        self.lines = lines
        self.closed = 0
        self.committed: list[Any] = []
        self.fail: Exception | None = None

    def __call__(self, listener: Listener) -> Iterator[Event[int]]:
        at = listener.cursor or 0
        try:
            while not listener.wait(0.005):
                self.committed.append(listener.committed)
                listener.lag = self.lines - at
                while at < self.lines:
                    at += 1
                    listener.cursor = at
                    yield Event(at)
                if self.fail:
                    raise self.fail
        finally:
            self.closed += 1


def numbers(to: int) -> list[str]:
    return [str(number) for number in range(1, to + 1)]


def test_what_is_yielded_is_kept_once_and_read_on_from_there(shop: Shop) -> None:
    log = Log(5000)
    first = shop.listen(log)
    until(lambda: len(shop.kept) == 5000)
    first.stop()
    assert log.closed == 1
    log.lines = 5003
    shop.listen(log)
    until(lambda: len(shop.kept) == 5003)
    assert shop.kept == numbers(5003)
    assert shop.store.log.cursor(READER) == "5003"
    assert shop.notified == {"lake/changes"}
    until(lambda: shop.reported == 5003)
    until(lambda: log.committed[-1] == 5003)
    committed = [cursor or 0 for cursor in log.committed]
    assert committed == sorted(committed)


def test_only_what_is_safe_is_reported_as_committed(shop: Shop) -> None:
    pairs: list[tuple[int, int]] = []

    def changes(listener: Listener) -> Iterator[Event[int]]:
        for number in range(1, 51):
            pairs.append((listener.committed or 0, len(shop.kept)))
            listener.cursor = number
            yield Event(number)
        until(lambda: listener.committed == 50)
        pairs.append((50, len(shop.kept)))
        listener.wait(60)

    shop.listen(changes)
    until(lambda: len(pairs) == 51)
    assert all(committed <= kept for committed, kept in pairs)


def test_a_generator_that_raises_goes_on_behind_what_was_committed(shop: Shop) -> None:
    log = Log(3)
    log.fail = ConnectionError("the log is away")
    shop.listen(log)
    until(lambda: log.closed == 2)
    assert shop.noted.error == "ConnectionError: the log is away"
    log.lines, log.fail = 5, None
    until(lambda: len(shop.kept) == 5)
    assert shop.kept == numbers(5)
    until(lambda: shop.noted.error is None)


def test_a_generator_that_returns_learns_what_to_do(shop: Shop) -> None:
    def changes(listener: Listener) -> Iterator[Event[int]]:
        listener.cursor = (listener.cursor or 0) + 1
        yield Event(listener.cursor)

    shop.listen(changes)
    until(lambda: len(shop.kept) >= 2)
    assert shop.kept[:2] == ["1", "2"]
    assert "a listener must run until `listener.stopping`" in (shop.noted.error or "")


def test_what_was_yielded_when_it_is_stopped_is_kept(shop: Shop) -> None:
    yielded: list[int] = []
    closed = threading.Event()

    def changes(listener: Listener) -> Iterator[Event[int]]:
        try:
            while True:  # it never checks whether to stop
                yielded.append(len(yielded) + 1)
                listener.cursor = yielded[-1]
                yield Event(yielded[-1])
        finally:
            closed.set()

    listeners = shop.listen(changes)
    until(lambda: len(yielded) > 5000)
    listeners.stop()
    assert closed.is_set()
    assert shop.kept == [str(number) for number in yielded]
    assert not shop.supervisor.status(LOCK).held


def test_a_generator_that_does_not_stop_is_left_behind(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes_module, "_GRACE", 0.2)
    hangs = threading.Event()

    def changes(listener: Listener) -> Iterator[Event[int]]:
        listener.cursor = 1
        yield Event(1)
        hangs.wait(60)

    listeners = shop.listen(changes)
    until(lambda: shop.kept == ["1"])
    listeners.stop()
    assert not shop.supervisor.status(LOCK).held
    hangs.set()


def test_a_message_that_the_store_rejects_blocks_no_other(shop: Shop) -> None:
    source = Source("shop")

    @source.event(Subscription("orders"))
    def changed(message: Message) -> Event[Any]:
        return Event(message.json(), parent=message.headers.get("parent"))

    app = Blacksmith(sources=[source], destinations=[])
    shop.store.register(app)
    strange = {"parent": "evt_0badcafe00000000002a"}
    sent = [Message(b"1"), Message(b"2", headers=strange), Message(b"3")]
    received = [
        Received(message, Cursor("orders", None if n == 0 else str(n), str(n + 1)))
        for n, message in enumerate(sent)
    ]
    broker = SimpleNamespace(
        consumer=lambda *_: SimpleNamespace(receive=lambda *_: received, acknowledge=lambda: None)
    )
    ingester = Ingester(app, changed, shop.store)
    assert Messages(changed, ingester, cast(PubSub, broker)).read(1.0) == 3
    assert [event.payload for event in shop.store.log.newest(changed.path)] == ["3", "1"]
    [rejected] = shop.store.quarantine.oldest(changed.path)
    assert "no event" in rejected.error
    assert shop.store.log.cursor("orders") == "3"


def test_a_change_whose_parent_is_unknown_blocks_no_other(shop: Shop) -> None:
    def changes(listener: Listener) -> Iterator[Event[Any]]:
        for n, parent in ((1, None), (2, "evt_0badcafe00000000002a"), (3, None)):
            listener.cursor = n
            yield Event(n, parent=parent)
        while not listener.stopping:
            listener.wait(0.05)

    loop = shop.listen(changes)
    until(lambda: shop.store.log.cursor(READER) == "3")
    loop.stop()
    assert shop.kept == ["1", "3"]
    [rejected] = shop.store.quarantine.oldest(CHANGED)
    assert "no event" in rejected.error


def test_what_cannot_be_kept_goes_to_quarantine_and_holds_up_nothing(shop: Shop) -> None:
    def changes(listener: Listener) -> Iterator[Event[Any]]:
        for number, event in enumerate(
            [
                Event({"n": 1}, key="one"),
                Event({"n": "\ud800"}),
                Event({"n": 3}, key="one"),
                Event({"n": {4, object()}}),
                Event({"n": 5}),
            ]
        ):
            if number >= (listener.cursor or 0):
                listener.cursor = number + 1
                yield event
        listener.wait(60)

    shop.listen(changes)
    until(lambda: shop.reported == 5)
    assert shop.kept == ['{"n":1}', '{"n":5}']
    assert shop.store.quarantine.sizes() == {CHANGED: 3}
    errors = {
        shop.store.quarantine.get(raw.id).body: raw.error
        for raw in shop.store.quarantine.oldest(CHANGED)
    }
    assert "the key 'one'" in errors.pop(b'{"n":3}')
    assert "cannot be written as JSON" in errors.pop(rb"{'n': '\ud800'}")
    (unwritable,) = errors.values()
    assert "cannot be written as JSON" in unwritable


def test_without_a_cursor_nothing_is_remembered(shop: Shop) -> None:
    def changes(listener: Listener) -> Iterator[Event[int]]:
        yield Event(1)
        yield Event(2)
        listener.wait(60)

    shop.listen(changes)
    until(lambda: shop.kept == ["1", "2"])
    assert shop.store.log.cursor(READER) is None


def test_a_cursor_without_an_event_is_kept(shop: Shop) -> None:
    def changes(listener: Listener) -> Iterator[list[Event[int]]]:
        listener.cursor = {"at": [1, 2]}
        yield []
        listener.wait(60)

    shop.listen(changes)
    until(lambda: shop.store.log.cursor(READER) == '{"at":[1,2]}')
    assert shop.kept == []
    assert shop.reported == 0


def test_one_listens_and_another_takes_over(shop: Shop) -> None:
    log = Log(10)
    first = shop.listen(log, "first")
    until(lambda: len(shop.kept) == 10)
    second = shop.listen(log, "second")
    assert first.holds_locks
    assert not second.holds_locks
    assert shop.supervisor.status(LOCK).holder == "first"
    first.stop()
    log.lines = 20
    until(lambda: len(shop.kept) == 20)
    assert shop.kept == numbers(20)
    assert second.holds_locks
    until(lambda: shop.store.log.listeners() and shop.noted.holder == "second")
    assert first.is_over
    assert not second.is_over


def test_who_reads_nothing_for_long_lets_another_try(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another host may reach what this one cannot."""
    monkeypatch.setattr(listeners_module._ListenLoop, "first_pause", 0.05)
    monkeypatch.setattr(listeners_module._ListenLoop, "longest_pause", 0.2)
    monkeypatch.setattr(listeners_module._ListenLoop, "give_back_after", 0.2)

    def cannot(listener: Listener) -> Iterator[Event[int]]:
        raise ConnectionError("no route to the log")
        yield Event(0)

    shop.listen(cannot, "first")
    until(lambda: shop.supervisor.status(LOCK).holder == "first")
    second = shop.listen(Log(3), "second")
    until(lambda: len(shop.kept) == 3)
    assert second.holds_locks


def test_who_finds_that_another_has_read_on_goes_on_from_there(shop: Shop) -> None:
    """As after a pause in which the lock was lost."""
    log = Log(3)
    shop.listen(log)
    until(lambda: len(shop.kept) == 3)
    shop.store.log.append([], cursors=[Cursor(READER, "3", "10")])
    log.lines = 12
    until(lambda: len(shop.kept) == 5)
    assert shop.kept == ["1", "2", "3", "11", "12"]


def test_it_is_noted_how_a_listener_stands(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners_module, "NOTE_INTERVAL", 0.05)

    def changes(listener: Listener) -> Iterator[Event[int]]:
        listener.lag, listener.unit = 700, "rows"
        listener.cursor = 1
        yield Event(1)
        listener.wait(60)

    listeners = shop.listen(changes)
    until(lambda: shop.store.log.listeners() and shop.noted.read_at)
    noted = shop.noted
    assert (noted.path, noted.holder, noted.lag, noted.unit) == (CHANGED, "the test", 700, "rows")
    assert noted.error is None
    assert noted.at
    assert noted.read_at
    assert noted.at >= noted.read_at
    (own,) = listeners.statuses
    assert (own.lag, own.unit) == (700, "rows")


def test_children_are_kept_with_their_event(shop: Shop) -> None:
    def changes(listener: Listener) -> Iterator[Event[int]]:
        line = Source("shop").child("line")
        listener.cursor = 1
        yield Event(1, children=[line.of("a"), line.of("b")])
        listener.wait(60)

    shop.listen(changes)
    until(lambda: shop.reported == 3)
    (parent,) = shop.store.log.newest(CHANGED)
    lines = shop.store.log.newest("shop/line")
    assert {line.parent for line in lines} == {parent.id}
