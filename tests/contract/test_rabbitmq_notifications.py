"""Notifications by RabbitMQ. What only it does: queues, rights, TLS, how it ends a connection."""

import contextlib
import time

import pika
import pytest

import blacksmith_dagster.pubsub.rabbitmq.notifications as adapter
from blacksmith_dagster.errors import Unavailable
from blacksmith_dagster.pubsub import Publisher, PubSub
from tests.contract.notifications import NotificationsContract
from tests.support.notifying import (
    DELAYS,
    FLIGHTS,
    SOON,
    Subscribe,
    assert_recovers,
    heard,
    opening,
    works,
)
from tests.support.services import free_port
from tests.support.services.rabbitmq import RabbitMQServer
from tests.support.waiting import until


@pytest.fixture
def broker(rabbitmq: RabbitMQServer) -> RabbitMQServer:
    return rabbitmq


def pubsub_at(url: str) -> PubSub:
    return opening((url, "sqlite://"))


def refusal(pubsub: PubSub) -> str:
    """The error that a publisher raises; a subscriber raises the same."""
    publisher, subscriber = pubsub.publisher(), pubsub.subscriber("warehouse")
    with contextlib.closing(publisher), contextlib.closing(subscriber):
        with pytest.raises(Unavailable) as raised:
            publisher.publish([FLIGHTS])
        with pytest.raises(Unavailable) as raised_too:
            subscriber.wait(SOON)
    assert str(raised.value) == str(raised_too.value)
    return str(raised.value)


class TestRabbitMQNotifications(NotificationsContract):
    """What every broker does."""


def test_little_piles_up_for_a_subscriber_that_does_not_read(
    broker: RabbitMQServer, topic: str, publisher: Publisher, subscribe: Subscribe
) -> None:
    before = broker.queues()
    publisher.publish([FLIGHTS])
    assert broker.queues() == before  # without a subscriber there is no queue
    subscriber = subscribe("warehouse")
    (name,) = broker.queues().keys() - before.keys()
    assert name.startswith("blacksmith.warehouse.")
    # Far more than fits into the sockets on the way to a subscriber that does not read.
    with broker.connection() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for _ in range(500):
            channel.basic_publish("amq.direct", f"{topic}.warehouse", b"x" * 100_000)
    assert 0 < broker.queues()[name] <= adapter._QUEUE_LENGTH
    # What comes late drives out what came early.
    publisher.publish([FLIGHTS])
    publisher.publish([DELAYS])
    assert heard(subscriber, [FLIGHTS, DELAYS]) == {FLIGHTS, DELAYS}
    until(lambda: broker.queues()[name] == 0)


def test_a_queue_goes_after_its_subscriber(broker: RabbitMQServer, subscribe: Subscribe) -> None:
    before = broker.queues()
    subscriber = subscribe("warehouse")
    assert not subscriber.wait(2.5)
    assert broker.queues() != before  # someone listens
    subscriber.close()
    until(lambda: broker.queues() == before)


def test_exchange_deleted(
    broker: RabbitMQServer, topic: str, publisher: Publisher, subscribe: Subscribe
) -> None:
    subscriber = subscribe("warehouse")
    publisher.publish([FLIGHTS])
    with broker.connection() as connection:
        connection.channel().exchange_delete(topic)  # we do not use it
    with (
        broker.connection() as connection,
        pytest.raises(pika.exceptions.ChannelClosedByBroker, match="ACCESS_REFUSED"),
    ):
        connection.channel().exchange_delete("amq.direct")
    assert_recovers(publisher, subscriber)


