"""Notifications through the store's own database: PostgreSQL's LISTEN and NOTIFY."""

from __future__ import annotations

import logging
import select
import socket
import threading
from collections.abc import Collection, Mapping
from time import monotonic
from typing import Any

import msgspec
import psycopg
from psycopg.pq import ExecStatus
from psycopg.sql import SQL, Identifier
from sqlalchemy.engine import URL

from blacksmith_dagster.errors import SettingsError, Unavailable
from blacksmith_dagster.pubsub.interface import Consumer, CursorOf, Publisher, Subscriber
from blacksmith_dagster.store import read_url
from blacksmith_dagster.store.db_errors import reason

_logger = logging.getLogger(__name__)

_RESPONSE_SECONDS = 2.0
_CONNECTION = {
    "autocommit": True,
    "connect_timeout": 3,
    # A peer that has gone without a word is found out within 15 s, and within 5 s while data waits.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 1,
    "tcp_user_timeout": 5000,
}
_NOTIFY = b"SELECT pg_notify($1, path) FROM json_array_elements_text($2) AS path"
_LONGEST_CHANNEL = 63


class PostgresPubSub:
    """Notifications through the database of the store, on the channel named as the topic.

    Nothing is kept: who does not listen hears nothing. Each subscriber has a session of its own, and
    so can't listen through a pooler that lends sessions out by transaction (pgbouncer's
    `pool_mode=transaction`): give the store a URL that goes around it, or pools by session.

    Raises `SettingsError` if the URL cannot be read or the topic is longer than 63 characters.

    >>> PostgresPubSub("postgresql://me:secret@db/blacksmith", "orders").label
    'postgresql://db:5432/blacksmith, topic orders'
    """

    def __init__(self, store_url: str, topic: str) -> None:
        if len(topic) > _LONGEST_CHANNEL:
            raise SettingsError(
                f"BLACKSMITH_PUBSUB_URL: postgres takes a topic= of up to {_LONGEST_CHANNEL} "
                "characters; shorten it"
            )
        self._channel = _NotifyChannel(read_url(store_url), topic)

    @property
    def label(self) -> str:
        return self._channel.label

    def __repr__(self) -> str:
        return f"PostgresPubSub({self.label})"

    def publisher(self) -> Publisher:
        return PostgresPublisher(self._channel)

    def subscriber(self, destination: str) -> Subscriber:
        return PostgresSubscriber(self._channel, destination)

    def consumer(
        self,
        topic: str,
        subscription: str,  # noqa: ARG002
        cursor_of: CursorOf,  # noqa: ARG002
    ) -> Consumer:
        raise SettingsError(
            f"{self.label} has no messages to subscribe to: give the subscription of {topic!r} the URL "
            "of a Kafka, NATS or RabbitMQ, by Subscription(url=Secret(...)) or BLACKSMITH_PUBSUB_URL; "
            "what changes in a database, or is notified there, a PostgresSource reads"
        )


class _NotifyChannel:
    """The channel to notify on, how to connect to it, and what goes wrong there."""

    def __init__(self, url: URL, topic: str) -> None:
        self.topic = topic
        where = f"{url.host or ''}:{url.port or 5432}/{url.database or ''}"
        self.label = f"postgresql://{where}, topic {topic}"
        # As the store connects.
        dialect = url.set(drivername="postgresql+psycopg").get_dialect()()
        self._options: Mapping[str, Any] = dialect.create_connect_args(url)[1]

    def connect(self) -> psycopg.Connection:
        return psycopg.connect(**{**self._options, **_CONNECTION})

    def unavailable(self, error: Exception) -> Unavailable:
        said = reason(error)
        if "authentication failed" in said or "no password" in said:
            return Unavailable(
                f"{self.label} refused the user or the password; fix BLACKSMITH_STORE_URL, which "
                "BLACKSMITH_PUBSUB_URL=postgres uses"
            )
        return Unavailable(f"{self.label} does not respond: {said}")


