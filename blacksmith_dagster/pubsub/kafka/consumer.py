"""The messages of a topic of Kafka."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent import futures
from concurrent.futures import Future
from dataclasses import dataclass
from time import monotonic
from typing import Any

from confluent_kafka import (
    TIMESTAMP_NOT_AVAILABLE,
    Consumer,
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
    Uuid,
)
from confluent_kafka.admin import AdminClient, OffsetSpec, TopicDescription

from blacksmith_dagster.errors import Unavailable
from blacksmith_dagster.pipeline.triggers import Message
from blacksmith_dagster.pubsub.address import BrokerAddress
from blacksmith_dagster.pubsub.connection import ConnectionGuard
from blacksmith_dagster.pubsub.interface import CursorOf, Received
from blacksmith_dagster.pubsub.kafka.connection import (
    CONSUMER,
    DENIED,
    NO_TOPIC,
    POLL_SECONDS,
    RESPONSE_SECONDS,
    ClientErrors,
    admin_client,
    settings,
    wait_for,
)
from blacksmith_dagster.pubsub.wire import header_text, unix_time
from blacksmith_dagster.store.interface import Cursor

_logger = logging.getLogger(__name__)

_CHECK_SECONDS = 5.0  # between two looks whether the topic is the same and has the same partitions
_CLOSE_SECONDS = 0.5
_CONSUMER: dict[str, Any] = CONSUMER | {
    "isolation.level": "read_committed",
    # Where a partition ends, behind what its messages say: a transaction's end takes an offset too.
    "enable.partition.eof": True,
    # An offset that is not there is reported, and looked into.
    "auto.offset.reset": "error",
}
# The topic was removed, or messages were, or a leader has moved: to begin anew finds out which.
_RECONNECT_CODES = NO_TOPIC | {KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE}
_COMMIT_ERRORS = DENIED | {KafkaError.UNKNOWN_MEMBER_ID}


class KafkaConsumer:
    """A `Consumer` of all partitions of a topic; its address has the topic and the group.

    Who reads is who holds the listener's lock, so the partitions are assigned by hand. The group's
    own election knows nothing of that lock: a reader that hangs would keep its partitions for as long
    as its client sends heartbeats, and one that was killed for as long as its session lasts, while
    the holder of the lock waits. The group has the offsets, for whoever watches its lag.
    """

    def __init__(self, address: BrokerAddress, cursor_of: CursorOf) -> None:
        self._address = address
        self._cursor_of = cursor_of
        self._errors = self._new_errors()
        self._admin: AdminClient | None = None
        self._consumer: Consumer | None = None
        self._topic: object = None  # its id and how many partitions it has
        self._description: Future[TopicDescription] | None = None
        self._check_at = 0.0
        self._partitions: dict[int, _AssignedPartition] = {}
        self._uncommitted = False
        self._commits: Future[ConsumerGroupTopicPartitions] | None = None
        self._logged_errors: set[str] = set()
        self._guard = ConnectionGuard(self._disconnect)

    def receive(self, limit: int, timeout: float) -> Sequence[Received]:
        """See `Consumer`."""
        deadline = monotonic() + timeout
        with self._guard:
            try:
                if self._consumer is None and not self._guard.is_closed:
                    self._connect()
                try:
                    return self._read(limit, deadline)
                except _ReconnectNeeded as why:
                    _logger.debug("%s: reading anew: %s", self._address.label, why)
                    self._disconnect()
                    self._connect()
                    return ()
            except KafkaException as error:
                self._disconnect()
                raise self._errors.unavailable(error.args[0]) from None
            except BaseException:
                self._disconnect()
                raise

    def acknowledge(self) -> None:
        """See `Consumer`."""
        with self._guard:
            self._uncommitted = any(each.at is not None for each in self._partitions.values())
            self._commit()

    def lag(self) -> int | None:
        """See `Consumer`."""
        with self._guard:
            consumer = self._consumer
            if consumer is None:
                return None
            lag = 0
            for number, partition in self._partitions.items():
                where = TopicPartition(self._address.topic, number)
                _, seen = consumer.get_watermark_offsets(where, cached=True)
                partition.end = max(partition.end, seen)
                lag += max(0, partition.end - partition.next)
            return lag

    def close(self) -> None:
        """See `Consumer`."""
        self._guard.close()

    def _new_errors(self) -> ClientErrors:
        return ClientErrors(
            self._address, f"read the topic and the group {self._address.subscription}"
        )

    def _disconnect(self) -> None:
        self._finish_commits()
        consumer, self._consumer = self._consumer, None
        self._admin = self._description = self._commits = None
        self._partitions = {}
        self._uncommitted = False
        if consumer is not None:
            consumer.close()

    # -- reading

    def _read(self, limit: int, deadline: float) -> Sequence[Received]:
        while (consumer := self._consumer) is not None and not self._guard.is_closed:
            self._check_topic()
            self._commit()
            left = max(deadline - monotonic(), 0.0)
            first = consumer.poll(min(left, POLL_SECONDS))
            records = [] if first is None else [first, *consumer.consume(limit - 1, 0)]
            if self._errors.is_lost:
                raise _ReconnectNeeded("no broker responds")
            received = self._received(records)
            if received or not left:
                return received
        return ()

    def _received(self, records: Sequence[Any]) -> Sequence[Received]:
        received = []
        for record in records:
            number, offset = record.partition(), record.offset()
            if (error := record.error()) is not None:
                if error.code() in _RECONNECT_CODES:
                    raise _ReconnectNeeded(error.str())
                if error.code() != KafkaError._PARTITION_EOF:
                    raise KafkaException(error)
                self._partitions[number].next = offset
                continue
            partition = self._partitions[number]
            at, partition.at, partition.next = partition.at, str(offset), offset + 1
            received.append(Received(_message(record), Cursor(partition.reader, at, partition.at)))
        return received

    # -- committing

    def _commit(self) -> None:
        """Tell the group's offsets, one request at a time: what comes meanwhile goes with the next.

        Not by the reading client, whose end would wait for the broker's response.
        """
        if self._commits is not None and self._commits.done():
            self._note_commit(self._commits)
            self._commits = None
        if self._uncommitted and self._commits is None and self._admin is not None:
            self._uncommitted = False
            group, topic = self._address.subscription, self._address.topic
            offsets = [
                TopicPartition(topic, number, partition.next)
                for number, partition in self._partitions.items()
                if partition.at is not None
            ]
            commits = [ConsumerGroupTopicPartitions(group, offsets)]
            self._commits = self._admin.alter_consumer_group_offsets(
                commits, request_timeout=RESPONSE_SECONDS
            )[group]

    def _note_commit(self, commits: Future[ConsumerGroupTopicPartitions]) -> None:
        # The store's cursors count: nothing but what others see of the lag is wrong.
        failed = commits.exception()
        if isinstance(failed, KafkaException):
            errors = [failed.args[0]]
        else:
            errors = [each.error for each in commits.result().topic_partitions or () if each.error]
        serious = {error.str() for error in errors if error.code() in _COMMIT_ERRORS}
        for why in serious - self._logged_errors:
            self._logged_errors.add(why)
            _logger.warning(
                "%s: the offsets of group %s are not committed, and its lag is shown wrongly: %s; "
                "let the user read the group, and nobody else be a member of it. Reading goes on",
                *(self._address.label, self._address.subscription, why),
            )

    def _finish_commits(self) -> None:
        """Wait a moment for what is on its way: the end of its client would end it."""
        deadline = monotonic() + _CLOSE_SECONDS
        while not self._errors.is_lost and (wait := deadline - monotonic()) > 0:
            self._commit()
            if self._commits is None:
                return
            futures.wait([self._commits], wait)

    # -- connecting

    def _connect(self) -> None:
        self._errors = self._new_errors()
        self._admin = admin_client(self._address, self._errors)
        (topic,) = self._results([self._describe()])
        self._topic = _identity(topic)
        self._check_at = monotonic() + _CHECK_SECONDS
        self._partitions = self._assigned(topic)
        self._consumer = Consumer(
            settings(self._address)
            | _CONSUMER
            | {
                "group.id": self._address.subscription,
                "error_cb": self._errors.note,
            }
        )
        self._consumer.assign(
            [
                TopicPartition(self._address.topic, number, partition.next)
                for number, partition in self._partitions.items()
            ]
        )
        self._uncommitted = any(each.at is not None for each in self._partitions.values())

    def _assigned(self, topic: TopicDescription) -> dict[int, _AssignedPartition]:
        """The partitions, each where the store says that its reader is."""
        where = [TopicPartition(topic.name, each.id) for each in topic.partitions]
        begins = self._offsets(where, OffsetSpec.earliest)
        ends = self._offsets(where, OffsetSpec.latest)
        placed = {}
        for each, begin, end in zip(where, begins, ends, strict=True):
            reader = "/".join(
                (
                    "kafka",
                    self._address.subscription,
                    _url_safe(topic.topic_id),
                    str(each.partition),
                )
            )
            at = self._cursor_of(reader)
            start = begin if at is None else int(at) + 1
            if not begin <= start <= end:
                self._warn_of_gap(each.partition, start, begin, end)
                start = begin
            placed[each.partition] = _AssignedPartition(reader, at, start, end)
        return placed

    def _offsets(self, where: Sequence[TopicPartition], which: Callable[[], Any]) -> list[int]:
        admin: Any = self._admin
        asked = admin.list_offsets(dict.fromkeys(where, which()), request_timeout=RESPONSE_SECONDS)
        return [offset.offset for offset in self._results([asked[each] for each in where])]

    def _warn_of_gap(self, partition: int, start: int, begin: int, end: int) -> None:
        label = self._address.label
        if start < begin:
            _logger.warning(
                "%s: %d offsets of partition %d were deleted before they were read: it begins at %d "
                "and was read up to %d; give the topic a longer retention, or read more often",
                *(label, begin - start, partition, begin, start - 1),
            )
        else:
            _logger.warning(
                "%s: partition %d was read up to %d and ends at %d: the broker has lost its end; it "
                "is read again from its oldest message, at %d",
                *(label, partition, start - 1, end, begin),
            )

    def _check_topic(self) -> None:
        """Every now and then: a topic that was made anew, or has more partitions, is begun anew."""
        if self._description is None:
            if monotonic() >= self._check_at:
                self._description = self._describe()
        elif self._description.done():
            (topic,), self._description = self._results([self._description]), None
            self._check_at = monotonic() + _CHECK_SECONDS
            if _identity(topic) != self._topic:
                raise _ReconnectNeeded("the topic is another")

    def _describe(self) -> Future[TopicDescription]:
        assert self._admin is not None
        topics = TopicCollection([self._address.topic])
        asked = self._admin.describe_topics(topics, request_timeout=RESPONSE_SECONDS)
        future: Future[TopicDescription] = asked[self._address.topic]
        return future

    def _results(self, asked: Sequence[Future[Any]]) -> list[Any]:
        assert self._admin is not None
        wait_for(self._admin, asked, self._errors)
        try:
            return [each.result() for each in asked]
        except KafkaException as error:
            if error.args[0].code() in NO_TOPIC:
                raise Unavailable(
                    f"{self._address.label}: there is no such topic; create it, or fix the topic "
                    f"of the Subscription, or the server in {self._address.variable}"
                ) from None
            raise


@dataclass(slots=True)
class _AssignedPartition:
    """`at` is the reader's cursor once all that was handed out is committed, `next` the offset
    that is read next, `end` the one behind the last that is known to be there."""

    reader: str
    at: str | None
    next: int
    end: int


class _ReconnectNeeded(Exception):
    """What is read may not be there any more, or be another."""


def _message(record: Any) -> Message:
    key, (kind, milliseconds) = record.key(), record.timestamp()
    topic = record.topic()
    return Message(
        record.value() or b"",
        {name: header_text(value) for name, value in record.headers() or ()},
        topic,
        None if key is None else header_text(key),
        sent_at=None if kind == TIMESTAMP_NOT_AVAILABLE else unix_time(milliseconds / 1000),
        place=f"{topic}/{record.partition()}@{record.offset()}",
    )


def _identity(topic: TopicDescription) -> object:
    return _url_safe(topic.topic_id), len(topic.partitions)


def _url_safe(topic_id: Uuid) -> str:
    """A topic's id as Kafka's own tools show it, in the alphabet of URLs."""
    return str(topic_id).translate(str.maketrans("+/", "-_"))
