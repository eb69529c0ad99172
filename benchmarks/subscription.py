"""Messages of each broker stored in PostgreSQL, beside only receiving them."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import count
from typing import Any, NamedTuple

import pika
from confluent_kafka import Producer
from confluent_kafka.admin import NewTopic

from benchmarks.measure import Effort, Figure, alternate, at_least, beside
from benchmarks.pipeline import payload
from benchmarks.stores import Databases, postgres
from blacksmith_dagster import Batch, Blacksmith, Destination, Event, Message, Source, Subscription
from blacksmith_dagster.ingest.subscription import MESSAGES, Messages
from blacksmith_dagster.pubsub import PubSub, open_pubsub
from blacksmith_dagster.store import open_store
from tests.services.kafka import KafkaServer
from tests.services.nats import NATSServer
from tests.services.rabbitmq import RabbitMQServer

TOPIC = "bench"
BYTES = 600
_names = count(1)


def subscription(effort: Effort) -> Iterator[Figure]:
    """Messages a second from each broker, each stored as an event with a job."""
    with postgres() as databases:
        for broker in (
            _Broker("Kafka", KafkaServer, _to_kafka, 20_000),
            _Broker("NATS", NATSServer, _to_nats, 20_000),
            _Broker("RabbitMQ", RabbitMQServer, _to_rabbitmq, 8_000),
        ):
            with _running(broker) as server:
                stored, received = _rates(databases, broker, server, effort)
            what = f"messages of {BYTES} bytes from {broker.name}"
            yield at_least(f"{what}; {databases.name}", stored, broker.bound, "messages/s")
            yield beside(
                f"{what}, beside receiving alone; {databases.name}", stored, received, "messages/s"
            )


class _Broker(NamedTuple):
    name: str
    server: Callable[[], Any]
    send: Callable[[Any, str, int], None]
    bound: int


@contextmanager
def _running(broker: _Broker) -> Iterator[Any]:
    with closing(broker.server()) as server:
        server.start()
        yield server


def _rates(
    databases: Databases, broker: _Broker, server: Any, effort: Effort
) -> tuple[list[float], list[float]]:
    messages = effort.of(broker.bound * 10)
    pubsub = open_pubsub(server.urls(TOPIC)[0], "")
    assert pubsub is not None

    def rate(measure: Callable[[Databases, PubSub, str, int], float]) -> float:
        topic = f"{TOPIC}{next(_names)}"
        broker.send(server, topic, messages)
        databases.settle()
        return measure(databases, pubsub, topic, messages)

    stored, received = alternate(
        effort.rounds, lambda: rate(_store_rate), lambda: rate(_receive_rate)
    )
    return stored, received


def _store_rate(databases: Databases, pubsub: PubSub, topic: str, messages: int) -> float:
    """Messages a second that are committed as events with a job."""
    source, sink = Source("feed"), Destination("sink")

    @source.event(Subscription(topic, subscription=topic))
    def ordered(message: Message) -> Event[Any]:
        return Event(message.json())

    @sink.event(receives=ordered)
    def all_messages(batch: Batch[Any]) -> None:
        """Do nothing."""

    app = Blacksmith(sources=[source], destinations=[sink])
    url = databases.create()
    with closing(open_store(url)) as store:
        store.register(app)
        with closing(Messages(app, ordered, store, pubsub, lambda _: None)) as reader:
            first = reader.read(10) or 0
            seconds = _seconds(lambda: reader.read(10) or 0, messages - first)
    databases.drop(url)
    return (messages - first) / seconds


def _receive_rate(_: Databases, pubsub: PubSub, topic: str, messages: int) -> float:
    """The limit: messages a second that are received and acknowledged."""
    with closing(pubsub.consumer(topic, topic, {}.get)) as consumer:

        def read() -> int:
            number = len(consumer.receive(MESSAGES, 10))
            consumer.acknowledge()
            return number

        first = read()
        seconds = _seconds(read, messages - first)
    return (messages - first) / seconds


def _seconds(read: Callable[[], int], messages: int) -> float:
    began = time.perf_counter()
    while messages > 0:
        number = read()
        if not number:
            raise RuntimeError(f"{messages} messages did not arrive")
        messages -= number
    return time.perf_counter() - began


def _bodies(messages: int) -> Iterator[tuple[str, bytes]]:
    """Pairs of an id and a body."""
    spare = len(payload(0)) - BYTES
    bodies = [payload(n).replace("x" * spare, "", 1).encode() for n in range(1000)]
    return ((str(n), bodies[n % 1000]) for n in range(messages))


def _to_kafka(server: KafkaServer, topic: str, messages: int) -> None:
    admin = server.admin()
    admin.create_topics([NewTopic(topic, 1)])[topic].result(30)
    producer = Producer(server._settings() | {"linger.ms": 20, "compression.type": "lz4"})
    for _, body in _bodies(messages):
        while True:
            try:
                producer.produce(topic, body)
                break
            except BufferError:
                producer.poll(0.1)
    if producer.flush(60):
        raise RuntimeError("Kafka did not accept all messages")


def _to_nats(server: NATSServer, topic: str, messages: int) -> None:
    async def send(client: Any) -> None:
        stream = client.jetstream()
        await stream.add_stream(name=topic, subjects=[topic])
        for number, (_, body) in enumerate(_bodies(messages)):
            await client.publish(topic, body)
            if number % 1000 == 0:
                await client.flush()
        await client.flush()
        while (await stream.stream_info(topic)).state.messages < messages:  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    server.using(send)


def _to_rabbitmq(server: RabbitMQServer, topic: str, messages: int) -> None:
    with server.connection() as connection:
        channel = connection.channel()
        channel.queue_declare(topic, durable=True)
        for message_id, body in _bodies(messages):
            properties = pika.BasicProperties(message_id=message_id, delivery_mode=2)
            channel.basic_publish("", topic, body, properties)
        while channel.queue_declare(topic, passive=True).method.message_count < messages:
            time.sleep(0.05)