class PostgresPublisher:
    """A `Publisher`."""

    def __init__(self, channel: _NotifyChannel) -> None:
        self._channel = channel
        self._connection: psycopg.Connection | None = None

    def publish(self, paths: Collection[str]) -> None:
        parameters = [self._channel.topic.encode(), msgspec.json.encode(sorted(paths))]
        if self._connection is not None:
            try:
                return _execute(self._connection, _NOTIFY, parameters)
            except (psycopg.Error, OSError) as error:  # it may have died while nobody used it
                _logger.debug("notifying anew, after: %s", reason(error))
                self.close()
        try:
            self._connection = self._channel.connect()
            _execute(self._connection, _NOTIFY, parameters)
        except (psycopg.Error, OSError) as error:
            self.close()
            raise self._channel.unavailable(error) from None

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class PostgresSubscriber:
    """A `Subscriber`."""

    def __init__(self, channel: _NotifyChannel, destination: str) -> None:
        self._channel = channel
        self._prefix = f"{destination}/"
        self._connection: psycopg.Connection | None = None
        self._used = threading.Lock()
        self._closed = False
        self._waker, self._woken = socket.socketpair()

    def wait(self, timeout: float) -> Collection[str]:
        try:
            with self._used:
                return self._wait(monotonic() + timeout)
        finally:
            if self._closed:
                self._end()

    def close(self) -> None:
        if not self._closed:
            self._waker.send(b".")  # first: a wait that sees it is closed may close this
            self._closed = True
            self._end()

    def _end(self) -> None:
        """Disconnect, unless a `wait` is under way: that then does it."""
        if self._used.acquire(blocking=False):
            self._disconnect()
            self._waker.close()
            self._woken.close()
            self._used.release()

    def _wait(self, deadline: float) -> Collection[str]:
        if self._closed:
            return ()
        try:
            if self._connection is not None:
                return self._receive(self._connection, deadline)
        except psycopg.Error as error:
            _logger.debug("%s: listening anew, after: %s", self._channel.label, reason(error))
            self._disconnect()
        try:
            self._connection = self._channel.connect()
            listen = SQL("LISTEN {}").format(Identifier(self._channel.topic))
            _execute(self._connection, listen.as_bytes(self._connection))
        except (psycopg.Error, OSError) as error:
            self._disconnect()
            if self._closed:
                return ()
            raise self._channel.unavailable(error) from None
        return ()

    def _receive(self, connection: psycopg.Connection, deadline: float) -> Collection[str]:
        driver = connection.pgconn
        heard: set[str] = set()
        while True:
            driver.consume_input()
            while notification := driver.notifies():
                path = notification.extra.decode(errors="replace")
                if path.startswith(self._prefix):
                    heard.add(path)
            left = deadline - monotonic()
            if heard or left <= 0 or self._closed:
                return heard
            _ready([driver.socket, self._woken.fileno()], left)

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _execute(
    connection: psycopg.Connection, statement: bytes, parameters: list[bytes] | None = None
) -> None:
    """Run a statement, by the driver's own parts: as a whole it waits for a hanging server for ever.

    Raises `psycopg.Error` and `TimeoutError`; the connection is of no more use then.
    """
    driver = connection.pgconn
    driver.send_query_params(statement, parameters)
    deadline = monotonic() + _RESPONSE_SECONDS
    while True:
        while (unsent := driver.flush()) or driver.is_busy():
            left = deadline - monotonic()
            if left < 0 or not _ready([driver.socket], left, writable=bool(unsent)):
                raise TimeoutError(f"not within {_RESPONSE_SECONDS:g} seconds")
            driver.consume_input()
        result = driver.get_result()
        if result is None:
            return
        if result.status not in (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK):
            raise psycopg.OperationalError(result.error_message.decode(errors="replace"))


def _ready(files: list[int], seconds: float, *, writable: bool = False) -> bool:
    """Wait for one of the files. Not by `select`, which takes no file numbers past 1,023."""
    poll = select.poll()
    for each in files:
        poll.register(each, select.POLLIN | (select.POLLOUT if writable else 0))
    return bool(poll.poll(seconds * 1000))
