"""Notifications through Kafka."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from time import monotonic
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.cimpl import NewTopic

from blacksmith_dagster.errors import Unavailable
from blacksmith_dagster.pubsub.address import BrokerAddress
from blacksmith_dagster.pubsub.connection import ConnectionGuard
from blacksmith_dagster.pubsub.kafka.connection import (
    CONSUMER,
    DENIED,
    NO_TOPIC,
    POLL_SECONDS,
    REQUEST_SECONDS,
    RESPONSE_SECONDS,
    ClientErrors,
    admin_client,
    settings,
    wait_for,
)
from blacksmith_dagster.pubsub.wire import decode_notification, encode_notifications

_BATCH = 1000
# The only partition that is used: a notification is a few bytes, and who watches one partition never
# misses that another was added.
_PARTITION = 0
_TOPIC = {
    "cleanup.policy": "delete",
    "retention.ms": str(3600 * 1000),
    "segment.ms": str(900 * 1000),  # only whole segments are deleted
}
# A topic made anew is heard from its beginning.
_CONSUMER: dict[str, Any] = CONSUMER | {"auto.offset.reset": "earliest"}
_PRODUCER: dict[str, Any] = {
    "linger.ms": 0,
    "acks": 1,
    "message.timeout.ms": int(1000 * RESPONSE_SECONDS),
    "topic.metadata.propagation.max.ms": int(1000 * REQUEST_SECONDS),
}
_NO_LEADER = {KafkaError.LEADER_NOT_AVAILABLE, KafkaError.NOT_LEADER_FOR_PARTITION}


class KafkaPublisher:
    """A `Publisher`."""

    def __init__(self, address: BrokerAddress) -> None:
        self._address = address
        self._producer: Producer | None = None
        self._errors = _errors(address)

    def publish(self, paths: Collection[str]) -> None:
        messages = encode_notifications(paths)
        try:
            if self._producer is not None:
                try:
                    return self._send(self._producer, messages)
                except Unavailable:  # it may have died while nobody used it, or the topic is gone
                    self.close()
            self._send(self._connect(), messages)
        except Unavailable:
            self.close()
            raise

    def close(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.purge(blocking=False)  # else its end waits for the broker

    def _connect(self) -> Producer:
        _make_topic(self._address)
        self._errors = _errors(self._address)
        self._producer = Producer(
            settings(self._address) | _PRODUCER | {"error_cb": self._errors.note}
        )
        return self._producer

    def _send(self, producer: Producer, messages: Mapping[str, bytes]) -> None:
        producer.poll(0)
        self._errors.clear()  # what was wrong while nobody published is over, or comes again
        left = {destination.encode() for destination in messages}

        def confirm(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                self._errors.note(error)
                self._errors.is_lost = True
            left.discard(message.key())

        try:
            for destination, body in messages.items():
                producer.produce(
                    self._address.topic, body, destination, _PARTITION, on_delivery=confirm
                )
            deadline = monotonic() + RESPONSE_SECONDS
            while left and not self._errors.is_lost and (wait := deadline - monotonic()) > 0:
                producer.poll(min(wait, POLL_SECONDS))
        except KafkaException as error:
            raise self._errors.unavailable(error.args[0]) from None
        finally:
            del producer  # as below: who keeps the error keeps no client
        if left or self._errors.is_lost:
            raise self._errors.unavailable()


class KafkaSubscriber:
    """A `Subscriber`."""

    def __init__(self, address: BrokerAddress, destination: str) -> None:
        self._address = address
        self._destination = destination
        self._key = destination.encode()
        self._consumer: Consumer | None = None
        self._errors = _errors(address)
        self._guard = ConnectionGuard(self._disconnect)

    def wait(self, timeout: float) -> Collection[str]:
        with self._guard:
            return self._wait(monotonic() + timeout)

    def close(self) -> None:
        self._guard.close()

    def _disconnect(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            consumer.close()

    def _wait(self, deadline: float) -> Collection[str]:
        try:
            if self._consumer is not None:
                heard = self._listen(self._consumer, deadline)
                if heard is not None:
                    return heard
                self._disconnect()
            if not self._guard.is_closed:
                self._connect()
        except KafkaException as error:
            self._disconnect()
            raise self._errors.unavailable(error.args[0]) from None
        except BaseException:
            self._disconnect()
            raise
        return ()

    def _listen(self, consumer: Consumer, deadline: float) -> Collection[str] | None:
        """What is heard until the deadline; `None` when the broker or the topic is lost."""
        heard: set[str] = set()
        while not (heard or self._guard.is_closed):
            left = deadline - monotonic()
            first = consumer.poll(min(max(left, 0.0), POLL_SECONDS))
            messages = [] if first is None else [first, *consumer.consume(_BATCH, 0)]
            if self._errors.is_lost:
                return None
            for message in messages:
                if (error := message.error()) is not None:
                    if error.code() in NO_TOPIC:
                        return None
                    raise self._errors.unavailable(error)
                if message.key() == self._key:
                    heard.update(decode_notification(self._destination, message.value() or b""))
            if left <= 0:
                break
        return heard

    def _connect(self) -> None:
        denied = _make_topic(self._address)
        self._errors = _errors(self._address)
        self._consumer = consumer = Consumer(
            settings(self._address)
            | _CONSUMER
            | {
                "group.id": f"{self._address.subscription}.{self._destination}",
                "error_cb": self._errors.note,
            }
        )
        # "The end" would be looked for later, when something may have been sent already.
        consumer.assign(
            [TopicPartition(self._address.topic, _PARTITION, self._end(consumer, denied))]
        )

    def _end(self, consumer: Consumer, denied: KafkaError | None) -> int:
        partition = TopicPartition(self._address.topic, _PARTITION)
        deadline = monotonic() + RESPONSE_SECONDS
        while True:
            left = max(deadline - monotonic(), 0.1)
            try:
                _, end = consumer.get_watermark_offsets(partition, timeout=left, cached=False)
                return int(end)
            except KafkaException as error:
                failed: KafkaError = error.args[0]
                if denied and failed.code() in NO_TOPIC:
                    raise self._errors.unavailable(denied) from None
                # What was just made, all brokers know in a moment.
                if failed.code() not in NO_TOPIC | _NO_LEADER or monotonic() > deadline:
                    raise self._errors.unavailable(failed) from None
            consumer.poll(0.02)


def _make_topic(address: BrokerAddress) -> KafkaError | None:
    """Make the topic if it is missing; returns why the user may not, who then needs it to be there.

    Raises `Unavailable`, at once when no server can be reached.
    """
    errors = _errors(address)
    admin = admin_client(address, errors)
    copies = -1  # as many as is usual there
    topic = NewTopic(address.topic, 1, copies, config=dict(_TOPIC))
    try:
        made = admin.create_topics([topic], request_timeout=RESPONSE_SECONDS)[address.topic]
        wait_for(admin, [made], errors)
    finally:
        del admin  # as in `wait_for`
    failed = made.exception()
    if not isinstance(failed, KafkaException):
        return None
    why: KafkaError = failed.args[0]
    if why.code() not in {KafkaError.TOPIC_ALREADY_EXISTS, *DENIED}:
        raise errors.unavailable(why)
    return why if why.code() in DENIED else None


def _errors(address: BrokerAddress) -> ClientErrors:
    rights = f"read and write the topic, and describe the groups {address.subscription}.*"
    return ClientErrors(address, rights)
