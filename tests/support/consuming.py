"""Helpers for tests of consumers: feeds that send messages to a broker, and what a store would keep."""

import contextlib
import sys
import time
from collections.abc import Sequence
from typing import Any, Protocol

import pika
from confluent_kafka import ConsumerGroupTopicPartitions, Producer, TopicPartition
from confluent_kafka.admin import NewTopic, OffsetSpec

from blacksmith_dagster.errors import Unavailable
from blacksmith_dagster.pubsub import Consumer, PubSub, Received, open_pubsub
from tests.support.notifying import SOON
from tests.support.services.broker import Broker
from tests.support.services.kafka import KafkaServer
from tests.support.services.nats import NATSServer
from tests.support.services.rabbitmq import RabbitMQServer
from tests.support.waiting import until

VARIABLE = "ORDERS_URL"
SENT_AT = 1_700_000_000


class Kept:
    """What a store would keep: bodies, once per message id, and each reader's cursor."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.cursors: dict[str, str] = {}
        self._ids: set[str] = set()

    def keep(self, received: Sequence[Received]) -> None:
        """Commit messages; fails if a cursor does not continue the reader's last one."""
        for message, cursor in received:
            if cursor is not None:
                assert self.cursors.get(cursor.reader) == cursor.before
                self.cursors[cursor.reader] = cursor.after
            if message.id is None or message.id not in self._ids:
                self.bodies.append(message.body)
            if message.id is not None:
                self._ids.add(message.id)


class Feed(Protocol):
    """A topic of a broker, and a client that sends to it."""

    topic: str
    """The topic that a subscription names."""
    subscription: str
    """The subscription's name."""

    @property
    def server(self) -> Broker:
        """The broker that keeps the topic."""
        ...

    def make(self) -> None:
        """Create the topic, and whatever keeps its messages until they are read."""
        ...

    def send(
        self,
        *bodies: bytes,
        headers: dict[str, Any] | None = None,
        ids: Sequence[str] | None = None,
    ) -> None:
        """Send messages; returns once the broker has them. Without `ids`, the ids are their numbers."""
        ...

    def left(self) -> int:
        """How many messages the broker counts as unacknowledged while no consumer is connected."""
        ...

    def missing(self) -> str:
        """The part of a subscription that an error names as missing when `make` was not called."""
        ...


class KafkaFeed:
    """A topic with one partition."""

    def __init__(self, server: KafkaServer, name: str) -> None:
        self.server = server
        self.topic, self.subscription = name, f"{name}-night"
        self.partitions = 1

    def make(self) -> None:
        admin = self.server.admin()

        def created() -> bool:
            topic = NewTopic(self.topic, self.partitions)
            error = admin.create_topics([topic])[self.topic].exception(10)
            # Only two errors pass: a topic of this name is still being deleted, or the broker has
            # just started again and its controller has not admitted it yet.
            passing = ("being deleted", "currently fenced")
            assert error is None or any(text in str(error) for text in passing), error
            return error is None

        until(created)
        until(lambda: self.topic in admin.list_topics(timeout=10).topics)

    def send(
        self,
        *bodies: bytes | None,
        headers: dict[str, Any] | None = None,
        ids: Sequence[str] | None = None,
        key: bytes | None = b"key",
        partition: int = 0,
    ) -> None:
        producer = Producer(self.server._settings())
        for body in bodies:
            producer.produce(
                self.topic, body, key, partition, timestamp=1000 * SENT_AT, headers=headers
            )
            producer.poll(0)
        assert producer.flush(10) == 0

    def delete(self) -> None:
        """Delete the topic."""
        self.server.delete(self.topic)
        until(lambda: self.topic not in self.server.admin().list_topics(timeout=10).topics)

    def left(self) -> int:
        admin = self.server.admin()
        group = ConsumerGroupTopicPartitions(self.subscription)
        info = admin.list_consumer_group_offsets([group])[self.subscription].result(10)
        committed = {partition.partition: partition.offset for partition in info.topic_partitions}
        parts = [TopicPartition(self.topic, n) for n in range(self.partitions)]
        ends = admin.list_offsets(dict.fromkeys(parts, OffsetSpec.latest()))
        return sum(
            end.result(10).offset - max(0, committed.get(part.partition, 0))
            for part, end in ends.items()
        )

    def missing(self) -> str:
        return self.topic


