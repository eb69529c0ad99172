"""Signals that ask a process to end, as a call instead of an interruption."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def on_stop(callback: Callable[[], None]) -> Iterator[None]:
    """SIGINT and SIGTERM call `callback`, and interrupt nothing; the handlers before come back.

    It is called in a thread of its own: a handler runs amid whatever the main thread is doing, and
    would wait for ever for a lock that this one holds, that of a `threading.Event` for example.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return

    def handle(*_: object) -> None:
        threading.Thread(target=callback, name="stop", daemon=True).start()

    before = {each: signal.signal(each, handle) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
