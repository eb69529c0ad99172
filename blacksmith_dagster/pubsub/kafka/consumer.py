"""The messages of a Kafka topic."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent import futures
from concurrent.futures import Future
from dataclasses import dataclass
from time import monotonic
from typing import Any

import confluent_kafka
from confluent_kafka import (
    TIMESTAMP_NOT_AVAILABLE,
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
from blacksmith_dagster.pubsub.interface import ConnectionLost, Consumer, CursorOf, Received
from blacksmith_dagster.pubsub.kafka.connection import (
    CONSUMER,
    DENIED,
    NO_TOPIC,
    POLL_SECONDS,
    RESPONSE_SECONDS,
    ClientErrors,
    admin_client,
    wait_for,
)
from blacksmith_dagster.pubsub.messages import header_text, unix_time
from blacksmith_dagster.store.records import Cursor

_log = logging.getLogger(__name__)

_CHECK_SECONDS = 5.0  # between two checks whether the topic or its partitions changed
_CLOSE_SECONDS = 0.5
_CONSUMER: dict[str, Any] = CONSUMER | {
    "isolation.level": "read_committed",
    # Report a partition's end: it lies past the last message, as a transaction's end has an offset too.
    "enable.partition.eof": True,
    # Report an offset that is missing: reading begins again and finds out why.
    "auto.offset.reset": "error",
}
# The topic or messages were deleted, or a leader has moved: starting again shows which.
_RECONNECT_CODES = NO_TOPIC | {KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE}
_COMMIT_ERRORS = DENIED | {KafkaError.UNKNOWN_MEMBER_ID}


class KafkaConsumer(Consumer[confluent_kafka.Consumer]):
    """A `Consumer` of all partitions of a topic; its address has the topic and the group.

    The holder of the listener's lock reads, so it assigns itself the partitions. The group's own
    election knows nothing of that lock: a reader that hangs would keep its partitions for as long as
    its client sends heartbeats, and one that was killed for as long as its session lasts, while the
    holder of the lock waits. The group only keeps the offsets, for tools that watch its lag.
    """

    def __init__(self, address: BrokerAddress, cursor_of: CursorOf) -> None:
        super().__init__(address, cursor_of)
        self._errors = self._new_errors()
        self._admin: AdminClient | None = None
        self._topic: object = None  # its id and how many partitions it has
        self._description: Future[TopicDescription] | None = None
        self._check_at = 0.0
        self._partitions: dict[int, _AssignedPartition] = {}
        self._uncommitted = False
        self._commits: Future[ConsumerGroupTopicPartitions] | None = None
        self._logged_errors: set[str] = set()

    def _new_errors(self) -> ClientErrors:
        return ClientErrors(
            self._address, f"read the topic and the group {self._address.subscription}"
        )

    def _has_cursor(self) -> bool:
        return any(partition.cursor is not None for partition in self._partitions.values())

    def _disconnect(self) -> None:
        self._finish_commits()
        self._admin = self._description = self._commits = None
        self._partitions = {}
        self._uncommitted = False
        super()._disconnect()

    # -- reading

    def _read(
        self, connection: confluent_kafka.Consumer, limit: int, deadline: float
    ) -> Sequence[Received]:
        while not self._is_closed:
            with self._errors.translated():
                self._check_topic()
                self._commit()
                left = max(deadline - monotonic(), 0.0)
                first = connection.poll(min(left, POLL_SECONDS))
                records = [] if first is None else [first, *connection.consume(limit - 1, 0)]
                if self._errors.is_lost:
                    raise self._errors.lost()
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
                    raise self._errors.lost(error)
                if error.code() != KafkaError._PARTITION_EOF:
                    raise KafkaException(error)
                self._partitions[number].next = offset
                continue
            partition = self._partitions[number]
            before, partition.cursor, partition.next = partition.cursor, str(offset), offset + 1
            cursor = Cursor(partition.reader, before, partition.cursor)
            received.append(Received(_message(record), cursor))
        return received

    def _lag(self, connection: confluent_kafka.Consumer) -> int:
        lag = 0
        for number, partition in self._partitions.items():
            topic_partition = TopicPartition(self._address.topic, number)
            _, end = connection.get_watermark_offsets(topic_partition, cached=True)
            partition.end = max(partition.end, end)
            lag += max(0, partition.end - partition.next)
        return lag

    # -- committing

    def _acknowledge(self, connection: confluent_kafka.Consumer) -> None:  # noqa: ARG002 - `_commit` says why
        self._uncommitted = self._has_cursor()
        self._commit()

    def _commit(self) -> None:
        """Send the group's offsets, one request at a time: later ones go with the next request.

        The reading client does not do this: closing it would wait for the broker's response.
        """
        if self._commits is not None and self._commits.done():
            self._note_commit(self._commits)
            self._commits = None
        if self._uncommitted and self._commits is None and self._admin is not None:
            self._uncommitted = False
            group = self._address.subscription
            read = [number for number, part in self._partitions.items() if part.cursor is not None]
            commits = [ConsumerGroupTopicPartitions(group, self._next_offsets(read))]
            self._commits = self._admin.alter_consumer_group_offsets(
                commits, request_timeout=RESPONSE_SECONDS
            )[group]

    def _next_offsets(self, numbers: Iterable[int]) -> list[TopicPartition]:
        topic = self._address.topic
        return [TopicPartition(topic, number, self._partitions[number].next) for number in numbers]

    def _note_commit(self, commits: Future[ConsumerGroupTopicPartitions]) -> None:
        # The store's cursors decide: only the lag that other tools show is wrong.
        failed = commits.exception()
        if isinstance(failed, KafkaException):
            errors = [failed.args[0]]
        else:
            partitions = commits.result().topic_partitions or ()
            errors = [partition.error for partition in partitions if partition.error]
        serious = {error.str() for error in errors if error.code() in _COMMIT_ERRORS}
        for reason in serious - self._logged_errors:
            self._logged_errors.add(reason)
            _log.warning(
                "%s: the offsets of group %s are not committed, so its lag is shown wrongly: %s; "
                "let the user read the group, and keep other members out of it. Reading continues",
                *(self._address.label, self._address.subscription, reason),
            )

    def _finish_commits(self) -> None:
        """Wait briefly for the request in progress: closing the client would abort it."""
        deadline = monotonic() + _CLOSE_SECONDS
        while not self._errors.is_lost and (left := deadline - monotonic()) > 0:
            self._commit()
            if self._commits is None:
                return
            futures.wait([self._commits], left)

    # -- connecting

    def _open(self) -> confluent_kafka.Consumer:
        self._errors = self._new_errors()
        with self._errors.translated():
            self._admin = admin_client(self._errors)
            (topic,) = self._results([self._describe()])
            self._topic = _identity(topic)
            self._check_at = monotonic() + _CHECK_SECONDS
            self._partitions = self._assigned(topic)
            self._uncommitted = self._has_cursor()
            group = {"group.id": self._address.subscription}
            return confluent_kafka.Consumer(self._errors.settings(_CONSUMER | group))

    def _prepare(self, connection: confluent_kafka.Consumer) -> None:
        with self._errors.translated():
            connection.assign(self._next_offsets(self._partitions))

    def _assigned(self, topic: TopicDescription) -> dict[int, _AssignedPartition]:
        """The partitions, each at its reader's cursor in the store."""
        numbers = [partition.id for partition in topic.partitions]
        partitions = [TopicPartition(topic.name, number) for number in numbers]
        begins = self._offsets(partitions, OffsetSpec.earliest)
        ends = self._offsets(partitions, OffsetSpec.latest)
        assigned = {}
        for number, begin, end in zip(numbers, begins, ends, strict=True):
            topic_id = _url_safe(topic.topic_id)
            reader = f"kafka/{self._address.subscription}/{topic_id}/{number}"
            cursor = self._cursor_of(reader)
            start = begin if cursor is None else int(cursor) + 1
            if not begin <= start <= end:
                self._warn_of_gap(number, start, begin, end)
                start = begin
            assigned[number] = _AssignedPartition(reader, cursor, start, end)
        return assigned

    def _offsets(self, partitions: Sequence[TopicPartition], spec: Callable[[], Any]) -> list[int]:
        admin: Any = self._admin
        requests = admin.list_offsets(
            dict.fromkeys(partitions, spec()), request_timeout=RESPONSE_SECONDS
        )
        results = self._results([requests[partition] for partition in partitions])
        return [result.offset for result in results]

    def _warn_of_gap(self, partition: int, start: int, begin: int, end: int) -> None:
        label = self._address.label
        if start < begin:
            _log.warning(
                "%s: %d offsets of partition %d were deleted before they were read: it begins at %d "
                "and was read up to %d; give the topic a longer retention, or read more often",
                *(label, begin - start, partition, begin, start - 1),
            )
        else:
            _log.warning(
                "%s: partition %d was read up to %d and ends at %d: the broker has lost its end; it "
                "is read again from its oldest message, at %d",
                *(label, partition, start - 1, end, begin),
            )

    def _check_topic(self) -> None:
        """Every few seconds: begin again if the topic was created again or has more partitions."""
        if self._description is None:
            if monotonic() >= self._check_at:
                self._description = self._describe()
        elif self._description.done():
            (topic,), self._description = self._results([self._description]), None
            self._check_at = monotonic() + _CHECK_SECONDS
            if _identity(topic) != self._topic:
                raise ConnectionLost(f"{self._address.label}: the topic has changed")

    def _describe(self) -> Future[TopicDescription]:
        assert self._admin is not None
        topics = TopicCollection([self._address.topic])
        requests = self._admin.describe_topics(topics, request_timeout=RESPONSE_SECONDS)
        future: Future[TopicDescription] = requests[self._address.topic]
        return future

    def _results(self, requests: Sequence[Future[Any]]) -> list[Any]:
        assert self._admin is not None
        wait_for(self._admin, requests, self._errors)
        try:
            return [request.result() for request in requests]
        except KafkaException as error:
            if error.args[0].code() in NO_TOPIC:
                raise Unavailable(
                    f"{self._address.label}: there is no such topic; create it, or fix the topic "
                    f"of the Subscription, or the server in {self._address.variable}"
                ) from None
            raise


@dataclass(slots=True)
class _AssignedPartition:
    """A partition that is read.

    `cursor` is the reader's once everything that was received is committed, `next` the offset to read
    next, `end` the offset behind the last message seen so far.
    """

    reader: str
    cursor: str | None
    next: int
    end: int


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
