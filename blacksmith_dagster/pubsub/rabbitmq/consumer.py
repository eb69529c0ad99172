"""The messages of a queue of RabbitMQ."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from time import monotonic
from typing import Any

from blacksmith_dagster.errors import SettingsError, Unavailable
from blacksmith_dagster.pipeline.triggers import Message
from blacksmith_dagster.pubsub.address import BrokerAddress
from blacksmith_dagster.pubsub.connection import ConnectionGuard
from blacksmith_dagster.pubsub.interface import Received
from blacksmith_dagster.pubsub.rabbitmq.connection import ConnectionLost, RabbitMQConnection
from blacksmith_dagster.pubsub.wire import header_text, unix_time

_logger = logging.getLogger(__name__)

# Who commits sends no heartbeats meanwhile. Whether the broker is there is asked while reading.
_HEARTBEAT = 600
_CHECK_SECONDS = 5.0
_PREFETCH = 4000  # messages sent ahead of their acknowledgement: twice what is committed at once
_BYTES = 32 << 20  # and how many bytes of them are taken in at once, about
_RIGHTS = "read the queue; and, where that is missing, configure and write it and read the exchange"
_NOT_FOUND = 404


class RabbitMQConsumer:
    """A `Consumer` of a queue, which is made and bound unless it is there.

    The broker numbers nothing: that a message is another than one that came before, its `message_id`
    tells alone.
    """

    def __init__(self, address: BrokerAddress) -> None:
        exchange, slash, key = address.topic.partition("/")
        self._exchange, self._key = (exchange, key) if slash else ("amq.topic", address.topic)
        if not self._exchange:
            raise SettingsError(
                f"Subscription({address.topic!r}): no queue can be bound to the exchange without a "
                "name; write '<exchange>/<binding key>', or a binding key on amq.topic"
            )
        self._address = address
        self._connection: RabbitMQConnection | None = None
        self._check_at = 0.0
        self._arrived: deque[_Delivery] = deque()
        self._size = 0  # bytes that have arrived
        self._tag_to_ack: int | None = None  # the delivery tag of the last message handed out
        self._warned_of_no_id = False
        self._guard = ConnectionGuard(self._disconnect, self._wake)

    def receive(self, limit: int, timeout: float) -> Sequence[Received]:
        """See `Consumer`."""
        deadline = monotonic() + timeout
        with self._guard:
            try:
                if self._connection is not None:
                    try:
                        return self._read(self._connection, limit, deadline)
                    except ConnectionLost as why:
                        _logger.debug("reading anew, after: %s", why)
                        self._disconnect()
                if self._guard.is_closed:
                    return ()
                return self._read(self._connect(), limit, deadline)
            except BaseException:
                self._disconnect()
                raise

    def acknowledge(self) -> None:
        """See `Consumer`."""
        with self._guard:
            if self._connection is not None and self._tag_to_ack is not None:
                try:
                    self._connection.send(
                        self._connection.channel.basic_ack, self._tag_to_ack, multiple=True
                    )
                    self._connection.run(lambda: False, monotonic())  # what is to be sent is sent
                except Unavailable as why:
                    _logger.debug("not acknowledged: %s", why)
                self._tag_to_ack = None

    def lag(self) -> int | None:
        """See `Consumer`."""
        with self._guard:
            if self._connection is None:
                return None
            try:
                return self._queue_length(self._connection) + len(self._arrived)
            except Unavailable:
                return None

    def close(self) -> None:
        """See `Consumer`."""
        self._guard.close()

    def _wake(self) -> None:
        if connection := self._connection:
            connection.wake()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        self._arrived.clear()
        self._size = 0
        self._tag_to_ack = None
        if connection is not None:
            connection.close()

    # -- reading

    def _read(
        self, connection: RabbitMQConnection, limit: int, deadline: float
    ) -> Sequence[Received]:
        while True:
            connection.run(
                lambda: bool(self._arrived) or self._guard.is_closed,
                min(deadline, self._check_at),
            )
            now = monotonic()
            if self._guard.is_closed:
                return ()
            if self._arrived or now >= deadline:
                self._read_ready(connection, limit)
                return [self._next_received() for _ in range(min(limit, len(self._arrived)))]
            if now >= self._check_at:
                self._queue_length(connection)
                self._check_at = monotonic() + _CHECK_SECONDS

    def _read_ready(self, connection: RabbitMQConnection, limit: int) -> None:
        """Read what is there already: it came in parts, while its user was busy."""
        number = 0
        while number < len(self._arrived) < limit and self._size < _BYTES:
            number = len(self._arrived)
            connection.run(lambda: len(self._arrived) >= limit, monotonic())

    def _next_received(self) -> Received:
        tag, routing_key, properties, body = self._arrived.popleft()
        self._size -= len(body)
        self._tag_to_ack = tag
        if not properties.message_id and not self._warned_of_no_id:
            self._warned_of_no_id = True
            _logger.warning(
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

    def _on_message(self, _channel: Any, method: Any, properties: Any, body: bytes) -> None:
        self._size += len(body)
        self._arrived.append((method.delivery_tag, method.routing_key, properties, body))

    def _queue_length(self, connection: RabbitMQConnection) -> int:
        """How many messages the broker has not sent yet."""
        queue = self._address.subscription
        declared = connection.request(connection.channel.queue_declare, queue, passive=True)
        return int(declared.method.message_count)

    # -- connecting

    def _connect(self) -> RabbitMQConnection:
        self._connection = connection = self._open_connection()
        try:
            self._queue_length(connection)
        except ConnectionLost as why:
            if why.code != _NOT_FOUND:
                raise
            connection.close()
            self._connection = connection = self._open_connection()
            self._make_queue(connection)
        connection.request(connection.channel.basic_qos, prefetch_count=_PREFETCH)
        connection.request(
            connection.channel.basic_consume, self._address.subscription, self._on_message
        )
        self._check_at = monotonic() + _CHECK_SECONDS
        return connection

    def _open_connection(self) -> RabbitMQConnection:
        return RabbitMQConnection(self._address, _HEARTBEAT, _RIGHTS)

    def _make_queue(self, connection: RabbitMQConnection) -> None:
        channel, queue = connection.channel, self._address.subscription
        try:
            connection.request(channel.exchange_declare, self._exchange, passive=True)
        except ConnectionLost as why:
            if why.code != _NOT_FOUND:
                raise
            raise Unavailable(
                f"{self._address.label}: there is no exchange {self._exchange}; declare it, or fix "
                f"the topic of the Subscription, or the virtual host in {self._address.variable}"
            ) from None
        # In one breath: a queue that is left without its binding would be used as it is.
        connection.send(channel.queue_declare, queue, durable=True)
        connection.request(channel.queue_bind, queue, self._exchange, self._key)


_Delivery = tuple[int, str, Any, bytes]
"""The delivery tag, the routing key, the properties and the body."""