class NATSFeed:
    """A stream with the subjects below its name."""

    def __init__(self, server: NATSServer, name: str, **config: Any) -> None:
        self.server = server
        self.stream = name
        self.topic, self.subscription = f"{name}.>", f"{name}-night"
        self._config = config

    def make(self) -> None:
        self.server.using(
            lambda client: client.jetstream().add_stream(
                name=self.stream, subjects=[self.topic], **self._config
            )
        )

    def send(
        self,
        *bodies: bytes,
        headers: dict[str, Any] | None = None,
        ids: Sequence[str] | None = None,
        below: str = "a",
    ) -> None:
        async def send(client: Any) -> None:
            for number, body in enumerate(bodies):
                id_header = {"Nats-Msg-Id": ids[number]} if ids else {}
                await client.jetstream().publish(
                    f"{self.stream}.{below}", body, headers=(headers or {}) | id_header
                )

        self.server.using(send)

    def delete(self) -> None:
        """Delete the stream."""
        self.server.delete(self.stream)

    def left(self) -> int:
        async def left(client: Any) -> int:
            info = await client.jetstream().consumer_info(self.stream, self.subscription)
            return int(info.num_pending + info.num_ack_pending)

        return self.server.using(left)

    def missing(self) -> str:
        return self.topic

    def consumers(self) -> list[str]:
        """The names of the stream's consumers."""
        info = self.server.using(lambda client: client.jetstream().consumers_info(self.stream))
        return [consumer.name for consumer in info]

    def messages(self) -> int:
        """How many messages the stream holds."""
        info = self.server.using(lambda client: client.jetstream().stream_info(self.stream))
        return int(info.state.messages)


class RabbitMQFeed:
    """A queue that is bound to the topic's pattern on amq.topic."""

    def __init__(self, server: RabbitMQServer, name: str) -> None:
        self.server = server
        self.topic, self.subscription = f"{name}.#", f"{name}-night"
        self._name = name
        self._sent = 0

    def make(self) -> None:
        with self.server.connection() as connection:
            channel = connection.channel()
            channel.queue_declare(self.subscription, durable=True)
            channel.queue_bind(self.subscription, "amq.topic", self.topic)

    def send(
        self,
        *bodies: bytes,
        headers: dict[str, Any] | None = None,
        ids: Sequence[str] | None = None,
        exchange: str = "amq.topic",
        with_ids: bool = True,
    ) -> None:
        with self.server.connection() as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            for number, body in enumerate(bodies):
                self._sent += 1
                message_id = ids[number] if ids else str(self._sent)
                properties = pika.BasicProperties(
                    message_id=message_id if with_ids else None,
                    headers=headers,
                    timestamp=SENT_AT,
                    delivery_mode=pika.DeliveryMode.Persistent,
                )
                channel.basic_publish(exchange, f"{self._name}.a", body, properties)

    def left(self) -> int:
        with self.server.connection() as connection:
            declared = connection.channel().queue_declare(self.subscription, passive=True)
            return int(declared.method.message_count)

    def missing(self) -> str:
        return f"{self._name}/#"


def opened(server: Broker, *, port: int | None = None, password: str | None = None) -> PubSub:
    """Open the broker by a URL that is the value of the environment variable `VARIABLE`."""
    url, store_url = server.urls("notifications", port=port, password=password)
    pubsub = open_pubsub(url, store_url, VARIABLE)
    assert pubsub is not None
    return pubsub


def consumer_of(
    feed: Feed, kept: Kept, topic: str | None = None
) -> contextlib.closing[Consumer[Any]]:
    """A consumer of the feed, or of another topic, that continues from what is kept."""
    consumer = opened(feed.server).consumer(
        topic or feed.topic, feed.subscription, kept.cursors.get
    )
    return contextlib.closing(consumer)


def numbered(n: int, begin: int = 0) -> list[bytes]:
    return [str(number).encode() for number in range(begin, begin + n)]


def received(consumer: Consumer, wanted: int, limit: int = 1000) -> list[Received]:
    """Receive `wanted` messages; fails when they do not arrive."""
    messages: list[Received] = []

    def complete() -> bool:
        messages.extend(consumer.receive(min(limit, wanted - len(messages)), 1.0))
        return len(messages) >= wanted

    until(complete, SOON, lambda: f"{len(messages)} of {wanted} messages arrived")
    return messages


def bodies(messages: Sequence[Received]) -> list[bytes]:
    return [received.message.body for received in messages]


def keep_receiving(consumer: Consumer, kept: Kept, wanted: int) -> None:
    """Receive until `wanted` bodies are kept, as a listener does: retry after an `Unavailable`."""

    def complete() -> bool:
        if len(kept.bodies) < wanted:
            with contextlib.suppress(Unavailable):  # at once, while the port is closed
                kept.keep(consumer.receive(1000, 1.0))
                consumer.acknowledge()
        return len(kept.bodies) >= wanted

    until(complete, 2 * SOON, lambda: f"{len(kept.bodies)} of {wanted} messages arrived")


def until_reported(consumer: Consumer) -> None:
    """Receive until it fails; messages that have arrived may be received first."""
    while True:
        consumer.receive(10, 1.0)


def main(url: str, topic: str, subscription: str, wanted: str) -> None:
    """A process that receives messages, prints their number, and hangs without acknowledging them."""
    pubsub = open_pubsub(url, "sqlite://", VARIABLE)
    assert pubsub is not None
    consumer = pubsub.consumer(topic, subscription, dict[str, str]().get)
    print(len(received(consumer, int(wanted))), flush=True)
    time.sleep(600)


if __name__ == "__main__":
    main(*sys.argv[1:])
