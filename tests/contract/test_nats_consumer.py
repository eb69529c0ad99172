"""NATS' consumer. What only it does: retention, wildcards, streams that are created again."""

import logging
import re
from typing import Any

import pytest
from nats.js.api import ConsumerConfig, RetentionPolicy

from blacksmith_dagster.errors import SettingsError, Unavailable
from tests.contract.consumers import LogConsumerContract
from tests.support.consuming import (
    Kept,
    NATSFeed,
    bodies,
    consumer_of,
    keep_receiving,
    numbered,
    opened,
    received,
)
from tests.support.services.nats import NATSServer
from tests.support.waiting import until


@pytest.fixture
def feed(nats: NATSServer, topic: str) -> NATSFeed:
    return NATSFeed(nats, topic)


@pytest.fixture
def work_queue(nats: NATSServer, topic: str) -> NATSFeed:
    return NATSFeed(nats, topic, retention=RetentionPolicy.WORK_QUEUE)


@pytest.fixture
def interest(nats: NATSServer, topic: str) -> NATSFeed:
    return NATSFeed(nats, topic, retention=RetentionPolicy.INTEREST)


class TestNATSConsumer(LogConsumerContract):
    """What every broker does."""

    @pytest.fixture
    def missing_feed(self, nats: NATSServer, topic: str) -> NATSFeed:
        return NATSFeed(nats, topic)


def test_wildcards_choose_subjects(feed: NATSFeed, kept: Kept) -> None:
    feed.make()
    feed.send(*numbered(3), below="eu.paid")
    feed.send(*numbered(3, 3), below="us.paid")
    feed.send(*numbered(3, 6), below="us.sent")
    with consumer_of(feed, kept, f"{feed.stream}.*.paid") as consumer:
        messages = received(consumer, 6)
        kept.keep(messages)
        assert not consumer.receive(1, 0.2)
        assert consumer.lag() == 0
    assert kept.bodies == numbered(6)
    assert messages[5].message.topic == f"{feed.stream}.us.paid"
    assert messages[5].message.place == f"{feed.stream}@6"


def test_a_subject_that_is_wider_than_the_stream(feed: NATSFeed, kept: Kept) -> None:
    feed.topic = f"{feed.stream}.*.paid"
    feed.make()
    feed.send(b"one", below="eu.paid")
    with consumer_of(feed, kept, f"{feed.stream}.>") as consumer:
        keep_receiving(consumer, kept, 1)
    assert kept.bodies == [b"one"]


def test_a_subject_in_several_streams_is_refused(
    nats: NATSServer, feed: NATSFeed, topic: str, kept: Kept
) -> None:
    feed.topic = f"{topic}.a"
    feed.make()
    other = NATSFeed(nats, f"{topic}-other")
    other.topic = f"{topic}.b"
    other.make()
    with (
        consumer_of(feed, kept, f"{topic}.*") as consumer,
        pytest.raises(SettingsError, match=f"streams: {topic}, {topic}-other"),
    ):
        consumer.receive(1, 10)


def test_a_name_that_nats_does_not_accept_is_refused(feed: NATSFeed) -> None:
    with pytest.raises(SettingsError, match=re.escape("'night.shift'")):
        opened(feed.server).consumer(feed.topic, "night.shift", dict[str, str]().get)


def test_a_consumer_that_was_deleted_is_made_again(feed: NATSFeed, kept: Kept) -> None:
    feed.make()
    feed.send(*numbered(5))
    with consumer_of(feed, kept) as consumer:
        kept.keep(received(consumer, 3))
        feed.server.using(
            lambda client: client.jetstream().delete_consumer(feed.stream, feed.subscription)
        )
        feed.send(*numbered(5, 5))
        keep_receiving(consumer, kept, 10)
    assert kept.bodies == numbered(10)


def test_a_consumer_that_others_created_is_created_again(feed: NATSFeed, kept: Kept) -> None:
    feed.make()
    feed.send(*numbered(5))

    async def make(client: Any) -> None:
        config = ConsumerConfig(durable_name=feed.subscription, max_ack_pending=1)
        await client.jetstream().add_consumer(feed.stream, config)

    feed.server.using(make)
    with consumer_of(feed, kept) as consumer:
        keep_receiving(consumer, kept, 5)
    assert kept.bodies == numbered(5)


def test_what_was_kept_leaves_a_work_queue(work_queue: NATSFeed, kept: Kept) -> None:
    work_queue.make()
    work_queue.send(*numbered(20))
    with consumer_of(work_queue, kept) as consumer:
        kept.keep(received(consumer, 12))
        consumer.acknowledge()
        until(lambda: work_queue.messages() == 8)
        kept.keep(received(consumer, 4))  # and is killed before it can acknowledge
    work_queue.send(*numbered(5, 20))
    with consumer_of(work_queue, kept) as consumer:
        keep_receiving(consumer, kept, 25)
    assert kept.bodies == numbered(25)
    until(lambda: work_queue.messages() == 0)


