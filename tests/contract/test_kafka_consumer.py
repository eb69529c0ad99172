"""Kafka's consumer. What only it does: partitions, groups, missing offsets, rights."""

import contextlib
import logging
import time

import pytest
from confluent_kafka import Consumer as Member
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AclOperation, NewPartitions, ResourceType

from blacksmith_dagster.errors import Unavailable
from blacksmith_dagster.pubsub import open_pubsub
from tests.contract.consumers import LogConsumerContract
from tests.support.consuming import (
    KafkaFeed,
    Kept,
    consumer_of,
    keep_receiving,
    numbered,
    received,
)
from tests.support.services.kafka import GUEST, GUESTS_PASSWORD, KafkaServer
from tests.support.waiting import until


@pytest.fixture
def feed(kafka: KafkaServer, topic: str) -> KafkaFeed:
    return KafkaFeed(kafka, topic)


def in_order(bodies: list[bytes]) -> list[bytes]:
    return sorted(bodies, key=int)


class TestKafkaConsumer(LogConsumerContract):
    """What every broker does."""

    @pytest.fixture
    def missing_feed(self, kafka: KafkaServer, topic: str) -> KafkaFeed:
        return KafkaFeed(kafka, topic)


def test_each_partition_has_a_cursor(feed: KafkaFeed, kept: Kept) -> None:
    feed.partitions = 2
    feed.make()
    feed.send(*numbered(10), partition=0)
    feed.send(*numbered(10, 10), partition=1)
    with consumer_of(feed, kept) as consumer:
        kept.keep(received(consumer, 13))
    assert len(kept.cursors) == 2
    assert {reader.split("/")[-1] for reader in kept.cursors} == {"0", "1"}
    with consumer_of(feed, kept) as consumer:
        kept.keep(received(consumer, 7))
        consumer.acknowledge()
    assert in_order(kept.bodies) == numbered(20)
    assert set(kept.cursors.values()) == {"9"}
    until(lambda: feed.left() == 0)


def test_a_partition_that_is_added_is_read_from_its_beginning(feed: KafkaFeed, kept: Kept) -> None:
    feed.make()
    with consumer_of(feed, kept) as consumer:
        feed.send(*numbered(3))
        kept.keep(received(consumer, 3))
        admin = feed.server.admin()
        admin.create_partitions([NewPartitions(feed.topic, 2)])[feed.topic].result(10)
        until(lambda: len(admin.list_topics(feed.topic).topics[feed.topic].partitions) == 2)
        feed.send(*numbered(3, 3), partition=1)
        keep_receiving(consumer, kept, 6)
    assert kept.bodies == numbered(6)


