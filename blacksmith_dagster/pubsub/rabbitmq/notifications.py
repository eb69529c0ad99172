"""Notifications through RabbitMQ."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from time import monotonic
from typing import Any

import pika

from blacksmith_dagster.errors import Unavailable
from blacksmith_dagster.pubsub.address import BrokerAddress
from blacksmith_dagster.pubsub.connection import ConnectionGuard
from blacksmith_dagster.pubsub.rabbitmq.connection import ConnectionLost, RabbitMQConnection
from blacksmith_dagster.pubsub.wire import decode_notification, encode_notifications

# The broker does not tell a subscriber that the exchange is gone: it is made anew this often.
_BIND_SECONDS = 5.0
# Who waits sends heartbeats. Who publishes cannot between two calls: its connection is kept alive by
# TCP, and the broker ends it after two hours without a word.
_SUBSCRIBER_HEARTBEAT = 60
_PUBLISHER_HEARTBEAT = 3600
# What waits for a subscriber in the broker: how many messages, and for how long once it has gone.
_KEPT_MESSAGES = 100
_KEPT_SECONDS = 60
_RIGHTS = "configure, write and read topic and queues"


class RabbitMQPublisher:
    """A `Publisher`."""

    def __init__(self, address: BrokerAddress) -> None:
        self._address = address
        self._connection: RabbitMQConnection | None = None
        self._sent = 0
        self._unconfirmed: set[int] = set()
        self._is_refused = False

    def publish(self, paths: Collection[str]) -> None:
        messages = encode_notifications(paths)
        try:
            if self._connection is not None:
                try:
                    return self._send(self._connection, messages)
                except ConnectionLost:  # it may have died while nobody used it
                    self.close()
            self._send(self._connect(), messages)
        except Unavailable:
            self.close()
            raise

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _connect(self) -> RabbitMQConnection:
        self._connection = connection = RabbitMQConnection(
            self._address, _PUBLISHER_HEARTBEAT, _RIGHTS
        )
        connection.declare_exchange()
        connection.request(connection.channel.confirm_delivery, self._on_confirmation)
        self._sent, self._unconfirmed = 0, set()
        return connection

    def _send(self, connection: RabbitMQConnection, messages: Mapping[str, bytes]) -> None:
        self._is_refused = False
        connection.run(lambda: False, monotonic())  # is it still there?
        for destination, body in messages.items():
            # Not persistent: a hint is worth no write to the broker's disk.
            connection.send(
                connection.channel.basic_publish, self._address.topic, destination, body
            )
            self._sent += 1
            self._unconfirmed.add(self._sent)
        connection.wait_for(lambda: not self._unconfirmed)
        if self._is_refused:
            raise Unavailable(f"{self._address.label} accepts no messages; its log says why")

    def _on_confirmation(self, frame: Any) -> None:
        confirmed: int = frame.method.delivery_tag
        if frame.method.multiple:
            self._unconfirmed = {tag for tag in self._unconfirmed if tag > confirmed}
        else:
            self._unconfirmed.discard(confirmed)
        self._is_refused |= isinstance(frame.method, pika.spec.Basic.Nack)


class RabbitMQSubscriber:
    """A `Subscriber`."""

    def __init__(self, address: BrokerAddress, destination: str) -> None:
        self._address = address
        self._destination = destination
        self._queue = f"{address.subscription}.{destination}.{secrets.token_hex(6)}"
        self._connection: RabbitMQConnection | None = None
        self._bind_at = 0.0
        self._paths: set[str] = set()
        self._tag_to_ack: int | None = None  # the delivery tag of the last message
        self._guard = ConnectionGuard(self._disconnect, self._wake)

    def wait(self, timeout: float) -> Collection[str]:
        with self._guard:
            return self._wait(monotonic() + timeout)

    def close(self) -> None:
        self._guard.close()

    def _wake(self) -> None:
        if connection := self._connection:
            connection.wake()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _wait(self, deadline: float) -> Collection[str]:
        try:
            if self._connection is not None:
                try:
                    return self._listen(self._connection, deadline)
                except ConnectionLost:
                    self._disconnect()
            if not self._guard.is_closed:
                self._connect()
            return ()
        except Unavailable:
            self._disconnect()
            raise

    def _listen(self, connection: RabbitMQConnection, deadline: float) -> Collection[str]:
        while True:
            connection.run(
                lambda: bool(self._paths) or self._guard.is_closed, min(deadline, self._bind_at)
            )
            if self._tag_to_ack is not None:
                connection.send(connection.channel.basic_ack, self._tag_to_ack, multiple=True)
                self._tag_to_ack = None
            now = monotonic()
            if self._paths or self._guard.is_closed or now >= deadline:
                paths, self._paths = self._paths, set()
                return paths
            if now >= self._bind_at:
                self._bind(connection)

    def _connect(self) -> None:
        self._connection = connection = RabbitMQConnection(
            self._address, _SUBSCRIBER_HEARTBEAT, _RIGHTS
        )
        self._tag_to_ack = None
        arguments = {
            "x-max-length": _KEPT_MESSAGES,
            "x-overflow": "drop-head",
            "x-expires": 1000 * _KEPT_SECONDS,
        }
        declare = connection.channel.queue_declare
        connection.request(declare, self._queue, durable=True, arguments=arguments)
        self._bind(connection)
        # As many are sent ahead as are kept: what we do not get round to piles up nowhere.
        connection.request(connection.channel.basic_qos, prefetch_count=_KEPT_MESSAGES)
        connection.request(connection.channel.basic_consume, self._queue, self._on_message)

    def _bind(self, connection: RabbitMQConnection) -> None:
        connection.declare_exchange()
        connection.request(
            connection.channel.queue_bind, self._queue, self._address.topic, self._destination
        )
        self._bind_at = monotonic() + _BIND_SECONDS

    def _on_message(self, _channel: Any, method: Any, _properties: Any, body: bytes) -> None:
        self._paths.update(decode_notification(self._destination, body))
        self._tag_to_ack = method.delivery_tag
