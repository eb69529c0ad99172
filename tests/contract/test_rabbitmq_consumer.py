"""RabbitMQ's consumer. What only it does: its queue, its bindings, rights, ids."""

import contextlib
import logging

import pika
import pytest

import blacksmith_dagster.pubsub.rabbitmq.consumer as adapter
from blacksmith_dagster.errors import SettingsError, Unavailable
from blacksmith_dagster.pubsub import open_pubsub
from tests.contract.consumers import ConsumerContract
from tests.support.consuming import (
    SENT_AT,
    Kept,
    RabbitMQFeed,
    bodies,
    consumer_of,
    keep_receiving,
    numbered,
    opened,
    received,
)
from tests.support.services.rabbitmq import RabbitMQServer
from tests.support.waiting import until


@pytest.fixture
def feed(rabbitmq: RabbitMQServer, topic: str) -> RabbitMQFeed:
    return RabbitMQFeed(rabbitmq, topic)


class TestRabbitMQConsumer(ConsumerContract):
    """What every broker does."""

    @pytest.fixture
    def missing_feed(self, rabbitmq: RabbitMQServer, topic: str) -> RabbitMQFeed:
        return RabbitMQFeed(rabbitmq, topic)


def test_a_queue_is_made_bound_and_kept(
    rabbitmq: RabbitMQServer, feed: RabbitMQFeed, kept: Kept
) -> None:
    with consumer_of(feed, kept) as consumer:
        assert not consumer.receive(1, 0.1)
    feed.send(*numbered(5))  # while there is no reader
    rabbitmq.stop()
    rabbitmq.start()
    feed.send(*numbered(5, 5))
    with consumer_of(feed, kept) as consumer:
        keep_receiving(consumer, kept, 10)
    assert kept.bodies == numbered(10)


def test_binding_keys_choose_messages(feed: RabbitMQFeed, kept: Kept) -> None:
    prefix = feed.topic.removesuffix(".#")
    with consumer_of(feed, kept, f"{prefix}.*.paid") as consumer:
        assert not consumer.receive(1, 0.1)
        with feed.server.connection() as connection:
            channel = connection.channel()
            for key in ("eu.paid", "eu.sent", "us.paid"):
                channel.basic_publish("amq.topic", f"{prefix}.{key}", key.encode())
        messages = received(consumer, 2)
        assert not consumer.receive(1, 0.2)
    assert bodies(messages) == [b"eu.paid", b"us.paid"]
    assert [one.message.topic for one in messages] == [f"{prefix}.eu.paid", f"{prefix}.us.paid"]
    assert {one.message.place for one in messages} == {feed.subscription}


@pytest.mark.parametrize(("kind", "key"), [("topic", "#"), ("fanout", "")])
def test_an_exchange_of_ones_own(feed: RabbitMQFeed, kept: Kept, kind: str, key: str) -> None:
    exchange = f"{feed.subscription}-{kind}"
    with feed.server.connection() as connection:
        connection.channel().exchange_declare(exchange, kind)
    with consumer_of(feed, kept, f"{exchange}/{key}") as consumer:
        assert not consumer.receive(1, 0.1)
        feed.send(*numbered(3), exchange=exchange)
        keep_receiving(consumer, kept, 3)
    assert kept.bodies == numbered(3)


def test_a_missing_exchange_leaves_no_queue_behind(
    rabbitmq: RabbitMQServer, feed: RabbitMQFeed, kept: Kept
) -> None:
    exchange = f"{feed.subscription}-late"
    with consumer_of(feed, kept, f"{exchange}/#") as consumer:
        with pytest.raises(Unavailable, match=f"there is no exchange {exchange}"):
            consumer.receive(1, 10)
        assert feed.subscription not in rabbitmq.queues()
        with feed.server.connection() as connection:
            connection.channel().exchange_declare(exchange, "topic")
        assert not consumer.receive(1, 0.1)
        feed.send(b"one", exchange=exchange)
        keep_receiving(consumer, kept, 1)
    assert kept.bodies == [b"one"]


def test_the_exchange_without_a_name_is_refused(feed: RabbitMQFeed) -> None:
    with pytest.raises(SettingsError, match="<exchange>/<binding key>"):
        opened(feed.server).consumer("/orders", feed.subscription, dict[str, str]().get)


def test_a_queue_that_is_there_is_used_as_it_is(feed: RabbitMQFeed, kept: Kept) -> None:
    arguments = {"x-max-length": 5, "x-queue-mode": "lazy"}
    with feed.server.connection() as connection:
        channel = connection.channel()
        channel.queue_declare(feed.subscription, durable=False, arguments=arguments)
        for body in numbered(8):
            channel.basic_publish("", feed.subscription, body)
    with consumer_of(feed, kept) as consumer:
        keep_receiving(consumer, kept, 5)
        feed.send(b"it is not bound to the topic")
        assert not consumer.receive(1, 0.2)
    assert kept.bodies == numbered(5, 3)


