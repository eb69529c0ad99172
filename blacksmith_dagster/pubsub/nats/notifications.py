"""Notifications through NATS with JetStream."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Collection, Coroutine, Mapping
from concurrent.futures import CancelledError
from time import monotonic
from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, StorageType
from nats.js.errors import NoStreamResponseError, NotFoundError

from blacksmith_dagster.pubsub.address import BrokerAddress
from blacksmith_dagster.pubsub.nats.connection import NATSConnection, jetstream
from blacksmith_dagster.pubsub.wire import decode_notification, encode_notifications

_logger = logging.getLogger(__name__)

# The server does not tell a subscriber that its consumer is gone: it is asked this often.
_CHECK_SECONDS = 2.0
# How long the server keeps the consumer of a subscriber that has gone.
_INACTIVE_SECONDS = 5.0
_KEPT_SECONDS = 60.0
_KEPT_MESSAGES = 100


class NATSPublisher:
    """A `Publisher`."""

    def __init__(self, address: BrokerAddress) -> None:
        self._topic = address.topic
        self._connection = NATSConnection(address)

    def publish(self, paths: Collection[str]) -> None:
        self._connection.call(lambda: self._publish(encode_notifications(paths)))

    def close(self) -> None:
        self._connection.close()

    async def _publish(self, messages: Mapping[str, bytes]) -> None:
        if client := self._connection.client:
            try:
                return await self._send(client, messages)
            except (nats.errors.Error, OSError) as error:  # it may have died while nobody used it
                _logger.debug("sending anew, after: %s", error)
                await self._connection.disconnect()
        return await self._send(await self._connection.connect(), messages)

    async def _send(self, client: Client, messages: Mapping[str, bytes]) -> None:
        stream = jetstream(client)
        try:
            await self._send_all(stream, messages)
        except NoStreamResponseError:
            await _make_stream(stream, self._topic)
            await self._send_all(stream, messages)

    async def _send_all(self, stream: JetStreamContext, messages: Mapping[str, bytes]) -> None:
        sent = (stream.publish(f"{self._topic}.{to}", body) for to, body in messages.items())
        for response in await asyncio.gather(*sent, return_exceptions=True):
            if isinstance(response, BaseException):
                raise response


class NATSSubscriber:
    """A `Subscriber`."""

    def __init__(self, address: BrokerAddress, destination: str) -> None:
        self._address = address
        self._destination = destination
        self._connection = NATSConnection(address, self._wake)
        self._subscription: JetStreamContext.PushSubscription | None = None
        self._check_at = 0.0
        self._closed = False
        self._paths: set[str] = set()
        self._news = threading.Condition()

    def wait(self, timeout: float) -> Collection[str]:
        deadline = monotonic() + timeout
        while not self._closed:
            if self._connection.client is None or monotonic() >= self._check_at:
                try:
                    is_new = self._connection.call(self._ensure_subscription)
                except CancelledError:
                    break
                self._check_at = monotonic() + _CHECK_SECONDS
                if is_new:
                    break
            with self._news:
                self._news.wait_for(self._is_done, min(deadline, self._check_at) - monotonic())
                paths, self._paths = self._paths, set()
            if paths or monotonic() >= deadline:
                return paths
        return ()

    def close(self) -> None:
        self._closed = True
        self._wake()
        self._connection.close()

    def _is_done(self) -> bool:
        return bool(self._paths) or self._closed or self._connection.client is None

    def _wake(self) -> None:
        with self._news:
            self._news.notify()

    async def _on_message(self, message: Msg) -> None:
        with self._news:
            self._paths.update(decode_notification(self._destination, message.data))
            self._news.notify()

    async def _ensure_subscription(self) -> bool:
        """See to it that the server has a consumer for us; whether it is a new one."""
        if self._connection.client and self._subscription:
            try:
                await self._subscription.consumer_info()
                return False
            except (nats.errors.Error, OSError) as error:
                _logger.debug("%s: listening anew, after: %s", self._address.label, error)
                self._subscription = None
                await self._connection.disconnect()
        stream = jetstream(self._connection.client or await self._connection.connect())
        try:
            self._subscription = await self._consume(stream)
        except NotFoundError:
            await _make_stream(stream, self._address.topic)
            self._subscription = await self._consume(stream)
        return True

    def _consume(
        self, stream: JetStreamContext
    ) -> Coroutine[Any, Any, JetStreamContext.PushSubscription]:
        # A consumer for each subscriber, so that all hear everything.
        return stream.subscribe(
            f"{self._address.topic}.{self._destination}",
            stream=self._address.topic,
            cb=self._on_message,
            config=ConsumerConfig(
                description=self._address.subscription,
                deliver_policy=DeliverPolicy.NEW,
                ack_policy=AckPolicy.NONE,
                inactive_threshold=_INACTIVE_SECONDS,
                mem_storage=True,
            ),
        )


async def _make_stream(stream: JetStreamContext, topic: str) -> None:
    await stream.add_stream(
        name=topic,
        subjects=[f"{topic}.*"],
        storage=StorageType.MEMORY,
        max_age=_KEPT_SECONDS,
        max_msgs_per_subject=_KEPT_MESSAGES,
    )