def test_a_work_queue_forgets_what_was_kept_though_nothing_new_comes(
    work_queue: NATSFeed, kept: Kept
) -> None:
    work_queue.make()
    work_queue.send(*numbered(5))
    with consumer_of(work_queue, kept) as consumer:
        kept.keep(received(consumer, 5))
    with consumer_of(work_queue, kept) as consumer:
        until(lambda: not consumer.receive(10, 0.2) and work_queue.messages() == 0)
    assert kept.bodies == numbered(5)


def test_a_wider_subject_finds_what_a_work_queue_still_has(
    work_queue: NATSFeed, kept: Kept
) -> None:
    work_queue.make()
    work_queue.send(*numbered(3), below="other")
    work_queue.send(*numbered(3, 3), below="ours")
    with consumer_of(work_queue, kept, f"{work_queue.stream}.ours") as consumer:
        keep_receiving(consumer, kept, 3)
    with consumer_of(work_queue, kept) as consumer:
        keep_receiving(consumer, kept, 6)
    assert kept.bodies == numbered(3, 3) + numbered(3)


def test_a_stream_of_interest_loses_nothing_while_there_is_no_reader(
    interest: NATSFeed, kept: Kept
) -> None:
    interest.make()
    with consumer_of(interest, kept) as consumer:
        assert not consumer.receive(1, 0.1)  # from now on it is wanted
    interest.send(*numbered(10))
    for begin in (0, 10, 20):
        with consumer_of(interest, kept) as consumer:
            kept.keep(received(consumer, 6))  # and is killed before it can acknowledge
        interest.send(*numbered(10, begin + 10))
    with consumer_of(interest, kept) as consumer:
        keep_receiving(consumer, kept, 40)
    assert kept.bodies == numbered(40)
    assert interest.consumers() == [interest.subscription]
    until(lambda: interest.messages() == 0)


def test_a_stream_of_interest_survives_a_kill_while_its_consumer_is_created_again(
    interest: NATSFeed, kept: Kept
) -> None:
    interest.make()
    with consumer_of(interest, kept) as consumer:
        assert not consumer.receive(1, 0.1)
    interest.send(*numbered(5))

    async def half(client: Any) -> None:
        """What is left by one that was killed after it deleted the consumer."""
        server = client.jetstream()
        holding = f"{interest.subscription}_handover"
        config = ConsumerConfig(durable_name=holding, filter_subject=interest.topic)
        config.ack_wait, config.max_ack_pending = 300, -1
        await server.add_consumer(interest.stream, config)
        await server.delete_consumer(interest.stream, interest.subscription)

    interest.server.using(half)
    interest.send(*numbered(5, 5))
    with consumer_of(interest, kept) as consumer:
        keep_receiving(consumer, kept, 10)
    assert kept.bodies == numbered(10)
    assert interest.consumers() == [interest.subscription]


def test_messages_that_were_deleted_before_they_were_read_are_reported(
    nats: NATSServer, topic: str, kept: Kept, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    feed = NATSFeed(nats, topic, max_msgs=10)
    feed.make()
    feed.send(*numbered(5))
    with consumer_of(feed, kept) as consumer:
        kept.keep(received(consumer, 5))
    feed.send(*numbered(30, 5))
    with consumer_of(feed, kept) as consumer:
        keep_receiving(consumer, kept, 15)
    assert kept.bodies == numbered(5) + numbered(10, 25)
    (warning,) = (record.getMessage() for record in caplog.records)
    assert "20 messages" in warning
    assert "deleted before they were read" in warning


def test_ids_are_the_senders(feed: NATSFeed, kept: Kept) -> None:
    feed.make()
    feed.send(b"one", b"two", ids=["1", "2"])
    feed.send(b"three", headers={"Nats-Msg-Id": ""})
    with consumer_of(feed, kept) as consumer:
        messages = received(consumer, 3)
    assert [one.message.id for one in messages] == ["1", "2", None]
    assert bodies(messages) == [b"one", b"two", b"three"]


def test_what_is_too_much_at_once_comes_in_parts(
    feed: NATSFeed, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blacksmith_dagster.pubsub.nats.consumer._BATCH_BYTES", 1)
    feed.make()
    big = [bytes([n]) * 900_000 for n in range(10)]  # two of them exceed the smallest request
    feed.send(*big)
    with consumer_of(feed, kept) as consumer:
        kept.keep(received(consumer, 10))
    assert kept.bodies == big


def test_what_was_asked_for_in_vain_is_asked_again(
    feed: NATSFeed, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blacksmith_dagster.pubsub.nats.consumer._REQUEST_SECONDS", 0.2)
    feed.make()
    with consumer_of(feed, kept) as consumer:
        assert not consumer.receive(1, 1.0)
        feed.send(b"late")
        assert bodies(received(consumer, 1)) == [b"late"]


def test_a_consumer_that_is_refused_is_reported(nats: NATSServer, topic: str, kept: Kept) -> None:
    feed = NATSFeed(nats, topic, max_consumers=1)
    feed.make()

    async def make(client: Any) -> None:
        await client.jetstream().add_consumer(feed.stream, ConsumerConfig(durable_name="other"))

    feed.server.using(make)
    with (
        consumer_of(feed, kept) as consumer,
        pytest.raises(Unavailable, match=f"refused the consumer {feed.subscription}: max"),
    ):
        consumer.receive(1, 10)
