"""Closing a connection that another thread uses."""

from __future__ import annotations

import threading
from collections.abc import Callable


class ConnectionGuard:
    """Decides which thread disconnects when one uses a connection and another closes it.

    The user holds the guard. `close` disconnects at once if the connection is idle; otherwise it
    calls `wake`, and the user sees that it `is_closed` and disconnects.
    """

    def __init__(
        self, disconnect: Callable[[], None], wake: Callable[[], None] = lambda: None
    ) -> None:
        self._disconnect = disconnect
        self._wake = wake
        self._lock = threading.Lock()
        self.is_closed = False

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        self._disconnect_when_closed()

    def close(self) -> None:
        """Disconnect, unless it is in use: then its user does so. Any thread may call this."""
        self.is_closed = True
        self._wake()
        self._disconnect_when_closed()

    def _disconnect_when_closed(self) -> None:
        if self.is_closed and self._lock.acquire(blocking=False):
            try:
                self._disconnect()
            finally:
                self._lock.release()
