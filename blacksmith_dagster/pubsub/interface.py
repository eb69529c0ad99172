"""What a broker does: it publishes and receives notifications, and messages become events.

A notification only hints that a destination event has new jobs: if one is lost, late or duplicated, that
only changes when a job is loaded. A message of a subscription is an event: the store knows how far
the subscription was read.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from blacksmith_dagster.errors import Unavailable
from blacksmith_dagster.pipeline.triggers import Message
from blacksmith_dagster.pubsub.address import BrokerAddress
from blacksmith_dagster.store.records import Cursor

_log = logging.getLogger(__name__)

CursorOf: TypeAlias = Callable[[str], str | None]
"""The committed cursor of a reader, by its name; `None` if it has read nothing yet."""


class _Closeable(Protocol):
    def close(self) -> object: ...


C = TypeVar("C", bound=_Closeable)
T = TypeVar("T")


class ConnectionLost(Unavailable):
    """The connection has ended, for example after being idle for long: a new one may work."""


class Client(ABC, Generic[C]):
    """Opens a connection when it is first used, and again when it was lost.

    One thread uses it; any thread may call `close`.
    """

    def __init__(self, address: BrokerAddress) -> None:
        self._address = address
        self._connection: C | None = None
        self._is_closed = False
        self._lock = threading.Lock()  # held while the connection is used

    @abstractmethod
    def _open(self) -> C:
        """Connect. Raises `Unavailable`."""

    def _prepare(self, connection: C) -> None:
        """Set up a new connection before it is used. Raises `Unavailable`."""

    def _wake(self) -> None:
        """Wake the thread that waits on the connection, so that it sees `_is_closed`."""

    def close(self) -> None:
        """Disconnect without waiting for the broker; a call in progress returns soon, empty."""
        self._is_closed = True
        self._wake()
        self._disconnect_if_closed()

    def _use(self, work: Callable[[C], T], when_new: Callable[[C], T] | None = None) -> T | None:
        """Call `work`, or `when_new` with a new connection; returns the result, `None` once closed."""
        with self._in_use():
            try:
                return self._attempt(work, when_new or work)
            except Unavailable as error:
                message = str(error)
            except BaseException:
                self._disconnect()
                raise
            self._disconnect()
        # Raise a new error: the traceback of the first one would keep the client, and Kafka's threads.
        raise Unavailable(message)

    def _attempt(self, work: Callable[[C], T], when_new: Callable[[C], T]) -> T | None:
        if self._connection is not None:
            try:
                return work(self._connection)
            except ConnectionLost as error:
                _log.debug("connecting again, after: %s", error)
                self._disconnect()
        if self._is_closed:
            return None
        self._connection = self._open()
        self._prepare(self._connection)
        return when_new(self._connection)

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[None]:
        try:
            with self._lock:
                yield
        finally:
            self._disconnect_if_closed()

    def _disconnect_if_closed(self) -> None:
        if self._is_closed and self._lock.acquire(blocking=False):
            try:
                self._disconnect()
            finally:
                self._lock.release()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class Publisher(Client[C]):
    """Tells subscribers that destination events have new jobs."""

    def publish(self, paths: Collection[str]) -> None:
        """Send the paths of destination events, one message per destination.

        Connects on the first call, and again after a failure; sends again, once, if the connection
        was lost. Returns once the broker has the messages.

        Raises `Unavailable` within a few seconds if the broker does not respond; the next call tries
        again.
        """
        self._use(lambda connection: self._send(connection, paths))

    @abstractmethod
    def _send(self, connection: C, paths: Collection[str]) -> None:
        """Send the paths and wait until the broker has them. Raises `Unavailable`."""


class Subscriber(Client[C]):
    """Receives the notifications of one destination.

    Every subscriber of a destination receives every notification, so a subscriber that is about to
    end takes none from its successor.
    """

    def __init__(self, address: BrokerAddress, destination: str) -> None:
        super().__init__(address)
        self._destination = destination
        self._paths: set[str] = set()  # notified, and not returned yet

    def wait(self, timeout: float) -> Collection[str]:
        """The paths of the destination events that were notified since the last call.

        Waits for the first of them, for `timeout` seconds at most. Connects on the first call, and
        again after a failure, and returns nothing as soon as it has connected: from then on it
        receives notifications, and the caller checks the store for jobs that came before.

        Raises `Unavailable` when the broker does not respond or rejects us; the next call tries again.
        """
        deadline = monotonic() + timeout
        return self._use(lambda connection: self._listen(connection, deadline), lambda _: ()) or ()

    @abstractmethod
    def _listen(self, connection: C, deadline: float) -> Collection[str]:
        """The paths that arrive until the deadline, as soon as there are any. Raises `Unavailable`."""


class Received(NamedTuple):
    """A message, and how reading it moves its reader's cursor.

    The cursor is `None` if the broker does not number messages: then only the message's id shows
    whether it was received before.
    """

    message: Message
    cursor: Cursor | None


class Consumer(Client[C]):
    """Reads the messages of a subscription; its address has the topic and the subscription.

    One consumer of a subscription reads at a time: its user holds a lock. If the broker numbers its
    messages, reading begins after the cursors in the store, not at the broker's own position.
    """

    def __init__(self, address: BrokerAddress, cursor_of: CursorOf) -> None:
        super().__init__(address)
        self._cursor_of = cursor_of

    def receive(self, limit: int, timeout: float) -> Sequence[Received]:
        """The next messages, `limit` at most, in the order of the broker.

        Waits for the first of them, for `timeout` seconds at most. Connects on the first call, and
        again after a failure, and then begins after the last committed message.

        Raises `Unavailable` when the broker does not respond or rejects us; the next call tries again.
        Raises `SettingsError` for a subscription that can't be read in this way.
        """
        deadline = monotonic() + timeout
        return self._use(lambda connection: self._read(connection, limit, deadline)) or ()

    def acknowledge(self) -> None:
        """Tell the broker that everything received so far is committed.

        If the broker can't be reached it learns this later, or when reading begins again: then some
        messages may come again.
        """
        with self._in_use():
            if self._connection is not None:
                try:
                    self._acknowledge(self._connection)
                except Unavailable as error:
                    _log.debug("not acknowledged: %s", error)

    def lag(self) -> int | None:
        """How many messages wait at the broker, `None` if unknown. Asks the broker, nothing else."""
        with self._in_use(), contextlib.suppress(Unavailable):
            if self._connection is not None:
                return self._lag(self._connection)
        return None

    @abstractmethod
    def _read(self, connection: C, limit: int, deadline: float) -> Sequence[Received]:
        """The messages that arrive until the deadline, as soon as there are any."""

    @abstractmethod
    def _acknowledge(self, connection: C) -> None:
        """Acknowledge everything that `_read` has returned."""

    @abstractmethod
    def _lag(self, connection: C) -> int:
        """How many messages wait at the broker or here."""


class Adapter(NamedTuple):
    """What a broker's module provides: each of these, and how to create it at an address."""

    publisher: Callable[[BrokerAddress], Publisher[Any]]
    subscriber: Callable[[BrokerAddress, str], Subscriber[Any]]
    consumer: Callable[[BrokerAddress, CursorOf], Consumer[Any]]


@dataclass(frozen=True, slots=True)
class PubSub:
    """A broker. Creating a publisher, a subscriber or a consumer does not connect yet.

    Each has its own connection. One thread uses it, but any thread may close it.
    """

    address: BrokerAddress
    adapter: Adapter

    @property
    def label(self) -> str:
        """The broker's URL without credentials, for people."""
        return self.address.label

    def publisher(self) -> Publisher[Any]:
        """A publisher of notifications."""
        return self.adapter.publisher(self.address)

    def subscriber(self, destination: str) -> Subscriber[Any]:
        """A subscriber to the notifications of a destination."""
        return self.adapter.subscriber(self.address, destination)

    def consumer(self, topic: str, subscription: str, cursor_of: CursorOf) -> Consumer[Any]:
        """A consumer of the messages of `topic` as `subscription`.

        `cursor_of` reads a reader's cursor from the store. Readers' names begin with the broker's
        scheme and contain `subscription` and the broker's unit of numbering.

        Raises `SettingsError` if this broker has no messages to subscribe to.
        """
        address = replace(self.address, topic=topic, subscription=subscription)
        return self.adapter.consumer(address, cursor_of)
