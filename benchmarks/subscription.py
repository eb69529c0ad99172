"""Messages of each broker stored in PostgreSQL, beside only receiving them."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import count
from typing import Any, TypeAlias

import pika
from confluent_kafka import Producer
from confluent_kafka.admin import NewTopic

from benchmarks.measure import Effort, Figure, alternate, figure
from benchmarks.pipeline import application, payload
from benchmarks.stores import Databases, measured_on, opened, postgres
from blacksmith_dagster import Event, Message, Source, Subscription
from blacksmith_dagster.ingest.ingest import Ingester
from blacksmith_dagster.ingest.subscription import MESSAGES, Messages
from blacksmith_dagster.pubsub import PubSub, open_pubsub
from tests.support.services.kafka import KafkaServer
from tests.support.services.nats import NATSServer
from tests.support.services.rabbitmq import RabbitMQServer

TOPIC = "bench"
BYTES = 600
_names = count(1)

Send: TypeAlias = Callable[[Any, str, int], None]


@measured_on(postgres)
def subscription(databases: Databases, effort: Effort) -> Iterator[Figure]:
    """Messages a second from each broker, each stored as an event with a job."""
    yield from _measure(databases, effort, "Kafka", KafkaServer(), _to_kafka, 20_000)
    yield from _measure(databases, effort, "NATS", NATSServer(), _to_nats, 20_000)
    yield from _measure(databases, effort, "RabbitMQ", RabbitMQServer(), _to_rabbitmq, 8_000)


def _measure(
    databases: Databases, effort: Effort, name: str, broker: Any, send: Send, bound: int
) -> Iterator[Figure]:
    messages = effort.of(bound * 10)
    with closing(broker) as server:
        server.start()
        pubsub = open_pubsub(server.urls(TOPIC)[0], "")
        assert pubsub is not None

        def filled() -> str:
            topic = f"{TOPIC}{next(_names)}"
            send(server, topic, messages)
            databases.settle()
            return topic

        stored, received = alternate(
            effort.rounds,
            lambda: _store_rate(databases, pubsub, filled(), messages),
            lambda: _receive_rate(pubsub, filled(), messages),
        )
    what = f"messages of {BYTES} bytes from {name}"
    yield figure(f"{what}; {databases.name}", stored, "messages/s", at_least=bound)
    beside = f"{what}, beside only receiving; {databases.name}"
    yield figure(beside, stored, "messages/s", limits=received)


def _store_rate(databases: Databases, pubsub: PubSub, topic: str, messages: int) -> float:
    """Messages a second that are committed as events with a job."""
    source = Source("feed")

    @source.event(Subscription(topic, subscription=topic))
    def ordered(message: Message) -> Event[Any]:
        return Event(message.json())

    app = application(source, [ordered])
    with databases.new() as url, opened(url) as store:
        store.register(app)
        with closing(Messages(ordered, Ingester(app, ordered, store), pubsub)) as reader:
            return _rate(lambda: reader.read(10) or 0, messages)


def _receive_rate(pubsub: PubSub, topic: str, messages: int) -> float:
    """The limit: messages a second that are received and acknowledged."""
    with closing(pubsub.consumer(topic, topic, dict[str, str]().get)) as consumer:

        def read() -> int:
            number = len(consumer.receive(MESSAGES, 10))
            consumer.acknowledge()
            return number

        return _rate(read, messages)


def _rate(read: Callable[[], int], messages: int) -> float:
    """Messages a second, after the first ones have arrived."""
    missing = after_first = messages - read()
    began = time.perf_counter()
    while missing > 0:
        number = read()
        if not number:
            raise RuntimeError(f"{missing} messages did not arrive")
        missing -= number
    return after_first / (time.perf_counter() - began)


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
