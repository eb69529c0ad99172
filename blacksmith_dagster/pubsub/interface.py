"""Brokers: notifications, and the messages that are events.

A notification is a hint that a destination event has new jobs: one that is lost, late or doubled changes
when a job is loaded, nothing else. A message of a subscription is an event: the store knows how far
it was read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, Protocol, TypeAlias

from blacksmith_dagster.pipeline.triggers import Message
from blacksmith_dagster.store.interface import Cursor

CursorOf: TypeAlias = Callable[[str], str | None]


class Publisher(Protocol):
    """Tells that destination events have new jobs. Used by one thread."""

    def publish(self, paths: Collection[str]) -> None:
        """Send the paths of destination events, one message per destination.

        Connects when first called, and anew after a failure. Returns once the broker has said that
        it has the messages.

        Raises `Unavailable` within a few seconds when it does not; the next call tries again.
        """
        ...

    def close(self) -> None:
        """Disconnect; waits for no broker."""
        ...


class Subscriber(Protocol):
    """Hears of the new jobs of one destination. Used by one thread, except for `close`.

    Every subscriber of a destination hears every notification: one that is stopped or about to end takes
    none away from the one that follows it.
    """

    def wait(self, timeout: float) -> Collection[str]:
        """The paths of the destination events told of since the last call.

        Waits for the first of them, for `timeout` seconds at most. Connects when first called, and
        anew after a failure, and returns nothing as soon as it has: notifications from that moment on
        will be heard, and whatever came before is to be looked for in the store.

        Raises `Unavailable` when the broker does not respond or refuses; the next call tries again.
        """
        ...

    def close(self) -> None:
        """Disconnect; waits for no broker. A `wait` under way returns soon."""
        ...


class Received(NamedTuple):
    """A message, and how reading it moves the reader on; `None` if the message's id alone makes it
    once."""

    message: Message
    cursor: Cursor | None


class Consumer(Protocol):
    """Reads the messages of a subscription. Used by one thread, except for `close`.

    One consumer of a subscription reads at a time: its user holds a lock. Where the broker numbers
    its messages, reading begins behind the cursors that the store has, not where the broker
    believes it to be.
    """

    def receive(self, limit: int, timeout: float) -> Sequence[Received]:
        """The next messages, `limit` at most, in the order of the broker.

        Waits for the first of them, for `timeout` seconds at most. Connects when first called, and
        anew after a failure, and then begins behind what is committed.

        Raises `Unavailable` when the broker does not respond or refuses; the next call tries again.
        Raises `SettingsError` for a subscription that can't be read in this way.
        """
        ...

    def acknowledge(self) -> None:
        """Tell the broker that all that was received is committed.

        What can't be told now is told later or when reading begins anew: it may come again.
        """
        ...

    def lag(self) -> int | None:
        """How many messages wait at the broker, as far as it is known; asks it at most."""
        ...

    def close(self) -> None:
        """Disconnect; waits for no broker. A `receive` under way returns soon, with nothing."""
        ...


class PubSub(Protocol):
    """A broker. Making a publisher, a subscriber or a consumer connects to nothing yet."""

    @property
    def label(self) -> str:
        """Which broker this is, for people: its URL without credentials."""
        ...

    def publisher(self) -> Publisher:
        """A publisher of its own connection."""
        ...

    def subscriber(self, destination: str) -> Subscriber:
        """A subscriber, with a connection of its own, to what is told of a destination."""
        ...

    def consumer(self, topic: str, subscription: str, cursor_of: CursorOf) -> Consumer:
        """A consumer, with a connection of its own, of the messages of `topic` as `subscription`.

        `cursor_of` is the store's: a reader's cursor. The readers' names begin with the broker's
        scheme and hold `subscription` and what the broker numbers by.

        Raises `SettingsError` if this broker has no messages to subscribe to.
        """
        ...
