"""The messages of a JetStream stream of NATS."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from datetime import datetime
from time import monotonic

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, RetentionPolicy, StreamInfo
from nats.js.errors import APIError, NotFoundError, ServiceUnavailableError

from blacksmith_dagster.errors import SettingsError, Unavailable
from blacksmith_dagster.pipeline.subscription import Message
from blacksmith_dagster.pubsub.address import Address
from blacksmith_dagster.pubsub.interface import Positions, Received
from blacksmith_dagster.pubsub.nats.connection import Link, jetstream
from blacksmith_dagster.pubsub.wire import unix_time
from blacksmith_dagster.store.interface import Position

_logger = logging.getLogger(__name__)

# Whether the server still has our consumer is asked this often: it does not tell.
_CHECK_SECONDS = 2.0
# How many messages are asked for at once, and how long the server remembers that they were. Twice as
# many, and as many bytes again, may wait here: what is taken leaves enough for the next time.
_BATCH = 2000
_BATCH_BYTES = 32 << 20
_ASKED_SECONDS = 30.0
# What was received is not sent again while it is being committed.
_ACK_SECONDS = 300.0
_NAME = re.compile(r"[^.*>/\\]+")
_OVER = ("404", "408")  # an answer to what was asked for: there is no more, or it took too long


class NATSConsumer:
    """A `Consumer` of a subject, through a durable consumer on the stream that has it.

    That one is made anew whenever reading begins, behind the store's position. Gone on with, it would
    send what was not acknowledged late, behind newer messages, where no position finds it.
    """

    def __init__(self, address: Address, position: Positions) -> None:
        if not _NAME.fullmatch(address.subscription):
            raise SettingsError(
                f"Subscription(subscription={address.subscription!r}): NATS takes no name with "
                "'.', '*', '>', '/' or '\\'; choose another"
            )
        self._address = address
        self._position = position
        self._news = threading.Event()
        self._link = Link(address, self._news.set)
        self._reading: _Reading | None = None
        self._check_at = 0.0
        self._closed = False

    def receive(self, limit: int, timeout: float) -> Sequence[Received]:
        """See `Consumer`."""
        deadline = monotonic() + timeout
        while not self._closed:
            try:
                reading = self._attend()
            except CancelledError:
                break
            self._news.clear()
            received = reading.take(limit)
            left = deadline - monotonic()
            if received or left <= 0:
                return received
            self._news.wait(min(left, max(0.0, self._check_at - monotonic())))
        return ()

    def acknowledge(self) -> None:
        """See `Consumer`."""
        if (reading := self._reading) is not None:
            try:
                self._link.call(reading.acknowledge)
            except (Unavailable, CancelledError) as error:
                _logger.debug("%s: not acknowledged: %s", self._address.label, error)

    def lag(self) -> int | None:
        """See `Consumer`."""
        if (reading := self._reading) is None:
            return None
        try:
            return self._link.call(reading.lag)
        except (Unavailable, CancelledError):
            return None

    def close(self) -> None:
        """See `Consumer`."""
        self._closed = True
        self._news.set()
        self._link.close()

    def _attend(self) -> _Reading:
        """See to it that messages come, from behind what is committed."""
        reading = self._reading
        if reading is not None and self._link.client is not None and not reading.is_lost:
            if monotonic() >= self._check_at:
                self._link.call(reading.check)
                self._check_at = monotonic() + _CHECK_SECONDS
            elif reading.is_to_ask:
                self._link.call(reading.ask)
            if not reading.is_lost:
                return reading
        self._reading = None
        stream = self._link.call(self._find)
        reader = _reader(self._address, stream)
        stored = self._position(reader)  # not in the link's loop, which a database would hold up
        begin = _begin(self._address, stream, stored)
        self._reading = self._link.call(lambda: self._begin(stream, reader, stored, begin))
        self._check_at = monotonic() + _CHECK_SECONDS
        return self._reading

    # -- in the link's loop

    async def _find(self) -> StreamInfo:
        """The stream that has the subject."""
        topic = self._address.topic
        await self._link.disconnect()
        client = await self._link.connect()
        server = jetstream(client)
        with self._refusals():
            name = await server.find_stream_name_by_subject(topic)
            if "*" in topic or ">" in topic:
                asked = json.dumps({"subject": topic}).encode()
                told = await client.request("$JS.API.STREAM.NAMES", asked)
                if len(names := json.loads(told.data)["streams"]) > 1:
                    raise SettingsError(
                        f"{self._address.label}: the subject is in several streams: "
                        f"{', '.join(sorted(names))}; declare a Subscription for each"
                    )
            return await server.stream_info(name)

    async def _begin(
        self, stream: StreamInfo, reader: str, stored: str | None, begin: int
    ) -> _Reading:
        client = self._link.client
        if client is None:
            raise ConnectionResetError("the server ended the connection")
        reading = _Reading(client, self._address, stream, reader, stored, begin, self._news)
        with self._refusals():
            await reading.make_consumer()
        await reading.listen()
        return reading

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        label = self._address.label
        try:
            yield
        except NotFoundError:
            raise Unavailable(
                f"{label}: no JetStream stream has this subject; add one, or mend the topic of the "
                f"Subscription, or the server in {self._address.variable}"
            ) from None
        except ServiceUnavailableError:
            raise
        except APIError as error:
            name = self._address.subscription
            raise Unavailable(f"{label} refused the consumer {name}: {error.description}") from None


class _Reading:
    """A durable consumer and what it has sent: from when reading begins until it is lost.

    All but `take` and the properties are called in the link's loop.
    """

    def __init__(
        self,
        client: Client,
        address: Address,
        stream: StreamInfo,
        reader: str,
        stored: str | None,
        begin: int,
        news: threading.Event,
    ) -> None:
        self._client = client
        self._address = address
        self._server: JetStreamContext = jetstream(client)
        self._stream = str(stream.config.name)
        self._retention = stream.config.retention
        self._reader = reader
        self._at = stored
        self._seen = begin - 1  # sequence numbers up to here were handed out
        self._committed = begin - 1  # and those up to here are committed
        self._news = news
        self._messages: deque[Msg] = deque()
        self._came = self._taken = 0  # bytes: each is written by one thread
        self._unacknowledged: list[Msg] = []
        self._inbox = client.new_inbox()
        self._asked = 0
        self._asked_until = 0.0
        self.is_lost = False

    @property
    def is_to_ask(self) -> bool:
        """Whether there is room for more messages than were asked for."""
        waiting = len(self._messages), self._came - self._taken
        return not self._asked and waiting[0] < 2 * _BATCH and waiting[1] < _BATCH_BYTES

    def take(self, limit: int) -> Sequence[Received]:
        """What has come, `limit` at most."""
        received: list[Received] = []
        while self._messages and len(received) < limit:
            message = self._messages.popleft()
            self._taken += len(message.data)
            sequence, sent_at = _placed(message.reply)
            self._unacknowledged.append(message)
            if sequence <= self._seen:  # sent again
                continue
            self._seen = sequence
            at, self._at = self._at, str(sequence)
            received.append(
                Received(
                    _message(message, self._stream, sequence, sent_at),
                    Position(self._reader, at, self._at),
                )
            )
        return received

    async def make_consumer(self) -> None:
        """Make the durable consumer anew, and lose nothing by it."""
        durable = self._address.subscription
        config = ConsumerConfig(
            durable_name=durable,
            filter_subject=self._address.topic,
            ack_wait=_ACK_SECONDS,
            max_ack_pending=-1,
        )
        behind = config.evolve(
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=self._seen + 1
        )
        if self._retention == RetentionPolicy.WORK_QUEUE:
            # What is there was never acknowledged; nothing else may be asked for.
            await self._delete(durable)
            await self._server.add_consumer(self._stream, config)
        elif self._retention == RetentionPolicy.INTEREST:
            # The stream drops what no consumer wants: another wants it meanwhile.
            holding = f"{durable}_handover"
            await self._server.add_consumer(self._stream, config.evolve(durable_name=holding))
            await self._delete(durable)
            await self._server.add_consumer(self._stream, behind)
            await self._delete(holding)
        else:
            await self._delete(durable)
            behind.ack_policy = AckPolicy.ALL
            await self._server.add_consumer(self._stream, behind)

    async def _delete(self, consumer: str) -> None:
        with contextlib.suppress(NotFoundError):
            await self._server.delete_consumer(self._stream, consumer)

    async def listen(self) -> None:
        """Have messages sent here."""
        # Without the client's own limits, past which it drops messages: no more come than we ask for.
        await self._client.subscribe(
            self._inbox, cb=self._hear, pending_msgs_limit=0, pending_bytes_limit=0
        )
        await self.ask()

    async def ask(self) -> None:
        """Ask for the next messages."""
        self._asked = _BATCH
        self._asked_until = monotonic() + _ASKED_SECONDS
        wanted = {
            "batch": _BATCH,
            "max_bytes": max(_BATCH_BYTES, 2 * self._client.max_payload),
            "expires": int(_ASKED_SECONDS * 1e9),
        }
        asked = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._address.subscription}"
        await self._client.publish(asked, json.dumps(wanted).encode(), self._inbox)

    async def _hear(self, message: Msg) -> None:
        if message.subject == self._inbox:  # the server's own word
            headers = message.headers or {}
            status, why = headers.get("Status"), headers.get("Description", "")
            self._asked = 0
            self.is_lost = status not in _OVER and "MaxBytes" not in why
        else:
            self._messages.append(message)
            self._came += len(message.data)
            self._asked -= 1
        if self.is_to_ask and not self.is_lost:
            await self.ask()
        self._news.set()

    async def check(self) -> None:
        """Ask whether the consumer is still there."""
        try:
            await self._server.consumer_info(self._stream, self._address.subscription)
        except (nats.errors.Error, OSError) as error:
            _logger.debug("%s: reading anew, after: %s", self._address.label, error)
            self.is_lost = True
            return
        if self.is_to_ask or monotonic() > self._asked_until:
            await self.ask()
        if self._seen == self._committed:  # what was sent again, if anything
            await self.acknowledge()

    async def acknowledge(self) -> None:
        """Acknowledge all that was handed out."""
        done, self._unacknowledged, self._committed = self._unacknowledged, [], self._seen
        for each in done[-1:] if self._retention == RetentionPolicy.LIMITS else done:
            await self._client.publish(each.reply, b"+ACK")

    async def lag(self) -> int:
        """How many messages were not handed out yet."""
        told = await self._server.consumer_info(self._stream, self._address.subscription)
        return (told.num_pending or 0) + len(self._messages)


def _reader(address: Address, stream: StreamInfo) -> str:
    # A stream made anew begins with its own first message.
    name = f"nats/{address.subscription}/{stream.config.name}@{stream.created:%Y%m%dT%H%M%S.%fZ}"
    if stream.config.retention == RetentionPolicy.WORK_QUEUE:
        # What it holds before the position was read; with another subject that were not true.
        name += f"/{address.topic}"
    return name


def _begin(address: Address, stream: StreamInfo, stored: str | None) -> int:
    """The sequence number to read from."""
    if stored is None:
        return 1
    begin, state = int(stored) + 1, stream.state
    if begin > state.last_seq + 1:
        _logger.warning(
            "%s: stream %s was read up to %s and ends at %d: the broker has lost its end; it is read "
            "again from its oldest message",
            *(address.label, stream.config.name, stored, state.last_seq),
        )
        return 1
    is_all = stream.config.subjects == [address.topic]  # else what is missing may not be ours
    if stream.config.retention == RetentionPolicy.LIMITS and is_all and begin < state.first_seq:
        _logger.warning(
            "%s: %d messages of stream %s were deleted before they were read: it begins at %d and "
            "was read up to %s; let it keep more, or read more often",
            *(address.label, state.first_seq - begin, stream.config.name, state.first_seq, stored),
        )
    return begin


def _placed(reply: str) -> tuple[int, datetime | None]:
    """The number of a message in its stream, and when it came there: from where it is acknowledged.

    nats-py reads it too, in five times the time.

    >>> _placed("$JS.ACK.orders.night.1.17.3.1700000000000000000.0")
    (17, datetime.datetime(2023, 11, 14, 22, 13, 20, tzinfo=datetime.timezone.utc))
    >>> _placed("$JS.ACK.domain.account.orders.night.1.17.3.1700000000000000000.0.x")[0]
    17
    """
    words = reply.split(".")
    at = 5 if len(words) == 9 else 7
    return int(words[at]), unix_time(int(words[at + 2]) / 1e9)


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
