"""The end of a lease, told by the clock."""

from __future__ import annotations

import threading
import time


class Deadline(threading.Event):
    """An event that is set by the clock, unless it is moved on in time.

    It asks the clock itself: after a pause, or while the thread that renews hangs in a call, whoever
    looks still sees the truth. `at` is of `time.monotonic()`.

    >>> deadline = Deadline(time.monotonic() + 0.01)
    >>> deadline.is_set(), deadline.wait(1)
    (False, True)
    """

    def __init__(self, at: float) -> None:
        super().__init__()
        self._at = at

    @property
    def left(self) -> float:
        """Seconds until it is set; 0 if it is."""
        return 0.0 if super().is_set() else max(self._at - time.monotonic(), 0.0)

    def move(self, at: float) -> None:
        """Set it later: it was renewed. Once set it stays so."""
        if not self.is_set():
            self._at = at

    def is_set(self) -> bool:
        """Whether it was set, or its time has come."""
        if self.left <= 0:
            self.set()
        return super().is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for it, for `timeout` seconds at most; returns whether it is set."""
        until = float("inf") if timeout is None else time.monotonic() + timeout
        while not self.is_set():
            patience = until - time.monotonic()
            if patience <= 0:
                return False
            super().wait(min(self.left, patience))
        return True
