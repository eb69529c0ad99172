"""Notifications through Kafka."""

from __future__ import annotations

from collections.abc import Collection
from time import monotonic
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.cimpl import NewTopic

from blacksmith_dagster.pubsub.address import BrokerAddress
from blacksmith_dagster.pubsub.interface import ConnectionLost, Publisher, Subscriber
from blacksmith_dagster.pubsub.kafka.connection import (
    CONSUMER,
    DENIED,
    NO_TOPIC,
    POLL_SECONDS,
    REQUEST_SECONDS,
    RESPONSE_SECONDS,
    ClientErrors,
    admin_client,
    wait_for,
)
from blacksmith_dagster.pubsub.messages import decode_notification, encode_notifications

_BATCH = 1000
# The only partition that is used: a notification is a few bytes, and a subscriber that reads one
# partition never misses that another was added.
_PARTITION = 0
_TOPIC = {
    "cleanup.policy": "delete",
    "retention.ms": str(3600 * 1000),
    "segment.ms": str(900 * 1000),  # only whole segments are deleted
}
# A topic that was deleted and created again is read from its beginning.
_CONSUMER: dict[str, Any] = CONSUMER | {"auto.offset.reset": "earliest"}
_PRODUCER: dict[str, Any] = {
    "linger.ms": 0,
    "acks": 1,
    "message.timeout.ms": int(1000 * RESPONSE_SECONDS),
    "topic.metadata.propagation.max.ms": int(1000 * REQUEST_SECONDS),
}
_NO_LEADER = {KafkaError.LEADER_NOT_AVAILABLE, KafkaError.NOT_LEADER_FOR_PARTITION}


class _Producer(Producer):
    def close(self) -> bool:
        self.purge(blocking=False)  # otherwise closing waits for the broker
        return True


class KafkaPublisher(Publisher[_Producer]):
    """See `Publisher`."""

    def _open(self) -> _Producer:
        _create_topic(self._address)
        self._errors = _errors(self._address)
        return _Producer(self._errors.settings(_PRODUCER))

    def _send(self, connection: _Producer, paths: Collection[str]) -> None:
        connection.poll(0)
        self._errors.clear()  # if an earlier error persists, it is reported again
        failed: list[KafkaError] = []

        def confirm(error: KafkaError | None, _: Message) -> None:
            if error is not None:
                failed.append(error)

        try:
            for destination, body in encode_notifications(paths).items():
                connection.produce(
                    self._address.topic, body, destination, _PARTITION, on_delivery=confirm
                )
        except KafkaException as error:
            raise self._errors.lost(error.args[0]) from None
        if connection.flush(RESPONSE_SECONDS) or failed:
            raise self._errors.lost(failed[0] if failed else None)


class KafkaSubscriber(Subscriber[Consumer]):
    """See `Subscriber`."""

    def _open(self) -> Consumer:
        self._denied = _create_topic(self._address)
        self._errors = _errors(self._address)
        group = {"group.id": f"{self._address.subscription}.{self._destination}"}
        return Consumer(self._errors.settings(_CONSUMER | group))

    def _prepare(self, connection: Consumer) -> None:
        # Kafka would look for "the end" later, when something may have been sent already.
        partition = TopicPartition(self._address.topic, _PARTITION, self._end(connection))
        connection.assign([partition])

    def _listen(self, connection: Consumer, deadline: float) -> Collection[str]:
        paths: set[str] = set()
        left = 1.0
        while left > 0 and not (paths or self._is_closed):
            left = deadline - monotonic()
            with self._errors.translated():
                first = connection.poll(min(max(left, 0.0), POLL_SECONDS))
                messages = [] if first is None else [first, *connection.consume(_BATCH, 0)]
            if self._errors.is_lost:
                raise self._errors.lost()
            for message in messages:
                if (error := message.error()) is not None:
                    if error.code() in NO_TOPIC:
                        raise ConnectionLost(error.str())
                    raise self._errors.unavailable(error)
                if message.key() == self._destination.encode():
                    paths.update(decode_notification(self._destination, message.value() or b""))
        return paths

    def _end(self, consumer: Consumer) -> int:
        partition = TopicPartition(self._address.topic, _PARTITION)
        deadline = monotonic() + RESPONSE_SECONDS
        while True:
            left = max(deadline - monotonic(), 0.1)
            try:
                _, end = consumer.get_watermark_offsets(partition, timeout=left, cached=False)
                return int(end)
            except KafkaException as failed:
                error: KafkaError = failed.args[0]
                if self._denied and error.code() in NO_TOPIC:
                    raise self._errors.unavailable(self._denied) from None
                # All brokers learn of a topic within a moment of its creation.
                if error.code() not in NO_TOPIC | _NO_LEADER or monotonic() > deadline:
                    raise self._errors.unavailable(error) from None
            consumer.poll(0.02)


def _create_topic(address: BrokerAddress) -> KafkaError | None:
    """Create the topic if it is missing; returns the error if the user may not, as it may exist.

    Raises `Unavailable`, at once when no server can be reached.
    """
    errors = _errors(address)
    admin = admin_client(errors)
    copies = -1  # as many as the cluster's default
    topic = NewTopic(address.topic, 1, copies, config=dict(_TOPIC))
    created = admin.create_topics([topic], request_timeout=RESPONSE_SECONDS)[address.topic]
    wait_for(admin, [created], errors)
    failed = created.exception()
    if not isinstance(failed, KafkaException):
        return None
    error: KafkaError = failed.args[0]
    if error.code() not in {KafkaError.TOPIC_ALREADY_EXISTS, *DENIED}:
        raise errors.unavailable(error)
    return error if error.code() in DENIED else None


def _errors(address: BrokerAddress) -> ClientErrors:
    rights = f"read and write the topic, and describe the groups {address.subscription}.*"
    return ClientErrors(address, rights)
