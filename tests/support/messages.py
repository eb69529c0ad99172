"""A subscriber in the test's own process."""

import contextlib
from collections.abc import Collection
from queue import Empty, SimpleQueue


class Messages:
    """A subscriber in this process: the test sends its notifications, and makes it fail."""

    def __init__(self) -> None:
        self._notified: SimpleQueue[Collection[str]] = SimpleQueue()
        self._down: Exception | None = None
        self.connected = False
        self.closed = False
        self.waits = 0

    def say(self, *paths: str) -> None:
        self._notified.put(paths)

    def cut(self) -> None:
        """It reconnects, and has missed the notifications sent meanwhile."""
        self._notified.put(())

    def fail(self, error: Exception) -> None:
        """The broker is away until `heal`."""
        self._down = error
        self._notified.put(())

    def heal(self) -> None:
        self._down = None

    def wait(self, timeout: float) -> Collection[str]:
        self.waits += 1
        paths: Collection[str] = ()
        if self.connected:
            with contextlib.suppress(Empty):
                paths = self._notified.get(timeout=timeout)
        self.connected = self._down is None
        if self._down is not None:
            raise self._down
        return paths

    def close(self) -> None:
        self.closed = True
        self._notified.put(())
