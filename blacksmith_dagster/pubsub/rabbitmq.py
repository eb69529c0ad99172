"""Wake-ups through RabbitMQ."""

from __future__ import annotations

import logging
import secrets
import ssl
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any
from urllib.parse import unquote

import pika
import pika.exceptions
from pika.adapters.select_connection import IOLoop
from pika.adapters.utils import connection_workflow as workflow

from blacksmith_dagster.errors import Unavailable
from blacksmith_dagster.pubsub.address import Address
from blacksmith_dagster.pubsub.interface import Publisher, Subscriber
from blacksmith_dagster.pubsub.messages import decode, encode

_CONNECT_SECONDS = 3.0  # of all servers together
_ANSWER_SECONDS = 3.0
_CLOSE_SECONDS = 0.3
# The broker does not tell a subscriber that the exchange is gone: it is made anew this often.
_BIND_SECONDS = 5.0
# Who waits sends heartbeats. Who publishes cannot between two calls: its connection is kept alive by
# TCP, and the broker ends it after two hours without a word.
_SUBSCRIBER_HEARTBEAT = 60
_PUBLISHER_HEARTBEAT = 3600
_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
# What waits for a subscriber in the broker: how many messages, and for how long once it has gone.
_KEPT_MESSAGES = 100
_KEPT_SECONDS = 60

# pika logs each failed attempt several times over, with tracebacks. What it knows is raised as well.
if (_pika_logger := logging.getLogger("pika")).level == logging.NOTSET:
    _pika_logger.setLevel(logging.CRITICAL)


@dataclass(frozen=True, slots=True)
class RabbitMQPubSub:
    """Wake-ups through a durable topic exchange named as the topic; the routing key is a destination.

    Each subscriber has a durable queue of its own, `<subscription>.<destination>.<random>`: it
    outlives a restart of the broker, holds 100 messages at most, and goes a minute after its
    subscriber. The user needs the rights to configure, write and read the exchange and the queues.

    >>> from blacksmith_dagster.pubsub.address import read
    >>> RabbitMQPubSub(read("amqp://user:secret@broker/production?topic=orders")).label
    'amqp://broker:5672/production, topic orders'
    """

    address: Address

    @property
    def label(self) -> str:
        return self.address.label

    def publisher(self) -> Publisher:
        return _Publisher(self.address)

    def subscriber(self, destination: str) -> Subscriber:
        return _Subscriber(self.address, destination)


