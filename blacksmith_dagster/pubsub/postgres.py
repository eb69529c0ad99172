"""Notifications through the store's own database: PostgreSQL's LISTEN and NOTIFY.

The channel is named as the topic. PostgreSQL keeps no notifications for later. Each subscriber needs a
session of its own, so it can't listen through a pooler that shares sessions between transactions
(pgbouncer's `pool_mode=transaction`): give the store a URL that bypasses it, or pools by session.
"""

from __future__ import annotations

import contextlib
import select
from collections.abc import Collection, Iterator
from time import monotonic

import msgspec
import psycopg
from psycopg.pq import ExecStatus
from psycopg.sql import SQL, Identifier

from blacksmith_dagster.errors import SettingsError
from blacksmith_dagster.pubsub.address import BrokerAddress
from blacksmith_dagster.pubsub.interface import (
    Adapter,
    ConnectionLost,
    Consumer,
    CursorOf,
    Publisher,
    Subscriber,
)
from blacksmith_dagster.store import read_url
from blacksmith_dagster.store.db_errors import reason

_RESPONSE_SECONDS = 2.0
_POLL_SECONDS = 0.2  # between two checks whether a subscriber was closed
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


class PostgresPublisher(Publisher[psycopg.Connection]):
    """See `Publisher`."""

    def _open(self) -> psycopg.Connection:
        return _connect(self._address)

    def _send(self, connection: psycopg.Connection, paths: Collection[str]) -> None:
        parameters = [self._address.topic.encode(), msgspec.json.encode(sorted(paths))]
        with _explained_errors(self._address):
            _execute(connection, _NOTIFY, parameters)


class PostgresSubscriber(Subscriber[psycopg.Connection]):
    """See `Subscriber`."""

    def _open(self) -> psycopg.Connection:
        return _connect(self._address)

    def _prepare(self, connection: psycopg.Connection) -> None:
        statement = SQL("LISTEN {}").format(Identifier(self._address.topic))
        with _explained_errors(self._address):
            _execute(connection, statement.as_bytes(connection))

    def _listen(self, connection: psycopg.Connection, deadline: float) -> Collection[str]:
        driver = connection.pgconn
        paths: set[str] = set()
        while True:
            with _explained_errors(self._address):
                driver.consume_input()
            while notification := driver.notifies():
                path = notification.extra.decode(errors="replace")
                if path.startswith(f"{self._destination}/"):
                    paths.add(path)
            left = deadline - monotonic()
            if paths or left <= 0 or self._is_closed:
                return paths
            _wait_ready(driver.socket, min(left, _POLL_SECONDS))


def _no_consumer(address: BrokerAddress, _: CursorOf) -> Consumer[psycopg.Connection]:
    raise SettingsError(
        f"{address.label} has no messages to subscribe to: give the subscription of "
        f"{address.topic!r} the URL of Kafka, NATS or RabbitMQ, by Subscription(url=Secret(...)) or "
        "BLACKSMITH_PUBSUB_URL; to read a database's changes or notifications, use a PostgresSource"
    )


ADAPTER = Adapter(PostgresPublisher, PostgresSubscriber, _no_consumer)


def _connect(address: BrokerAddress) -> psycopg.Connection:
    url = read_url(address.store_url)
    # The same options as the store's.
    dialect = url.set(drivername="postgresql+psycopg").get_dialect()()
    options = dialect.create_connect_args(url)[1]
    with _explained_errors(address):
        return psycopg.connect(**{**options, **_CONNECTION})


@contextlib.contextmanager
def _explained_errors(address: BrokerAddress) -> Iterator[None]:
    """Raise `ConnectionLost` for what the driver raises."""
    try:
        yield
    except (psycopg.Error, OSError) as error:
        text = reason(error)
        if "authentication failed" in text or "no password" in text:
            text = (
                "refused the user or the password; fix BLACKSMITH_STORE_URL, which "
                "BLACKSMITH_PUBSUB_URL=postgres uses"
            )
        else:
            text = f"does not respond: {text}"
        raise ConnectionLost(f"{address.label} {text}") from None


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
            if left < 0 or not _wait_ready(driver.socket, left, writable=bool(unsent)):
                raise TimeoutError(f"not within {_RESPONSE_SECONDS:g} seconds")
            driver.consume_input()
        result = driver.get_result()
        if result is None:
            return
        if result.status not in (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK):
            raise psycopg.OperationalError(result.error_message.decode(errors="replace"))


def _wait_ready(file: int, seconds: float, *, writable: bool = False) -> bool:
    """Wait for the file to be ready; returns whether it is.

    `select.select` does not accept file numbers above 1,023.
    """
    poll = select.poll()
    poll.register(file, select.POLLIN | (select.POLLOUT if writable else 0))
    return bool(poll.poll(seconds * 1000))
