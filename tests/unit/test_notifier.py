"""Notifications are published beside commits: coalesced, kept during an outage, never waited for."""

import logging
import threading
import time
from collections.abc import Collection, Iterator
from typing import Any, cast

import pytest

from blacksmith_dagster import Batch, Blacksmith, Destination, Schedule, Source
from blacksmith_dagster.errors import Unavailable
from blacksmith_dagster.pubsub import PubSub, Subscriber
from blacksmith_dagster.pubsub.notifier import Notifier
from tests.support.waiting import until

shop = Source("shop")
ordered = shop.accept("ordered")
mail = Destination("mail", schedule=Schedule(realtime=True))
lake = Destination("lake", schedule=Schedule(realtime=True))
THANKS, BILLS, LATER, ROWS = "mail/thanks", "mail/bills", "mail/later", "lake/rows"


@mail.event(receives=ordered)
def thanks(batch: Batch[Any]) -> None:
    """Realtime."""


@mail.event(receives=ordered)
def bills(batch: Batch[Any]) -> None:
    """Realtime."""


@mail.event(receives=ordered, schedule=Schedule(realtime=False))
def later(batch: Batch[Any]) -> None:
    """Left to the schedule."""


@lake.event(receives=ordered)
def rows(batch: Batch[Any]) -> None:
    """Realtime."""


app = Blacksmith(sources=[shop], destinations=[mail, lake])


class Broker:
    """A broker in this process: accepts messages, fails, or blocks, as the test sets it."""

    label = "a broker of the test's"

    def __init__(self) -> None:
        self.published: list[set[str]] = []
        self.tries = 0
        self.error: Exception | None = None
        self.open = threading.Event()
        self.open.set()
        self.asked = threading.Event()
        self.closed = False

    def publisher(self) -> "Broker":
        return self

    def subscriber(self, destination: str) -> Subscriber:
        raise NotImplementedError

    def publish(self, paths: Collection[str]) -> None:
        self.asked.set()
        assert self.open.wait(10)
        self.tries += 1
        if self.error is not None:
            raise self.error
        self.published.append(set(paths))

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def notifier(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Notifier]:
    monkeypatch.setattr("blacksmith_dagster.pubsub.notifier.RETRY_SECONDS", 0.01)
    notifier = Notifier(app, cast(PubSub, broker))
    yield notifier
    broker.open.set()
    notifier.close()


def test_published_at_once(broker: Broker, notifier: Notifier) -> None:
    notifier.notify([THANKS])
    until(lambda: broker.published == [{THANKS}])
    notifier.notify([THANKS, ROWS])
    until(lambda: broker.published == [{THANKS}, {THANKS, ROWS}])
    assert notifier.unpublished == 0


def test_only_realtime_events_are_published(broker: Broker, notifier: Notifier) -> None:
    notifier.notify([LATER, "elsewhere/unknown"])
    notifier.notify([])
    notifier.notify([LATER, BILLS])
    until(lambda: broker.published)
    notifier.close()
    assert broker.published == [{BILLS}]


def test_what_comes_while_a_message_is_on_its_way_goes_with_the_next(
    broker: Broker, notifier: Notifier
) -> None:
    broker.open.clear()
    notifier.notify([THANKS])
    until(broker.asked.is_set)
    for _ in range(1000):
        notifier.notify([THANKS])
        notifier.notify([BILLS, ROWS])
    assert broker.published == []  # whoever commits waits for no broker
    broker.open.set()
    until(lambda: len(broker.published) == 2)
    notifier.close()
    assert broker.published == [{THANKS}, {THANKS, BILLS, ROWS}]


@pytest.mark.parametrize(
    "error", [Unavailable("the broker is away"), RuntimeError("a bug")], ids=["outage", "bug"]
)
def test_an_outage_is_logged_once_and_what_is_pending_is_sent_after_it(
    broker: Broker,
    notifier: Notifier,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    caplog.set_level(logging.INFO)
    broker.error = error
    notifier.notify([THANKS])
    until(lambda: broker.tries >= 3)
    assert notifier.unpublished == 1  # it is late once, however often it was tried
    notifier.notify([THANKS, BILLS])
    until(lambda: notifier.unpublished == 3)
    (warning,) = caplog.records
    assert warning.levelno == logging.WARNING
    assert str(error) in warning.message
    assert (warning.exc_info is not None) == isinstance(error, RuntimeError)
    broker.error = None
    until(lambda: broker.published)
    assert broker.published == [{THANKS, BILLS}]
    until(lambda: len(caplog.records) == 2)
    assert broker.label in caplog.messages[1]
    assert "3 could not be published in time" in caplog.messages[1]
    notifier.notify([ROWS])
    until(lambda: broker.published == [{THANKS, BILLS}, {ROWS}])
    assert notifier.unpublished == 3


def test_each_outage_is_logged(
    broker: Broker, notifier: Notifier, caplog: pytest.LogCaptureFixture
) -> None:
    broker.error = Unavailable("away")
    notifier.notify([THANKS])
    until(lambda: caplog.records)
    broker.error = None
    until(lambda: len(broker.published) == 1)
    broker.error = Unavailable("away again")
    notifier.notify([THANKS])
    until(lambda: "away again" in caplog.text)
    broker.error = None
    until(lambda: len(caplog.records) == 4)


def test_close_sends_what_is_pending(broker: Broker, notifier: Notifier) -> None:
    broker.open.clear()
    notifier.notify([THANKS])
    until(broker.asked.is_set)
    notifier.notify([ROWS])
    closing = threading.Thread(target=notifier.close)
    closing.start()
    broker.open.set()
    closing.join(10)
    assert broker.published == [{THANKS}, {ROWS}]
    assert broker.closed


def test_close_does_not_wait_for_a_broker_that_is_away(
    broker: Broker, notifier: Notifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blacksmith_dagster.pubsub.notifier.RETRY_SECONDS", 60.0)
    broker.error = Unavailable("away")
    notifier.notify([THANKS])
    until(lambda: broker.tries)
    began = time.monotonic()
    notifier.close()
    assert time.monotonic() - began < 30
    assert broker.closed


def test_close_does_not_wait_for_a_broker_that_hangs(
    broker: Broker, notifier: Notifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blacksmith_dagster.pubsub.notifier._CLOSE_SECONDS", 0.1)
    broker.open.clear()
    notifier.notify([THANKS])
    until(broker.asked.is_set)
    began = time.monotonic()
    notifier.close()
    assert time.monotonic() - began >= 0.1
    assert broker.published == []  # it still hangs