def test_a_quorum_queue(feed: RabbitMQFeed, kept: Kept) -> None:
    with feed.server.connection() as connection:
        channel = connection.channel()
        quorum = {"x-queue-type": "quorum"}
        channel.queue_declare(feed.subscription, durable=True, arguments=quorum)
        channel.queue_bind(feed.subscription, "amq.topic", feed.topic)
    feed.send(*numbered(20))
    with consumer_of(feed, kept) as consumer:
        kept.keep(received(consumer, 10))
    with consumer_of(feed, kept) as consumer:
        keep_receiving(consumer, kept, 20)
    assert kept.bodies == numbered(20)


def test_a_queue_that_was_deleted_is_made_again(feed: RabbitMQFeed, kept: Kept) -> None:
    feed.make()
    feed.send(*numbered(3))
    with consumer_of(feed, kept) as consumer:
        keep_receiving(consumer, kept, 3)
        with feed.server.connection() as connection:
            connection.channel().queue_delete(feed.subscription)
        until(lambda: not consumer.receive(1, 0.1) and consumer.lag() == 0)
        feed.send(*numbered(3, 3))
        keep_receiving(consumer, kept, 6)
    assert kept.bodies == numbered(6)


def test_messages_without_an_id_come_again_and_are_reported_once(
    feed: RabbitMQFeed, kept: Kept, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    feed.make()
    feed.send(*numbered(3), with_ids=False)
    with consumer_of(feed, kept) as consumer:
        messages = received(consumer, 3)
        assert {one.message.id for one in messages} == {None}
        assert {one.cursor for one in messages} == {None}
        kept.keep(messages)
    (warning,) = (record.getMessage() for record in caplog.records)
    assert "have no message_id" in warning
    with consumer_of(feed, kept) as consumer:
        kept.keep(received(consumer, 3))
    assert kept.bodies == numbered(3) * 2


def test_more_wait_than_are_sent_ahead(
    feed: RabbitMQFeed, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "_PREFETCH", 10)
    feed.make()
    feed.send(*numbered(35))
    with consumer_of(feed, kept) as consumer:
        kept.keep(received(consumer, 10))
        assert not consumer.receive(1, 0.2)  # until these are acknowledged
        assert consumer.lag() == 25
        consumer.acknowledge()
        keep_receiving(consumer, kept, 35)
    assert kept.bodies == numbered(35)


def test_headers_and_times_of_every_kind(feed: RabbitMQFeed, kept: Kept) -> None:
    feed.make()
    headers = {"n": 1, "b": b"\xff", "l": [1, "a"], "none": None, "yes": True}
    with feed.server.connection() as connection:
        channel = connection.channel()
        for timestamp in (SENT_AT, 1000 * SENT_AT, 2**63):
            properties = pika.BasicProperties(headers=headers, timestamp=timestamp)
            channel.basic_publish("", feed.subscription, b"x", properties)
        channel.basic_publish("", feed.subscription, b"x")
    with consumer_of(feed, kept) as consumer:
        first, millis, far, bare = (one.message for one in received(consumer, 4))
    assert first.headers == {"n": "1", "b": "\ufffd", "l": "[1, 'a']", "none": "", "yes": "True"}
    assert first.sent_at is not None
    assert first.sent_at.timestamp() == SENT_AT
    assert (millis.sent_at, far.sent_at, bare.sent_at) == (None, None, None)
    assert bare.headers == {}


def test_a_reader_that_was_busy_past_its_heartbeats_goes_on(
    feed: RabbitMQFeed, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "_HEARTBEAT", 1)
    feed.make()
    feed.send(*numbered(10))
    with consumer_of(feed, kept) as consumer:
        kept.keep(received(consumer, 5))
        listed = ("list_connections", "-q", "pid", "timeout")
        until(lambda: "\t1\n" not in feed.server.control(*listed))
        consumer.acknowledge()  # the broker does not get it: these come again
        keep_receiving(consumer, kept, 10)
        feed.send(*numbered(5, 10))
        keep_receiving(consumer, kept, 15)
    assert kept.bodies == numbered(15)


def test_rights_that_are_missing_are_reported(
    rabbitmq: RabbitMQServer, feed: RabbitMQFeed, kept: Kept, user: str
) -> None:
    pubsub = open_pubsub(f"amqp://{user}:{user}@127.0.0.1:{rabbitmq.port}", "sqlite://")
    assert pubsub is not None
    feed.make()
    feed.send(b"one")
    with contextlib.closing(
        pubsub.consumer(feed.topic, feed.subscription, dict[str, str]().get)
    ) as consumer:
        rabbitmq.control("set_permissions", user, "", "", "^other")
        with pytest.raises(Unavailable, match="it must read the queue"):
            consumer.receive(1, 10)
        rabbitmq.control("set_permissions", user, "", "", f"^{feed.subscription}")
        keep_receiving(consumer, kept, 1)  # to read is enough where the queue is there
    assert kept.bodies == [b"one"]
