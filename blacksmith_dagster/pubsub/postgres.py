"""Notifications through the store's own database: PostgreSQL's LISTEN and NOTIFY."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Collection, Iterator, Mapping
from time import monotonic
from typing import Any

import msgspec
import psycopg
from psycopg.pq import ExecStatus
from psycopg.sql import SQL, Identifier
from sqlalchemy.engine import URL

from blacksmith_dagster.errors import SettingsError
from blacksmith_dagster.pubsub.client import (
    BrokerPublisher,
    BrokerSubscriber,
    ConnectionLost,
)
from blacksmith_dagster.pubsub.interface import Consumer, CursorOf, Publisher, Subscriber
from blacksmith_dagster.store import read_url
from blacksmith_dagster.store.db_errors import reason

_RESPONSE_SECONDS = 2.0
_CONNECTION = {
    "autocommit": True,
    "connect_timeout": 3,
    # A peer that has vanished is noticed within 15 s, and within 5 s while data waits to be sent.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 1,
    "tcp_user_timeout": 5000,
}
_NOTIFY = b"SELECT pg_notify($1, path) FROM json_array_elements_text($2) AS path"
_LONGEST_CHANNEL = 63


class PostgresPubSub:
    """Notifications through the database of the store, on the channel named as the topic.

    PostgreSQL keeps no notifications for later. Each subscriber needs a session of its own, so it
    can't listen through a pooler that shares sessions between transactions (pgbouncer's
    `pool_mode=transaction`): give the store a URL that bypasses it, or pools by session.

    Raises `SettingsError` if the URL cannot be read or the topic is longer than 63 characters.

    >>> PostgresPubSub("postgresql://me:secret@db/blacksmith", "orders").label
    'postgresql://db:5432/blacksmith, topic orders'
    """

    def __init__(self, store_url: str, topic: str) -> None:
        if len(topic) > _LONGEST_CHANNEL:
            raise SettingsError(
                f"BLACKSMITH_PUBSUB_URL: with postgres, topic= has up to {_LONGEST_CHANNEL} "
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
            "of Kafka, NATS or RabbitMQ, by Subscription(url=Secret(...)) or BLACKSMITH_PUBSUB_URL; "
            "to read a database's changes or notifications, use a PostgresSource"
        )


class _NotifyChannel:
    """The channel of the notifications, and how to connect to it."""

    def __init__(self, url: URL, topic: str) -> None:
        self.topic = topic
        where = f"{url.host or ''}:{url.port or 5432}/{url.database or ''}"
        self.label = f"postgresql://{where}, topic {topic}"
        # The same options as the store's.
        dialect = url.set(drivername="postgresql+psycopg").get_dialect()()
        self._options: Mapping[str, Any] = dialect.create_connect_args(url)[1]

    def connect(self) -> psycopg.Connection:
        with self.explained_errors():
            return psycopg.connect(**{**self._options, **_CONNECTION})

    @contextlib.contextmanager
    def explained_errors(self) -> Iterator[None]:
        """Raise `ConnectionLost` for what the driver raises."""
        try:
            yield
        except (psycopg.Error, OSError) as error:
            raise ConnectionLost(f"{self.label} {self._reason_of(error)}") from None

    def _reason_of(self, error: Exception) -> str:
        text = reason(error)
        if "authentication failed" in text or "no password" in text:
            return (
                "refused the user or the password; fix BLACKSMITH_STORE_URL, which "
                "BLACKSMITH_PUBSUB_URL=postgres uses"
            )
        return f"does not respond: {text}"


class PostgresPublisher(BrokerPublisher[psycopg.Connection]):
    """A `Publisher`."""

    def __init__(self, channel: _NotifyChannel) -> None:
        super().__init__()
        self._channel = channel

    def _open(self) -> psycopg.Connection:
        return self._channel.connect()

    def _send(self, connection: psycopg.Connection, paths: Collection[str]) -> None:
        parameters = [self._channel.topic.encode(), msgspec.json.encode(sorted(paths))]
        with self._channel.explained_errors():
            _execute(connection, _NOTIFY, parameters)


class PostgresSubscriber(BrokerSubscriber[psycopg.Connection]):
    """A `Subscriber`."""

    def __init__(self, channel: _NotifyChannel, destination: str) -> None:
        super().__init__()
        self._channel = channel
        self._prefix = f"{destination}/"
        self._waker, self._woken = socket.socketpair()

    def _open(self) -> psycopg.Connection:
        return self._channel.connect()

    def _prepare(self, connection: psycopg.Connection) -> None:
        statement = SQL("LISTEN {}").format(Identifier(self._channel.topic))
        with self._channel.explained_errors():
            _execute(connection, statement.as_bytes(connection))

    def _listen(self, connection: psycopg.Connection, deadline: float) -> Collection[str]:
        driver = connection.pgconn
        paths: set[str] = set()
        while True:
            with self._channel.explained_errors():
                driver.consume_input()
            while notification := driver.notifies():
                path = notification.extra.decode(errors="replace")
                if path.startswith(self._prefix):
                    paths.add(path)
            left = deadline - monotonic()
            if paths or left <= 0 or self._is_closed:
                return paths
            _wait_ready([driver.socket, self._woken.fileno()], left)

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # it was closed already
            self._waker.send(b".")

    def _disconnect(self) -> None:
        super()._disconnect()
        if self._is_closed:
            self._waker.close()
            self._woken.close()


def _execute(
    connection: psycopg.Connection, statement: bytes, parameters: list[bytes] | None = None
) -> None:
    """Run a statement, with a time-out: psycopg's own `execute` waits forever for a server that hangs.

    Raises `psycopg.Error` and `TimeoutError`; then the connection can't be used again.
    """
    driver = connection.pgconn
    driver.send_query_params(statement, parameters)
    deadline = monotonic() + _RESPONSE_SECONDS
    while True:
        while (unsent := driver.flush()) or driver.is_busy():
            left = deadline - monotonic()
            if left < 0 or not _wait_ready([driver.socket], left, writable=bool(unsent)):
                raise TimeoutError(f"not within {_RESPONSE_SECONDS:g} seconds")
            driver.consume_input()
        result = driver.get_result()
        if result is None:
            return
        if result.status not in (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK):
            raise psycopg.OperationalError(result.error_message.decode(errors="replace"))


def _wait_ready(files: list[int], seconds: float, *, writable: bool = False) -> bool:
    """Wait for one of the files; returns whether one is ready.

    `select.select` does not accept file numbers above 1,023.
    """
    poll = select.poll()
    for file in files:
        poll.register(file, select.POLLIN | (select.POLLOUT if writable else 0))
    return bool(poll.poll(seconds * 1000))
