"""The messages of a RabbitMQ queue."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from time import monotonic
from typing import Any

from blacksmith_dagster.errors import SettingsError, Unavailable
from blacksmith_dagster.pipeline.triggers import Message
from blacksmith_dagster.pubsub.address import BrokerAddress
from blacksmith_dagster.pubsub.interface import Consumer, CursorOf, Received
from blacksmith_dagster.pubsub.messages import header_text, unix_time
from blacksmith_dagster.pubsub.rabbitmq.connection import ChannelClosed, RabbitMQConnection

_log = logging.getLogger(__name__)

# Nothing sends heartbeats during a commit. While reading, we ask whether the broker responds.
_HEARTBEAT = 600
_CHECK_SECONDS = 5.0
_PREFETCH = 4000  # messages sent ahead of their acknowledgement: twice what is committed at once
_BYTES = 32 << 20  # about as many bytes of them are read at once
_RIGHTS = "read the queue; and, where that is missing, configure and write it and read the exchange"
_NOT_FOUND = 404


class RabbitMQConsumer(Consumer[RabbitMQConnection]):
    """A `Consumer` of a queue, which is declared and bound if it does not exist.

    The broker does not number messages: only `message_id` shows whether a message was received before.
    """

    def __init__(self, address: BrokerAddress, cursor_of: CursorOf) -> None:
        exchange, slash, key = address.topic.partition("/")
        self._exchange, self._key = (exchange, key) if slash else ("amq.topic", address.topic)
        if not self._exchange:
            raise SettingsError(
                f"Subscription({address.topic!r}): no queue can be bound to the exchange without a "
                "name; write '<exchange>/<binding key>', or a binding key on amq.topic"
            )
        super().__init__(address, cursor_of)
        self._check_at = 0.0
        self._arrived: deque[_Delivery] = deque()
        self._size = 0  # bytes that have arrived
        self._tag_to_ack: int | None = None  # the delivery tag of the last message handed out
        self._warned_of_no_id = False

    def _wake(self) -> None:
        if connection := self._connection:
            connection.wake()

    def _disconnect(self) -> None:
        self._arrived.clear()
        self._size = 0
        self._tag_to_ack = None
        super()._disconnect()

    # -- reading

    def _read(
        self, connection: RabbitMQConnection, limit: int, deadline: float
    ) -> Sequence[Received]:
        while True:
            connection.run(
                lambda: bool(self._arrived) or self._is_closed,
                min(deadline, self._check_at),
            )
            now = monotonic()
            if self._is_closed:
                return ()
            if self._arrived or now >= deadline:
                self._read_ready(connection, limit)
                return [self._next_received() for _ in range(min(limit, len(self._arrived)))]
            if now >= self._check_at:
                self._queue_length(connection)
                self._check_at = monotonic() + _CHECK_SECONDS

    def _read_ready(self, connection: RabbitMQConnection, limit: int) -> None:
        """Read everything that arrived while the caller was busy; one pass may read only a part."""
        count = 0
        while count < len(self._arrived) < limit and self._size < _BYTES:
            count = len(self._arrived)
            connection.run(lambda: len(self._arrived) >= limit, monotonic())

    def _next_received(self) -> Received:
        tag, routing_key, properties, body = self._arrived.popleft()
        self._size -= len(body)
        self._tag_to_ack = tag
        if not properties.message_id and not self._warned_of_no_id:
            self._warned_of_no_id = True
            _log.warning(
                "%s: messages of queue %s have no message_id: those that the broker sends again, "
                "after a crash or a lost connection, become events again; have the sender set it",
                *(self._address.label, self._address.subscription),
            )
        message = Message(
            body,
            {name: header_text(value) for name, value in (properties.headers or {}).items()},
            routing_key,
            id=properties.message_id or None,
            sent_at=None if properties.timestamp is None else unix_time(properties.timestamp),
            place=self._address.subscription,
        )
        return Received(message, None)

    def _acknowledge(self, connection: RabbitMQConnection) -> None:
        if self._tag_to_ack is not None:
            connection.send(connection.channel.basic_ack, self._tag_to_ack, multiple=True)
            connection.run(lambda: False, monotonic())  # writes it
            self._tag_to_ack = None

    def _lag(self, connection: RabbitMQConnection) -> int:
        return self._queue_length(connection) + len(self._arrived)

    def _on_message(self, _channel: Any, method: Any, properties: Any, body: bytes) -> None:
        self._size += len(body)
        self._arrived.append((method.delivery_tag, method.routing_key, properties, body))

    def _queue_length(self, connection: RabbitMQConnection) -> int:
        """How many messages the broker has not sent yet."""
        queue = self._address.subscription
        declared = connection.request(connection.channel.queue_declare, queue, passive=True)
        return int(declared.method.message_count)

    # -- connecting

    def _open(self) -> RabbitMQConnection:
        return RabbitMQConnection(self._address, _HEARTBEAT, _RIGHTS)

    def _prepare(self, connection: RabbitMQConnection) -> None:
        try:
            self._queue_length(connection)
        except ChannelClosed as error:
            if error.code != _NOT_FOUND:
                raise
            connection.close()  # the error has ended its channel
            self._connection = connection = self._open()
            self._declare_queue(connection)
        channel = connection.channel
        connection.request(channel.basic_qos, prefetch_count=_PREFETCH)
        connection.request(channel.basic_consume, self._address.subscription, self._on_message)
        self._check_at = monotonic() + _CHECK_SECONDS

    def _declare_queue(self, connection: RabbitMQConnection) -> None:
        channel, queue = connection.channel, self._address.subscription
        try:
            connection.request(channel.exchange_declare, self._exchange, passive=True)
        except ChannelClosed as error:
            if error.code != _NOT_FOUND:
                raise
            raise Unavailable(
                f"{self._address.label}: there is no exchange {self._exchange}; declare it, or fix "
                f"the topic of the Subscription, or the virtual host in {self._address.variable}"
            ) from None
        # Sent together: a queue that is left without its binding would be used as it is.
        connection.send(channel.queue_declare, queue, durable=True)
        connection.request(channel.queue_bind, queue, self._exchange, self._key)


_Delivery = tuple[int, str, Any, bytes]
"""The delivery tag, the routing key, the properties and the body."""