def test_messages_that_were_deleted_before_they_were_read_are_reported(
    feed: KafkaFeed, kept: Kept, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    feed.make()
    feed.send(*numbered(10))
    with consumer_of(feed, kept) as consumer:
        kept.keep(received(consumer, 10))
    feed.send(*numbered(40, 10))
    admin, before = feed.server.admin(), TopicPartition(feed.topic, 0, 30)
    admin.delete_records([before])[before].result(10)
    with consumer_of(feed, kept) as consumer:
        keep_receiving(consumer, kept, 30)
    assert kept.bodies == numbered(10) + numbered(20, 30)
    (warning,) = (record.getMessage() for record in caplog.records)
    assert "20 offsets of partition 0 were deleted before they were read" in warning


def test_rebalance_takes_nothing_away(
    feed: KafkaFeed, kept: Kept, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    feed.partitions = 2
    feed.make()
    settings = feed.server._settings() | {"group.id": feed.subscription}
    with consumer_of(feed, kept) as consumer:
        feed.send(*numbered(10), partition=0)
        keep_receiving(consumer, kept, 10)
        member = Member(settings)
        member.subscribe([feed.topic])
        until(lambda: member.poll(0.1) is not None or len(member.assignment()) == 2)
        feed.send(*numbered(10, 10), partition=0)
        feed.send(*numbered(10, 20), partition=1)
        keep_receiving(consumer, kept, 30)
        until(lambda: not consumer.receive(1, 0.1) and bool(caplog.records))
        member.close()
        feed.send(*numbered(10, 30), partition=1)
        keep_receiving(consumer, kept, 40)
        until(lambda: not consumer.receive(1, 0.1) and feed.left() == 0)
    assert in_order(kept.bodies) == numbered(40)
    (warning,) = (record.getMessage() for record in caplog.records)
    assert f"the offsets of group {feed.subscription} are not committed" in warning


def test_two_readers_at_once_are_found_out(feed: KafkaFeed, kept: Kept) -> None:
    feed.make()
    feed.send(*numbered(10))
    with consumer_of(feed, kept) as paused, consumer_of(feed, kept) as successor:
        late = received(paused, 5)
        kept.keep(received(successor, 10))
        assert kept.cursors.get(late[0].cursor.reader) != late[0].cursor.before  # type: ignore[union-attr]
    assert kept.bodies == numbered(10)


def test_uncommitted_messages_are_not_received_and_leave_no_lag(
    feed: KafkaFeed, kept: Kept
) -> None:
    feed.make()
    producer = Producer(feed.server._settings() | {"transactional.id": feed.topic})
    producer.init_transactions(10)
    for begin, commits in ((0, True), (5, False), (10, True)):
        producer.begin_transaction()
        for body in numbered(5, begin):
            producer.produce(feed.topic, body)
        producer.flush(10)
        if commits:
            producer.commit_transaction(10)
        else:
            producer.abort_transaction(10)
    with consumer_of(feed, kept) as consumer:
        keep_receiving(consumer, kept, 10)
        until(lambda: not consumer.receive(1, 0.1) and consumer.lag() == 0)
    assert kept.bodies == numbered(5) + numbered(5, 10)


def test_a_message_without_a_body_or_a_key(feed: KafkaFeed, kept: Kept) -> None:
    feed.make()
    feed.send(None, key=b"gone", headers={"a": None, "b": b"\xff"})
    feed.send(b"x", key=None)
    feed.send(b"y", key=b"\xff\x00")
    with consumer_of(feed, kept) as consumer:
        tombstone, unkeyed, binary = (one.message for one in received(consumer, 3))
    assert (tombstone.body, tombstone.key) == (b"", "gone")
    assert tombstone.headers == {"a": "", "b": "\ufffd"}
    assert unkeyed.key is None
    assert binary.key == "\ufffd\x00"
    assert tombstone.place == f"{feed.topic}/0@0"


def test_rights_that_are_missing_are_reported(feed: KafkaFeed, kept: Kept) -> None:
    feed.make()
    feed.send(b"one")
    url = f"kafka://{GUEST}:{GUESTS_PASSWORD}@127.0.0.1:{feed.server.port}"
    pubsub = open_pubsub(url, "sqlite://")
    assert pubsub is not None

    def warning() -> str:
        with contextlib.closing(
            pubsub.consumer(feed.topic, feed.subscription, kept.cursors.get)
        ) as consumer:
            try:
                kept.keep(received(consumer, 1))
            except Unavailable as error:
                return str(error)
            return ""

    assert f"it must read the topic and the group {feed.subscription}" in warning()
    feed.server.allow(ResourceType.TOPIC, feed.topic, AclOperation.READ)
    feed.server.allow(ResourceType.GROUP, feed.subscription, AclOperation.READ)
    until(lambda: not warning())
    assert kept.bodies == [b"one"]


def test_a_reader_that_is_busy_for_long_keeps_its_place(feed: KafkaFeed, kept: Kept) -> None:
    feed.make()
    feed.send(*numbered(10))
    with consumer_of(feed, kept) as consumer:
        kept.keep(received(consumer, 5))
        time.sleep(4)  # the broker ends idle connections in half of this
        feed.send(*numbered(5, 10))
        kept.keep(received(consumer, 10))  # and none of the calls fails
    assert kept.bodies == numbered(15)
