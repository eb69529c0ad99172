"""Notifications through core NATS."""

from __future__ import annotations

import threading
from collections.abc import Collection
from time import monotonic

from nats.aio.msg import Msg

from blacksmith_dagster.pubsub.address import BrokerAddress
from blacksmith_dagster.pubsub.interface import ConnectionLost, Publisher, Subscriber
from blacksmith_dagster.pubsub.messages import decode_notification, encode_notifications
from blacksmith_dagster.pubsub.nats.connection import NATSConnection


class NATSPublisher(Publisher[NATSConnection]):
    """See `Publisher`."""

    def _open(self) -> NATSConnection:
        return NATSConnection(self._address, on_lost=lambda: None)

    def _send(self, connection: NATSConnection, paths: Collection[str]) -> None:
        async def send() -> None:
            for destination, body in encode_notifications(paths).items():
                await connection.client.publish(f"{self._address.topic}.{destination}", body)
            await connection.flush()

        connection.call(send)


class NATSSubscriber(Subscriber[NATSConnection]):
    """See `Subscriber`."""

    def __init__(self, address: BrokerAddress, destination: str) -> None:
        super().__init__(address, destination)
        self._changed = threading.Condition()

    def _open(self) -> NATSConnection:
        return NATSConnection(self._address, self._wake)

    def _prepare(self, connection: NATSConnection) -> None:
        async def subscribe() -> None:
            subject = f"{self._address.topic}.{self._destination}"
            await connection.client.subscribe(subject, cb=self._on_message)
            await connection.flush()

        connection.call(subscribe)

    def _listen(self, connection: NATSConnection, deadline: float) -> Collection[str]:
        def is_done() -> bool:
            return bool(self._paths) or self._is_closed or connection.is_lost

        with self._changed:
            self._changed.wait_for(is_done, deadline - monotonic())
            paths, self._paths = self._paths, set()
        if connection.is_lost and not paths:
            raise ConnectionLost(f"{self._address.label}: the connection has ended")
        return paths

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify()

    async def _on_message(self, message: Msg) -> None:
        with self._changed:
            self._paths.update(decode_notification(self._destination, message.data))
            self._changed.notify()
