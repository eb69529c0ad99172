"""Wake-ups: hints that a destination event has new jobs. The store is the truth.

A message that is lost, late or doubled changes when a job is loaded, nothing else.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol


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

    Every subscriber of a destination hears every wake-up: one that is stopped or about to end takes
    none away from the one that follows it.
    """

    def wait(self, timeout: float) -> Collection[str]:
        """The paths of the destination events told of since the last call.

        Waits for the first of them, for `timeout` seconds at most. Connects when first called, and
        anew after a failure, and returns nothing as soon as it has: wake-ups from that moment on
        will be heard, and whatever came before is to be looked for in the store.

        Raises `Unavailable` when the broker does not answer or refuses; the next call tries again.
        """
        ...

    def close(self) -> None:
        """Disconnect; waits for no broker. A `wait` under way returns soon."""
        ...


class PubSub(Protocol):
    """A broker of wake-ups. Making a publisher or a subscriber connects to nothing yet."""

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
