"""Messages under faults, with real brokers, a real store and real processes.

The oracle: messages sent = events + requests in quarantine, each once.
"""

import contextlib
import itertools
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import Consumer, KafkaException, Producer
from confluent_kafka.admin import NewPartitions
from sqlalchemy import func, select

from blacksmith_dagster.ingest.ingest import retry_quarantined
from blacksmith_dagster.store import Store, open_store
from blacksmith_dagster.store.tables import events
from tests.support import randomness
from tests.support.consuming import Feed, KafkaFeed, NATSFeed, RabbitMQFeed, numbered
from tests.support.processes.listening_main import (
    DIES,
    FIXED,
    KEY,
    SUBSCRIPTION,
    TOPIC,
    URL,
    blacksmith,
    placed,
)
from tests.support.processes.loading_process import LoaderProcess
from tests.support.services.kafka import KafkaServer

AHEAD = 5_000  # messages, so that a slow machine's backlog does not grow all the time
GIVEN_UP = 90.0  # seconds; PostgreSQL ends a transaction that has been idle for a minute
FEEDS = {"kafka": KafkaFeed, "nats": NATSFeed, "rabbitmq": RabbitMQFeed}


class Orders:
    """A topic, a store, and the processes that listen to the topic for the store."""

    def __init__(self, feed: Feed, store_url: str, folder: Path) -> None:
        self.feed = feed
        self.folder = folder
        self.sent: list[bytes] = []
        self.store: Store = open_store(store_url, upgrade=True)
        self.store.register(blacksmith)
        self._url = store_url
        self._processes: list[LoaderProcess] = []
        self.feed.make()

    def listen(self, dies: str | None = None) -> LoaderProcess:
        """Start a process that listens, and may be made to die."""
        dying = self.folder / "dies"
        if dies:
            dying.write_text(dies)
        env = {
            URL: self.feed.server.urls("notifications")[0],
            TOPIC: self.feed.topic,
            SUBSCRIPTION: self.feed.subscription,
            DIES: str(dying),
        }
        main = "tests.support.processes.listening_main"
        process = LoaderProcess(self._url, self.folder, "", main=main, env=env)
        self._processes.append(process)
        return process

    def send(self, *bodies: bytes) -> None:
        ids = [f"{len(self.sent) + number}" for number in range(len(bodies))]
        self.feed.send(*bodies, ids=ids)
        self.sent += bodies

    @property
    def kept(self) -> list[bytes]:
        """The bodies of the stored events."""
        events = self.store.log.newest(placed.path, 1_000_000)
        return [bytes.fromhex(msgspec.json.decode(event.payload)) for event in reversed(events)]

    def stored(self) -> int:
        """The number of stored events."""
        with self.store.database.reading() as conn:
            return int(conn.execute(select(func.count()).select_from(events)).scalar_one())

    @property
    def quarantined(self) -> list[bytes]:
        """The bodies in quarantine."""
        quarantined = self.store.quarantine.oldest(placed.path, 1_000_000)
        return [self.store.quarantine.get(raw.id).body for raw in quarantined]

    def left(self) -> int | None:
        """How many messages the broker counts as not acknowledged, as soon as it can say."""
        with contextlib.suppress(KafkaException):  # its group coordinator has just started
            return self.feed.left()
        return None

    def judge(self, process: LoaderProcess, sent: list[bytes] | None = None) -> None:
        """Apply the oracle, once all messages have arrived and no more follow."""
        wanted = self.sent if sent is None else sent
        process.until(lambda: process.log.count("ready") == process.starts)
        process.until(lambda: self.stored() + len(self.quarantined) >= len(wanted))
        assert process.stop() == 0, process.log
        assert Counter(self.kept + self.quarantined) == Counter(wanted)

    def close(self) -> None:
        for process in self._processes:
            process.resume()
            process.kill()
        self.store.close()


@pytest.fixture(params=list(FEEDS))
def feed(request: pytest.FixtureRequest) -> Feed:
    server = request.getfixturevalue(request.param)
    name = f"{request.node.originalname[5:]}-{os.getpid()}-{random.randrange(10**6)}"
    feed: Feed = FEEDS[request.param](server, name.replace("_", "-"))
    return feed


@pytest.fixture
def orders(feed: Feed, store_url: str, tmp_path: Path) -> Iterator[Orders]:
    with contextlib.closing(Orders(feed, store_url, tmp_path)) as orders:
        yield orders


@pytest.fixture
def orders_on_postgres(feed: Feed, postgres_url: str, tmp_path: Path) -> Iterator[Orders]:
    with contextlib.closing(Orders(feed, postgres_url, tmp_path)) as orders:
        yield orders


@pytest.fixture
def randomly() -> random.Random:
    return randomness.seeded()


def test_listener_killed_after_read(orders: Orders) -> None:
    orders.send(*numbered(300))
    first = orders.listen(dies="read")
    assert first.process.wait(60) == -signal.SIGKILL, first.log
    assert len(orders.kept) <= 150
    first.until(orders.left)
    first.start_again_if_ended()
    orders.send(b"behind what comes again")
    orders.judge(first)
    first.until(lambda: orders.left() == 0)