class _Publisher:
    def __init__(self, address: Address) -> None:
        self._address = address
        self._link: _Link | None = None
        self._sent = 0
        self._unconfirmed: set[int] = set()
        self._is_refused = False

    def publish(self, paths: Collection[str]) -> None:
        messages = encode(paths)
        try:
            if self._link is not None:
                try:
                    return self._send(self._link, messages)
                except _Lost:  # it may have died while nobody used it
                    self.close()
            self._send(self._connect(), messages)
        except Unavailable:
            self.close()
            raise

    def close(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def _connect(self) -> _Link:
        self._link = link = _Link(self._address, _PUBLISHER_HEARTBEAT)
        link.declare_exchange()
        link.ask(link.channel.confirm_delivery, self._hear_confirmation)
        self._sent, self._unconfirmed = 0, set()
        return link

    def _send(self, link: _Link, messages: Mapping[str, bytes]) -> None:
        self._is_refused = False
        link.run(lambda: False, monotonic())  # is it still there?
        for destination, body in messages.items():
            # Not persistent: a hint is worth no write to the broker's disk.
            link.tell(link.channel.basic_publish, self._address.topic, destination, body)
            self._sent += 1
            self._unconfirmed.add(self._sent)
        link.wait_for(lambda: not self._unconfirmed)
        if self._is_refused:
            raise Unavailable(f"{self._address.label} takes no messages; its log says why")

    def _hear_confirmation(self, frame: Any) -> None:
        confirmed: int = frame.method.delivery_tag
        if frame.method.multiple:
            self._unconfirmed = {tag for tag in self._unconfirmed if tag > confirmed}
        else:
            self._unconfirmed.discard(confirmed)
        self._is_refused |= isinstance(frame.method, pika.spec.Basic.Nack)


class _Subscriber:
    def __init__(self, address: Address, destination: str) -> None:
        self._address = address
        self._destination = destination
        self._queue = f"{address.subscription}.{destination}.{secrets.token_hex(6)}"
        self._link: _Link | None = None
        self._bind_at = 0.0
        self._heard: set[str] = set()
        self._to_settle: int | None = None  # the delivery tag of the last message
        self._closed = False
        self._in_use = threading.Lock()  # by `wait`, or by `close` while nobody waits

    def wait(self, timeout: float) -> Collection[str]:
        try:
            with self._in_use:
                return self._wait(monotonic() + timeout)
        finally:
            self._disconnect_when_closed()

    def close(self) -> None:
        self._closed = True
        if link := self._link:
            link.wake()
        self._disconnect_when_closed()

    def _disconnect_when_closed(self) -> None:
        # Who cannot have the lock leaves it to the other, who looks here after letting go of it.
        if self._closed and self._in_use.acquire(blocking=False):
            try:
                self._disconnect()
            finally:
                self._in_use.release()

    def _disconnect(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def _wait(self, deadline: float) -> Collection[str]:
        try:
            if self._link is not None:
                try:
                    return self._listen(self._link, deadline)
                except _Lost:
                    self._disconnect()
            if not self._closed:
                self._connect()
            return ()
        except Unavailable:
            self._disconnect()
            raise

    def _listen(self, link: _Link, deadline: float) -> Collection[str]:
        while True:
            link.run(lambda: bool(self._heard) or self._closed, min(deadline, self._bind_at))
            if self._to_settle is not None:
                link.tell(link.channel.basic_ack, self._to_settle, multiple=True)
                self._to_settle = None
            now = monotonic()
            if self._heard or self._closed or now >= deadline:
                heard, self._heard = self._heard, set()
                return heard
            if now >= self._bind_at:
                self._bind(link)

    def _connect(self) -> None:
        self._link = link = _Link(self._address, _SUBSCRIBER_HEARTBEAT)
        self._to_settle = None
        arguments = {
            "x-max-length": _KEPT_MESSAGES,
            "x-overflow": "drop-head",
            "x-expires": 1000 * _KEPT_SECONDS,
        }
        declare = link.channel.queue_declare
        link.ask(declare, self._queue, durable=True, arguments=arguments)
        self._bind(link)
        # As many are sent ahead as are kept: what we do not get round to piles up nowhere.
        link.ask(link.channel.basic_qos, prefetch_count=_KEPT_MESSAGES)
        link.ask(link.channel.basic_consume, self._queue, self._hear)

    def _bind(self, link: _Link) -> None:
        link.declare_exchange()
        link.ask(link.channel.queue_bind, self._queue, self._address.topic, self._destination)
        self._bind_at = monotonic() + _BIND_SECONDS

    def _hear(self, _channel: Any, method: Any, _properties: Any, body: bytes) -> None:
        self._heard.update(decode(self._destination, body))
        self._to_settle = method.delivery_tag


class _Lost(Unavailable):
    """The connection has ended, as it does when nobody used it for long: another may be had."""


class _Link:
    """A connection with one channel, driven by whoever calls; every call ends in time.

    pika's BlockingConnection knows no time-outs. This does what it does, on the same loop.
    Raises `Unavailable`, and `_Lost` when the broker has ended what was there.
    """

    def __init__(self, address: Address, heartbeat: int) -> None:
        self._address = address
        self._loop = IOLoop()
        self._loop.activate_poller()
        self._connection: Any = None
        self._end: BaseException | None = None  # why there is no connection or no channel any more
        try:
            self._connection = self._connect(heartbeat)
            self._connection.add_on_close_callback(self._note_end)
            opened: list[Any] = []
            self.channel = self._connection.channel(on_open_callback=opened.append)
            self.channel.add_on_close_callback(self._note_end)
            self.channel.add_on_cancel_callback(self._note_cancellation)
            self.wait_for(lambda: bool(opened))
        except BaseException:
            self.close()
            raise

    def declare_exchange(self) -> None:
        """Make the topic's exchange if it is missing."""
        self.ask(self.channel.exchange_declare, self._address.topic, "topic", durable=True)

    def ask(self, method: Callable[..., object], *args: object, **kwargs: object) -> None:
        """Call a method of the channel and wait for the broker's answer."""
        answers: list[Any] = []
        self.tell(method, *args, **kwargs, callback=answers.append)
        self.wait_for(lambda: bool(answers))

    def tell(self, method: Callable[..., object], *args: object, **kwargs: object) -> None:
        """Call a method of the channel that the broker does not answer."""
        try:
            method(*args, **kwargs)
        except pika.exceptions.AMQPError as error:
            raise _Lost(self._told(self._end or error)) from None

    def wait_for(self, done: Callable[[], bool]) -> None:
        """Wait until the broker has answered."""
        if not self.run(done, monotonic() + _ANSWER_SECONDS):
            raise Unavailable(self._told(TimeoutError(f"not within {_ANSWER_SECONDS:g} seconds")))

    def run(self, done: Callable[[], bool], deadline: float) -> bool:
        """Read and write until `done`, or until the deadline; whether it is done."""
        if self._turn(lambda: done() or self._end is not None, deadline):
            if not done():
                assert self._end is not None
                raise _Lost(self._told(self._end))
            return True
        return False

    def wake(self) -> None:
        """Let `run` look again whether it is done. Any thread may call this."""
        self._loop.add_callback_threadsafe(lambda: None)

    def close(self) -> None:
        """Disconnect: with a farewell, if the broker returns it at once."""
        connection = self._connection
        if connection is not None:
            if connection.is_open:
                connection.close()
            if not self._turn(lambda: bool(connection.is_closed), monotonic() + _CLOSE_SECONDS):
                connection._terminate_stream(pika.exceptions.StreamLostError("given up"))
                self._turn(lambda: bool(connection.is_closed), monotonic() + _CLOSE_SECONDS)
        self._loop.close()

    def _connect(self, heartbeat: int) -> Any:
        try:
            servers = [
                self._parameters(host, port, heartbeat) for host, port in self._address.hosts
            ]
        except OSError as error:
            raise Unavailable(
                f"{self._address.label}: the file of ca= is unusable: {error}"
            ) from None
        done: list[Any] = []
        attempt = pika.SelectConnection.create_connection(
            servers, on_done=done.append, custom_ioloop=self._loop
        )
        if not self.run(lambda: bool(done), monotonic() + _CONNECT_SECONDS + _CLOSE_SECONDS):
            attempt.abort()
            self.run(lambda: bool(done), monotonic() + _CLOSE_SECONDS)
            raise Unavailable(self._told(workflow.AMQPConnectorStackTimeout()))
        if isinstance(done[0], BaseException):
            raise Unavailable(self._told(done[0]))
        return done[0]

    def _parameters(self, host: str, port: int, heartbeat: int) -> pika.ConnectionParameters:
        address = self._address
        optional: dict[str, Any] = {}
        if address.username is not None:
            optional["credentials"] = pika.PlainCredentials(
                address.username, address.password or ""
            )
        if address.tls:
            context = ssl.create_default_context(cafile=address.ca)
            optional["ssl_options"] = pika.SSLOptions(context, host)
        return pika.ConnectionParameters(
            host=host,
            port=port,
            virtual_host=unquote(address.path.removeprefix("/")) or "/",
            heartbeat=heartbeat,
            socket_timeout=_CONNECT_SECONDS / len(address.hosts),
            stack_timeout=_CONNECT_SECONDS / len(address.hosts),
            tcp_options=_KEEPALIVE,
            client_properties={"connection_name": address.subscription},
            **optional,
        )

    def _turn(self, done: Callable[[], bool], deadline: float) -> bool:
        late: list[bool] = []
        timer = self._loop.call_later(max(0.0, deadline - monotonic()), lambda: late.append(True))
        while not done() and not late:
            self._loop.poll()
            self._loop.process_timeouts()
        self._loop.remove_timeout(timer)
        return done()

    def _note_end(self, _: Any, why: BaseException) -> None:
        self._end = self._end or why

    def _note_cancellation(self, _: Any) -> None:
        self._end = self._end or pika.exceptions.ConsumerCancelled("the queue is gone")

    def _told(self, error: BaseException) -> str:
        return f"{self._address.label} {_explain(error)}"


_MEND = "in BLACKSMITH_PUBSUB_URL"
_EXPLAINED: Mapping[type[BaseException], str] = {
    pika.exceptions.AuthenticationError: f"refused the credentials; mend the user or password {_MEND}",
    pika.exceptions.ProbableAuthenticationError: (
        f"refused the credentials; mend the user or password {_MEND}"
    ),
    pika.exceptions.ProbableAccessDeniedError: (
        f"refused the virtual host; mend the path {_MEND}, or let the user in"
    ),
    pika.exceptions.IncompatibleProtocolError: (
        f"does not speak AMQP 0-9-1 here; mend the port or amqps:// {_MEND}"
    ),
    workflow.AMQPConnectorStackTimeout: f"does not answer within {_CONNECT_SECONDS:g} seconds",
}
_ACCESS_REFUSED = 403


def _explain(error: BaseException) -> str:
    """What went wrong, beneath pika's own layers; at several servers: what tells most."""
    failed = workflow.AMQPConnectionWorkflowFailed
    causes = list(error.exceptions) if isinstance(error, failed) else [error]
    for n, cause in enumerate(causes):
        if isinstance(cause, workflow.AMQPConnectorPhaseErrorBase):
            causes[n] = cause.exception
    for cause in causes:
        if type(cause) in _EXPLAINED:
            return _EXPLAINED[type(cause)]
        if getattr(cause, "reply_code", None) == _ACCESS_REFUSED:
            return "refused the user a right; it must configure, write and read topic and queues"
    said = str(causes[-1])
    return f"does not answer: {said or type(causes[-1]).__name__}"
