"""SIGINT and SIGTERM as a call to a function."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def on_stop(callback: Callable[[], None]) -> Iterator[None]:
    """Within this context, SIGINT and SIGTERM call `callback` and interrupt nothing.

    The callback runs in its own thread. A signal handler runs in the middle of whatever the main thread
    is doing, and would wait forever for a lock that the main thread holds, such as that of a
    `threading.Event`. The earlier handlers are restored at the end.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return

    def handle(*_: object) -> None:
        threading.Thread(target=callback, name="stop", daemon=True).start()

    earlier = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