def test_listener_killed_after_commit_before_ack(orders: Orders) -> None:
    orders.send(*numbered(300))
    first = orders.listen(dies="commit")
    assert first.process.wait(60) == -signal.SIGKILL, first.log
    assert orders.kept
    first.until(lambda: orders.left() == 300)  # the broker counts all as unread
    first.start_again_if_ended()
    orders.send(b"behind what comes again")
    orders.judge(first)
    first.until(lambda: orders.left() == 0)


@pytest.mark.slow
def test_broker_restarted(orders_on_postgres: Orders, randomly: random.Random) -> None:
    orders = orders_on_postgres
    server = orders.feed.server
    process = orders.listen()
    for _ in range(2):
        orders.send(*numbered(randomly.randint(100, 3000), len(orders.sent)))
        until = randomly.randint(1, len(orders.sent))
        process.until(lambda: orders.stored() >= until)  # noqa: B023
        randomly.choice([server.kill, server.stop])()
        server.start()
    orders.send(*numbered(100, len(orders.sent)))
    orders.judge(process)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("feed", ["kafka"], indirect=True)
def test_rebalance_under_load(
    orders_on_postgres: Orders, kafka: KafkaServer, randomly: random.Random
) -> None:
    """Two listeners of one group: one is killed, paused or stopped repeatedly, a stranger joins and
    leaves the group, and the topic gets more partitions."""
    orders = orders_on_postgres
    feed = orders.feed
    assert isinstance(feed, KafkaFeed)
    admin = kafka.admin()
    listening = [orders.listen(), orders.listen()]
    ending = threading.Event()
    producer = Producer(kafka._settings() | {"topic.metadata.refresh.interval.ms": 500})

    def delivered(error: object, message: Any) -> None:
        if error is None:
            orders.sent.append(message.value())

    def send() -> None:
        numbers = itertools.count()
        while not ending.wait(0.05):
            if len(orders.sent) > orders.stored() + AHEAD:
                continue
            for number in itertools.islice(numbers, randomly.randint(1, 200)):
                to = number % feed.partitions
                body = b"%d" % number
                with contextlib.suppress(KafkaException):  # it sees new partitions a little later
                    producer.produce(feed.topic, body, partition=to, on_delivery=delivered)
            producer.flush(30)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        settings = kafka._settings() | {
            "group.id": feed.subscription,
            "auto.offset.reset": "latest",
        }
        for turn in range(6):
            wanted = len(orders.sent) + 500
            listening[0].until(lambda: orders.stored() >= wanted)  # noqa: B023
            stranger = Consumer(settings)
            stranger.subscribe([feed.topic])
            stranger.poll(0.5)
            listener = listening[turn % 2]
            fault = randomly.choice(["kill", "pause", "stop"])
            print(f"turn {turn}: {fault}")
            if fault == "pause":
                listener.pause(orders.store)
                wanted = len(orders.sent) + 500
                # Paused during a commit, it blocks the other until its transaction is ended.
                listener.until(lambda: orders.stored() >= wanted, GIVEN_UP)  # noqa: B023
                listener.resume()
            else:
                listener.kill() if fault == "kill" else listener.stop()
                listening[turn % 2] = orders.listen()
            stranger.close()
            if turn == 2:
                created = admin.create_partitions([NewPartitions(feed.topic, 3)])
                created[feed.topic].result(10)
                listener.until(
                    lambda: len(admin.list_topics(feed.topic).topics[feed.topic].partitions) == 3
                )
                feed.partitions = 3
    finally:
        ending.set()
        sender.join()
    listening[0].until(lambda: orders.stored() >= len(orders.sent))
    assert listening[1].stop() == 0, listening[1].log
    orders.judge(listening[0])


def test_same_message_hundred_times(orders_on_postgres: Orders) -> None:
    """By the key that its function sets, or by the id that its sender sets, if it has one."""
    orders = orders_on_postgres
    process = orders.listen()
    for number in range(100):
        ids = [f"id-{number}"]
        orders.feed.send(b"again", headers={KEY: "one"}, ids=ids)
    if not isinstance(orders.feed, KafkaFeed):  # Kafka has no ids
        for _ in range(100):
            orders.feed.send(b"the same", ids=["the same"])
        orders.sent += [b"the same"]
    orders.send(b"last")
    orders.judge(process, [*orders.sent, b"again"])


def test_poison_message_is_quarantined(orders: Orders, monkeypatch: pytest.MonkeyPatch) -> None:
    process = orders.listen()
    orders.send(*numbered(10), b"poison", *numbered(10, 10), b"poison too", *numbered(10, 20))
    orders.judge(process)
    assert len(orders.kept) == 30
    assert sorted(orders.quarantined) == [b"poison", b"poison too"]
    monkeypatch.setenv(FIXED, "yes")
    for raw in orders.store.quarantine.oldest(placed.path):
        assert raw.error == "ValueError: this is poison"
        assert orders.store.quarantine.get(raw.id).headers[":place"]
        assert len(retry_quarantined(blacksmith, orders.store, raw.id)) == 1
    assert orders.quarantined == []
    assert Counter(orders.kept) == Counter(orders.sent)


def test_binary_body(orders: Orders, randomly: random.Random) -> None:
    process = orders.listen()
    orders.send(b"", b"\0", b"\xff\xfe", bytes(range(256)), randomly.randbytes(100_000))
    orders.send(b"poison\0\xff" + randomly.randbytes(1000))
    orders.judge(process)
    assert orders.quarantined == orders.sent[-1:]
