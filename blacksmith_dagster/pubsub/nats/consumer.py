"""The messages of a NATS JetStream stream."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from datetime import datetime
from time import monotonic

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, RetentionPolicy, StreamInfo
from nats.js.errors import APIError, NotFoundError, ServiceUnavailableError

from blacksmith_dagster.errors import SettingsError, Unavailable
from blacksmith_dagster.pipeline.triggers import Message
from blacksmith_dagster.pubsub.address import BrokerAddress
from blacksmith_dagster.pubsub.interface import ConnectionLost, Consumer, CursorOf, Received
from blacksmith_dagster.pubsub.messages import unix_time
from blacksmith_dagster.pubsub.nats.connection import RESPONSE_SECONDS, NATSConnection
from blacksmith_dagster.store.records import Cursor

_log = logging.getLogger(__name__)

# How often we ask whether the server still has our consumer: it does not tell us.
_CHECK_SECONDS = 2.0
# How many messages one request asks for, and how long the server remembers it. Twice as many messages
# may wait here, and that many bytes: while some are committed, the next ones are already here.
_BATCH = 2000
_BATCH_BYTES = 32 << 20
_REQUEST_SECONDS = 30.0
# Longer than a commit takes: messages are not sent again meanwhile.
_ACK_SECONDS = 300.0
_NAME = re.compile(r"[^.*>/\\]+")
_DONE_STATUSES = ("404", "408")  # of a request: there are no more messages, or it took too long


class NATSConsumer(Consumer[NATSConnection]):
    """A `Consumer` of a subject, through a durable consumer on the stream that has it.

    The durable consumer is created again at the store's cursor whenever reading begins. If it
    were resumed, it would redeliver unacknowledged messages after newer ones, and the cursor would
    already be past them.
    """

    def __init__(self, address: BrokerAddress, cursor_of: CursorOf) -> None:
        if not _NAME.fullmatch(address.subscription):
            raise SettingsError(
                f"Subscription(subscription={address.subscription!r}): NATS accepts no name with "
                "'.', '*', '>', '/' or '\\'; choose another"
            )
        super().__init__(address, cursor_of)
        self._changed = threading.Event()
        self._check_at = 0.0

    def _wake(self) -> None:
        self._changed.set()

    def _open(self) -> NATSConnection:
        return NATSConnection(self._address, self._changed.set)

    def _prepare(self, connection: NATSConnection) -> None:
        stream = connection.call(lambda: self._find_stream(connection.client))
        # Not in the connection's loop, which the database would block.
        self._consumer = _DurableConsumer(
            connection.client, self._address, stream, self._cursor_of, self._changed
        )
        connection.call(lambda: self._start(self._consumer))
        self._check_at = monotonic() + _CHECK_SECONDS

    def _read(self, connection: NATSConnection, limit: int, deadline: float) -> Sequence[Received]:
        consumer = self._consumer
        while True:
            self._changed.clear()
            if self._is_closed:
                return ()
            if monotonic() >= self._check_at:
                connection.call(consumer.check)
                self._check_at = monotonic() + _CHECK_SECONDS
            elif consumer.has_room:
                connection.call(consumer.request_more)
            if consumer.is_lost or connection.is_lost:
                raise ConnectionLost(f"{self._address.label}: the consumer is lost")
            received = consumer.take(limit)
            left = deadline - monotonic()
            if received or left <= 0:
                return received
            self._changed.wait(min(left, max(0.0, self._check_at - monotonic())))

    def _acknowledge(self, connection: NATSConnection) -> None:
        connection.call(self._consumer.acknowledge)

    def _lag(self, connection: NATSConnection) -> int:
        return connection.call(self._consumer.lag)

    # -- in the connection's loop

    async def _find_stream(self, client: Client) -> StreamInfo:
        """The stream that has the subject."""
        topic = self._address.topic
        server = _jetstream(client)
        with self._explained_errors():
            name = await server.find_stream_name_by_subject(topic)
            if "*" in topic or ">" in topic:
                query = json.dumps({"subject": topic}).encode()
                response = await client.request("$JS.API.STREAM.NAMES", query)
                if len(names := json.loads(response.data)["streams"]) > 1:
                    raise SettingsError(
                        f"{self._address.label}: the subject is in several streams: "
                        f"{', '.join(sorted(names))}; declare a Subscription for each"
                    )
            return await server.stream_info(name)

    async def _start(self, consumer: _DurableConsumer) -> None:
        with self._explained_errors():
            await consumer.create()
        await consumer.listen()

    @contextlib.contextmanager
    def _explained_errors(self) -> Iterator[None]:
        label = self._address.label
        try:
            yield
        except NotFoundError:
            raise Unavailable(
                f"{label}: no JetStream stream has this subject; add one, or fix the topic of the "
                f"Subscription, or the server in {self._address.variable}"
            ) from None
        except ServiceUnavailableError:
            raise Unavailable(f"{label} has no JetStream; start nats-server with -js") from None
        except APIError as error:
            name = self._address.subscription
            raise Unavailable(f"{label} refused the consumer {name}: {error.description}") from None


class _DurableConsumer:
    """A durable consumer and the messages that it has sent, from when reading begins until it is lost.

    Everything but `take` and the properties is called in the connection's loop.
    """

    def __init__(
        self,
        client: Client,
        address: BrokerAddress,
        stream: StreamInfo,
        cursor_of: CursorOf,
        changed: threading.Event,
    ) -> None:
        self._client = client
        self._address = address
        self._server = _jetstream(client)
        self._stream = str(stream.config.name)
        self._retention = stream.config.retention
        self._reader = _reader(address, stream)
        self._cursor = cursor_of(self._reader)
        # Sequence numbers up to these were handed out, and are committed.
        self._handed_out = self._committed = _first_sequence(address, stream, self._cursor) - 1
        self._changed = changed
        self._messages: deque[Msg] = deque()
        self._bytes_received = self._bytes_taken = 0  # each is written by one thread
        self._to_acknowledge: list[Msg] = []
        self._inbox = client.new_inbox()
        self._requested = 0
        self._request_ends_at = 0.0
        self.is_lost = False

    @property
    def has_room(self) -> bool:
        """Whether there is room for more messages, and no request for them is open."""
        size = self._bytes_received - self._bytes_taken
        return not self._requested and len(self._messages) < 2 * _BATCH and size < _BATCH_BYTES

    def take(self, limit: int) -> Sequence[Received]:
        """The messages that have arrived, `limit` at most."""
        received: list[Received] = []
        while self._messages and len(received) < limit:
            message = self._messages.popleft()
            self._bytes_taken += len(message.data)
            sequence, sent_at = _sequence_and_time(message.reply)
            self._to_acknowledge.append(message)
            if sequence <= self._handed_out:  # sent again
                continue
            self._handed_out = sequence
            before, self._cursor = self._cursor, str(sequence)
            received.append(
                Received(
                    _message(message, self._stream, sequence, sent_at),
                    Cursor(self._reader, before, self._cursor),
                )
            )
        return received

    async def create(self) -> None:
        """Create the durable consumer again without losing a message."""
        durable = self._address.subscription
        config = ConsumerConfig(
            durable_name=durable,
            filter_subject=self._address.topic,
            ack_wait=_ACK_SECONDS,
            max_ack_pending=-1,
        )
        resume_config = config.evolve(
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=self._handed_out + 1
        )
        if self._retention == RetentionPolicy.WORK_QUEUE:
            # A work-queue stream holds only unacknowledged messages, and accepts no start sequence.
            await self._delete(durable)
            await self._server.add_consumer(self._stream, config)
        elif self._retention == RetentionPolicy.INTEREST:
            # The stream drops messages that no consumer covers, so a temporary one covers them.
            temporary_name = f"{durable}_handover"
            await self._server.add_consumer(
                self._stream, config.evolve(durable_name=temporary_name)
            )
            await self._delete(durable)
            await self._server.add_consumer(self._stream, resume_config)
            await self._delete(temporary_name)
        else:
            await self._delete(durable)
            resume_config.ack_policy = AckPolicy.ALL
            await self._server.add_consumer(self._stream, resume_config)

    async def _delete(self, consumer: str) -> None:
        with contextlib.suppress(NotFoundError):
            await self._server.delete_consumer(self._stream, consumer)

    async def listen(self) -> None:
        """Begin to receive messages."""
        # Without the client's own limits, past which it drops messages: we request what we can hold.
        await self._client.subscribe(
            self._inbox, cb=self._on_message, pending_msgs_limit=0, pending_bytes_limit=0
        )
        await self.request_more()

    async def request_more(self) -> None:
        """Request the next messages."""
        self._requested = _BATCH
        self._request_ends_at = monotonic() + _REQUEST_SECONDS
        request = {
            "batch": _BATCH,
            "max_bytes": max(_BATCH_BYTES, 2 * self._client.max_payload),
            "expires": int(_REQUEST_SECONDS * 1e9),
        }
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._address.subscription}"
        await self._client.publish(subject, json.dumps(request).encode(), self._inbox)

    async def _on_message(self, message: Msg) -> None:
        if message.subject == self._inbox:  # from the server itself
            headers = message.headers or {}
            status, description = headers.get("Status"), headers.get("Description", "")
            self._requested = 0
            self.is_lost = status not in _DONE_STATUSES and "MaxBytes" not in description
        else:
            self._messages.append(message)
            self._bytes_received += len(message.data)
            self._requested -= 1
        if self.has_room and not self.is_lost:
            await self.request_more()
        self._changed.set()

    async def check(self) -> None:
        """Ask the server whether the consumer still exists."""
        try:
            await self._server.consumer_info(self._stream, self._address.subscription)
        except (nats.errors.Error, OSError) as error:
            _log.debug("%s: the consumer is lost: %s", self._address.label, error)
            self.is_lost = True
            return
        if self.has_room or monotonic() > self._request_ends_at:
            await self.request_more()
        if self._handed_out == self._committed:  # redelivered messages, if any
            await self.acknowledge()

    async def acknowledge(self) -> None:
        """Acknowledge everything that was handed out."""
        done, self._to_acknowledge, self._committed = self._to_acknowledge, [], self._handed_out
        for message in done[-1:] if self._retention == RetentionPolicy.LIMITS else done:
            await self._client.publish(message.reply, b"+ACK")

    async def lag(self) -> int:
        """How many messages have not been handed out yet."""
        response = await self._server.consumer_info(self._stream, self._address.subscription)
        return (response.num_pending or 0) + len(self._messages)


def _jetstream(client: Client) -> JetStreamContext:
    return client.jetstream(timeout=RESPONSE_SECONDS)


def _reader(address: BrokerAddress, stream: StreamInfo) -> str:
    # A stream that was deleted and created again begins with its own first message.
    name = f"nats/{address.subscription}/{stream.config.name}@{stream.created:%Y%m%dT%H%M%S.%fZ}"
    if stream.config.retention == RetentionPolicy.WORK_QUEUE:
        # A cursor means that every earlier message was read, which holds for one subject only.
        name += f"/{address.topic}"
    return name


def _first_sequence(address: BrokerAddress, stream: StreamInfo, stored: str | None) -> int:
    """The sequence number to read from."""
    if stored is None:
        return 1
    begin, state = int(stored) + 1, stream.state
    if begin > state.last_seq + 1:
        _log.warning(
            "%s: stream %s was read up to %s and ends at %d: the broker has lost its end; it is read "
            "again from its oldest message",
            *(address.label, stream.config.name, stored, state.last_seq),
        )
        return 1
    is_all = stream.config.subjects == [address.topic]  # otherwise other subjects' may be missing
    if stream.config.retention == RetentionPolicy.LIMITS and is_all and begin < state.first_seq:
        _log.warning(
            "%s: %d messages of stream %s were deleted before they were read: it begins at %d and "
            "was read up to %s; let it keep more, or read more often",
            *(address.label, state.first_seq - begin, stream.config.name, state.first_seq, stored),
        )
    return begin


def _sequence_and_time(reply: str) -> tuple[int, datetime | None]:
    """A message's number in its stream and when it arrived there, from the subject that acknowledges it.

    nats-py reads the same in five times the time.

    >>> _sequence_and_time("$JS.ACK.orders.night.1.17.3.1700000000000000000.0")
    (17, datetime.datetime(2023, 11, 14, 22, 13, 20, tzinfo=datetime.timezone.utc))
    >>> _sequence_and_time("$JS.ACK.domain.account.orders.night.1.17.3.1700000000000000000.0.x")[0]
    17
    """
    words = reply.split(".")
    index = 5 if len(words) == 9 else 7
    return int(words[index]), unix_time(int(words[index + 2]) / 1e9)


def _message(message: Msg, stream: str, sequence: int, sent_at: datetime | None) -> Message:
    headers = message.headers or {}
    return Message(
        message.data,
        headers,
        message.subject,
        id=headers.get("Nats-Msg-Id") or None,
        sent_at=sent_at,
        place=f"{stream}@{sequence}",
    )
