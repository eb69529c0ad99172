"""What the clients of every broker share: how they connect, and how messages are encoded."""

from __future__ import annotations

import contextlib
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from time import monotonic
from typing import Generic, Protocol, TypeVar

import msgspec

from blacksmith_dagster.errors import Unavailable
from blacksmith_dagster.pubsub.interface import Received

_log = logging.getLogger(__name__)
_notification_decoder = msgspec.json.Decoder(list[str])


class _Closeable(Protocol):
    def close(self) -> object: ...


C = TypeVar("C", bound=_Closeable)
T = TypeVar("T")


class ConnectionLost(Unavailable):
    """The connection has ended, for example after being idle for long: a new one may work."""


class BrokerClient(ABC, Generic[C]):
    """Opens a connection when it is first used, and again when it was lost.

    One thread uses it; any thread may call `close`.
    """

    def __init__(self) -> None:
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
        """Disconnect at once if the connection is idle; if not, the thread that uses it does so soon."""
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


class BrokerPublisher(BrokerClient[C]):
    """A `Publisher`: sends again, once, if the connection was lost."""

    def publish(self, paths: Collection[str]) -> None:
        """See `Publisher`."""
        self._use(lambda connection: self._send(connection, paths))

    @abstractmethod
    def _send(self, connection: C, paths: Collection[str]) -> None:
        """Send the paths and wait until the broker has them. Raises `Unavailable`."""


class BrokerSubscriber(BrokerClient[C]):
    """A `Subscriber`: returns as soon as it has connected, so that its user looks into the store."""

    def wait(self, timeout: float) -> Collection[str]:
        """See `Subscriber`."""
        deadline = monotonic() + timeout
        return self._use(lambda connection: self._listen(connection, deadline), lambda _: ()) or ()

    @abstractmethod
    def _listen(self, connection: C, deadline: float) -> Collection[str]:
        """The paths that arrive until the deadline, as soon as there are any. Raises `Unavailable`."""


class BrokerConsumer(BrokerClient[C]):
    """A `Consumer`."""

    def receive(self, limit: int, timeout: float) -> Sequence[Received]:
        """See `Consumer`."""
        deadline = monotonic() + timeout
        return self._use(lambda connection: self._read(connection, limit, deadline)) or ()

    def acknowledge(self) -> None:
        """See `Consumer`."""
        with self._in_use():
            if self._connection is not None:
                try:
                    self._acknowledge(self._connection)
                except Unavailable as error:
                    _log.debug("not acknowledged: %s", error)

    def lag(self) -> int | None:
        """See `Consumer`."""
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


def encode_notifications(paths: Collection[str]) -> Mapping[str, bytes]:
    """By destination, one message: the names of its destination events as a JSON array.

    >>> encode_notifications(["warehouse/flights", "alerts/late", "warehouse/delays"])
    {'warehouse': b'["delays","flights"]', 'alerts': b'["late"]'}
    """
    events: dict[str, set[str]] = {}
    for path in paths:
        destination, _, event = path.partition("/")
        events.setdefault(destination, set()).add(event)
    return {
        destination: msgspec.json.encode(sorted(names)) for destination, names in events.items()
    }


def decode_notification(destination: str, message: bytes) -> Collection[str]:
    """The paths of the destination events in a notification; none if it cannot be decoded.

    >>> sorted(decode_notification("warehouse", b'["delays","flights"]'))
    ['warehouse/delays', 'warehouse/flights']
    """
    try:
        return {f"{destination}/{event}" for event in _notification_decoder.decode(message)}
    except msgspec.DecodeError as error:
        _log.debug("ignored a notification to %s that cannot be decoded: %s", destination, error)
        return ()


def unix_time(seconds: float) -> datetime | None:
    """The time so many seconds after 1970; `None` if out of range, as senders may write anything."""
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def header_text(value: object) -> str:
    """A header's value as text: bytes are decoded as UTF-8, U+FFFD for invalid ones; `None` is ''."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return "" if value is None else str(value)