def test_a_publisher_that_sent_no_heartbeat_is_cut_off_and_does_not_fail(
    broker: RabbitMQServer,
    pubsub: PubSub,
    subscribe: Subscribe,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    subscriber = subscribe("warehouse")
    monkeypatch.setattr(adapter, "_PUBLISHER_HEARTBEAT", 1)
    with contextlib.closing(pubsub.publisher()) as publisher:
        publisher.publish([FLIGHTS])
        until(lambda: "\t1\n" not in broker.control("list_connections", "-q", "pid", "timeout"))
        publisher.publish([DELAYS])
    assert heard(subscriber, [FLIGHTS, DELAYS]) == {FLIGHTS, DELAYS}


def test_a_subscriber_that_was_busy_past_its_heartbeats_looks_into_the_store_and_hears_again(
    broker: RabbitMQServer,
    publisher: Publisher,
    subscribe: Subscribe,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(adapter, "_SUBSCRIBER_HEARTBEAT", 1)
    subscriber = subscribe("warehouse")
    until(lambda: "\t1\n" not in broker.control("list_connections", "-q", "pid", "timeout"))
    publisher.publish([FLIGHTS])  # lost with its queue
    began = time.monotonic()
    assert not subscriber.wait(SOON)  # at once, so that its user looks into the store
    assert time.monotonic() - began < SOON / 2
    publisher.publish([DELAYS])
    assert heard(subscriber, [DELAYS]) == {DELAYS}


def test_a_broker_short_of_memory_accepts_nothing_and_says_so(
    broker: RabbitMQServer, publisher: Publisher, subscribe: Subscribe
) -> None:
    subscriber = subscribe("warehouse")
    publisher.publish([FLIGHTS])
    broker.control("set_vm_memory_high_watermark", "absolute", "1MB")
    try:
        with pytest.raises(Unavailable, match="within 3 seconds"):
            publisher.publish([FLIGHTS])
    finally:
        broker.control("set_vm_memory_high_watermark", "0.4")
    assert_recovers(publisher, subscriber)


def test_tls(broker: RabbitMQServer, topic: str) -> None:
    secure = f"amqps://localhost:{broker.tls_port}?topic={topic}"
    assert works(pubsub_at(f"{secure}&ca={broker.certificate}"))
    assert "certificate verify failed" in refusal(pubsub_at(secure))
    assert "certificate" in refusal(pubsub_at(f"{secure}&ca={__file__}"))  # not a certificate
    plain = refusal(pubsub_at(f"amqp://localhost:{broker.tls_port}?topic={topic}"))
    assert "amqps://" in plain


def test_the_first_server_that_accepts_us_serves(broker: RabbitMQServer, topic: str) -> None:
    assert works(pubsub_at(f"amqp://127.0.0.1:{free_port()},127.0.0.1:{broker.port}?topic={topic}"))


def test_virtual_hosts(broker: RabbitMQServer, topic: str, user: str) -> None:
    host = f"amqp://{user}:{user}@127.0.0.1:{broker.port}/{topic}%2Fa"
    assert "virtual host" in refusal(pubsub_at(host))  # it does not exist
    broker.control("add_vhost", f"{topic}/a")
    try:
        assert "virtual host" in refusal(pubsub_at(host))  # it exists, without rights
        broker.control("set_permissions", "-p", f"{topic}/a", user, ".*", ".*", ".*")
        assert works(pubsub_at(host))
    finally:
        broker.control("delete_vhost", f"{topic}/a")


def test_rights_that_are_missing_are_reported(
    broker: RabbitMQServer, topic: str, user: str
) -> None:
    pubsub = pubsub_at(f"amqp://{user}:{user}@127.0.0.1:{broker.port}?topic={topic}")
    broker.control("set_permissions", user, "^other", "^other", ".*")
    assert "configure, write and read" in refusal(pubsub)
    queues = r"^blacksmith\."
    broker.control("set_permissions", user, queues, rf"{queues}|^amq\.direct$", ".*")
    assert works(pubsub)


def test_an_exchange_of_the_topics_name_changes_nothing(broker: RabbitMQServer, topic: str) -> None:
    with broker.connection() as connection:
        connection.channel().exchange_declare(topic, "fanout")
        assert works(opening(broker.urls(topic)))
        connection.channel().exchange_delete(topic)
