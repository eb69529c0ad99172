"""The interface of a broker: a publisher and subscribers of notifications, and consumers of messages.

A notification only hints that a destination event has new jobs: if one is lost, late or duplicated, that
only changes when a job is loaded. A message of a subscription is an event: the store knows how far
the subscription was read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, Protocol, TypeAlias

from blacksmith_dagster.pipeline.triggers import Message
from blacksmith_dagster.pubsub.address import BrokerAddress
from blacksmith_dagster.store.interface import Cursor

CursorOf: TypeAlias = Callable[[str], str | None]
"""The committed cursor of a reader, by its name; `None` if it has read nothing yet."""


class Publisher(Protocol):
    """Tells subscribers that destination events have new jobs. Used by one thread."""

    def publish(self, paths: Collection[str]) -> None:
        """Send the paths of destination events, one message per destination.

        Connects on the first call, and again after a failure. Returns once the broker has the
        messages.

        Raises `Unavailable` within a few seconds if the broker does not respond; the next call tries
        again.
        """
        ...

    def close(self) -> None:
        """Disconnect without waiting for the broker."""
        ...


class Subscriber(Protocol):
    """Receives the notifications of one destination. Used by one thread, except for `close`.

    Every subscriber of a destination receives every notification, so a subscriber that is about to
    end takes none from its successor.
    """

    def wait(self, timeout: float) -> Collection[str]:
        """The paths of the destination events that were notified since the last call.

        Waits for the first of them, for `timeout` seconds at most. Connects on the first call, and
        again after a failure, and returns nothing as soon as it has connected: from then on it
        receives notifications, and the caller checks the store for jobs that came before.

        Raises `Unavailable` when the broker does not respond or rejects us; the next call tries again.
        """
        ...

    def close(self) -> None:
        """Disconnect without waiting for the broker. A `wait` in progress returns soon."""
        ...


class Received(NamedTuple):
    """A message, and how reading it moves its reader's cursor.

    The cursor is `None` if the broker does not number messages: then only the message's id shows
    whether it was received before.
    """

    message: Message
    cursor: Cursor | None


class Consumer(Protocol):
    """Reads the messages of a subscription. Used by one thread, except for `close`.

    One consumer of a subscription reads at a time: its user holds a lock. If the broker numbers its
    messages, reading begins after the cursors in the store, not at the broker's own position.
    """

    def receive(self, limit: int, timeout: float) -> Sequence[Received]:
        """The next messages, `limit` at most, in the order of the broker.

        Waits for the first of them, for `timeout` seconds at most. Connects on the first call, and
        again after a failure, and then begins after the last committed message.

        Raises `Unavailable` when the broker does not respond or rejects us; the next call tries again.
        Raises `SettingsError` for a subscription that can't be read in this way.
        """
        ...

    def acknowledge(self) -> None:
        """Tell the broker that everything received so far is committed.

        If the broker can't be reached it learns this later, or when reading begins again: then some
        messages may come again.
        """
        ...

    def lag(self) -> int | None:
        """How many messages wait at the broker, `None` if unknown. Asks the broker, nothing else."""
        ...

    def close(self) -> None:
        """Disconnect without waiting for the broker. A `receive` in progress returns soon, empty."""
        ...


class PubSub(Protocol):
    """A broker. Creating a publisher, a subscriber or a consumer does not connect yet."""

    @property
    def label(self) -> str:
        """The broker's URL without credentials, for people."""
        ...

    def publisher(self) -> Publisher:
        """A publisher with its own connection."""
        ...

    def subscriber(self, destination: str) -> Subscriber:
        """A subscriber, with its own connection, to the notifications of a destination."""
        ...

    def consumer(self, topic: str, subscription: str, cursor_of: CursorOf) -> Consumer:
        """A consumer, with its own connection, of the messages of `topic` as `subscription`.

        `cursor_of` reads a reader's cursor from the store. Readers' names begin with the broker's
        scheme and contain `subscription` and the broker's unit of numbering.

        Raises `SettingsError` if this broker has no messages to subscribe to.
        """
        ...


class Adapter(NamedTuple):
    """What a broker's package provides."""

    publisher: Callable[[BrokerAddress], Publisher]
    subscriber: Callable[[BrokerAddress, str], Subscriber]
    consumer: Callable[[BrokerAddress, CursorOf], Consumer]
