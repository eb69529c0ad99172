"""Notifications through RabbitMQ."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from typing import Any

from blacksmith_dagster.pubsub.address import BrokerAddress
from blacksmith_dagster.pubsub.interface import Publisher, Subscriber
from blacksmith_dagster.pubsub.messages import decode_notification, encode_notifications
from blacksmith_dagster.pubsub.rabbitmq.connection import RabbitMQConnection

# A waiting subscriber sends heartbeats. A publisher can't between two calls: TCP keeps its connection
# alive, and the broker ends it after two silent hours.
_SUBSCRIBER_HEARTBEAT = 60
_PUBLISHER_HEARTBEAT = 3600
# It can't be deleted, and no wildcard of a subscription matches its messages.
_EXCHANGE = "amq.direct"
_QUEUE_LENGTH = 100


class RabbitMQPublisher(Publisher[RabbitMQConnection]):
    """See `Publisher`."""

    def _open(self) -> RabbitMQConnection:
        return _connect(self._address, _PUBLISHER_HEARTBEAT)

    def _send(self, connection: RabbitMQConnection, paths: Collection[str]) -> None:
        channel = connection.channel
        for destination, body in encode_notifications(paths).items():
            routing_key = f"{self._address.topic}.{destination}"
            connection.send(channel.basic_publish, _EXCHANGE, routing_key, body)
        # The broker responds to this after it has handled the messages, or has rejected one.
        connection.request(channel.exchange_declare, _EXCHANGE, passive=True)


class RabbitMQSubscriber(Subscriber[RabbitMQConnection]):
    """See `Subscriber`."""

    def _open(self) -> RabbitMQConnection:
        return _connect(self._address, _SUBSCRIBER_HEARTBEAT)

    def _prepare(self, connection: RabbitMQConnection) -> None:
        channel = connection.channel
        # A new name each time: the queue of a lost connection may not be gone yet.
        queue = f"{self._address.subscription}.{self._destination}.{secrets.token_hex(6)}"
        routing_key = f"{self._address.topic}.{self._destination}"
        limit = {"x-max-length": _QUEUE_LENGTH}
        connection.request(channel.queue_declare, queue, exclusive=True, arguments=limit)
        connection.request(channel.queue_bind, queue, _EXCHANGE, routing_key)
        connection.request(channel.basic_consume, queue, self._on_message, auto_ack=True)

    def _listen(self, connection: RabbitMQConnection, deadline: float) -> Collection[str]:
        connection.run(lambda: bool(self._paths) or self._is_closed, deadline)
        paths, self._paths = self._paths, set()
        return paths

    def _wake(self) -> None:
        if connection := self._connection:
            connection.wake()

    def _on_message(self, _channel: Any, _method: Any, _properties: Any, body: bytes) -> None:
        self._paths.update(decode_notification(self._destination, body))


def _connect(address: BrokerAddress, heartbeat: int) -> RabbitMQConnection:
    queues = f"configure, write and read the queues {address.subscription}.*"
    return RabbitMQConnection(address, heartbeat, f"{queues}, and write and read {_EXCHANGE}")
