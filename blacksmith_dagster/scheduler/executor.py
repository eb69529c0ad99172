"""Runs destination events' functions, each in a thread that has the destination's connection."""

from __future__ import annotations

import atexit
import inspect
import logging
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextvars import copy_context
from functools import partial
from typing import Any

from blacksmith_dagster.pipeline.destination import Destination, DestinationEvent
from blacksmith_dagster.pipeline.event import Batch
from blacksmith_dagster.redaction import describe

_log = logging.getLogger(__name__)

CLOSE_TIMEOUT = 10.0
"""Seconds to wait for a connection to be closed."""


class Executor:
    """For each calling thread and destination a thread, in it the one connection that `connect` opened.

    The first call opens the connection. It is opened, used and closed in the same thread, as many
    drivers (such as `sqlite3`) require. It is closed by `close`, at the latest when the process ends,
    and after a call that raised: the connection may be broken, and the next call opens another.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._workers: dict[tuple[int, Destination[Any]], _Worker] = {}
        atexit.register(self.close)

    def call(self, event: DestinationEvent[Any], batch: Batch[Any]) -> Future[None]:
        """Start loading a batch. The future has the exception that the function raises, if any."""
        key = threading.get_ident(), event.destination
        with self._lock:
            worker = self._workers.get(key)
            if worker is None:
                worker = self._workers[key] = _Worker(event.destination)
        return worker.submit(lambda: event(batch, *worker.connection()))

    def close(self) -> None:
        """Close all connections, except those in use by a call that does not return."""
        with self._lock:
            workers, self._workers = list(self._workers.values()), {}
        atexit.unregister(self.close)
        for worker in workers:
            worker.close()


class _Worker:
    """One destination's thread and connection."""

    def __init__(self, destination: Destination[Any]) -> None:
        self._destination = destination
        self._connection: tuple[Any, ...] | None = None
        self._finish: Callable[[], None] = lambda: None
        self._last: Future[None] | None = None
        self._tasks: queue.SimpleQueue[tuple[Callable[[], None], Future[None]] | None]
        self._tasks = queue.SimpleQueue()
        # A daemon thread: a call that never returns must not keep the process alive.
        self._thread = threading.Thread(
            target=self._work, name=f"load-{destination.name}", daemon=True
        )
        self._thread.start()

    def submit(self, task: Callable[[], None]) -> Future[None]:
        self._last = future = Future[None]()
        # In the caller's context: what the function logs has the load's fields.
        self._tasks.put((partial(copy_context().run, task), future))
        return future

    def connection(self) -> tuple[Any, ...]:
        """The function's arguments after the batch: the connection, opened if it is not, or nothing."""
        if self._connection is None:
            self._connection = self._open()
        return self._connection

    def close(self) -> None:
        self._tasks.put(None)
        if self._last is None or self._last.done():
            self._thread.join(CLOSE_TIMEOUT)

    def _work(self) -> None:
        while (item := self._tasks.get()) is not None:
            task, future = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                task()
            except BaseException as error:  # noqa: BLE001 - sys.exit() in users' code is a failure too
                future.set_exception(error)
                self._disconnect()
            else:
                future.set_result(None)
            del item, task, future  # otherwise the last batch stays in memory until the next one
        self._disconnect()

    def _disconnect(self) -> None:
        finish, self._finish, self._connection = self._finish, lambda: None, None
        try:
            finish()
        except BaseException as error:  # noqa: BLE001 - users' code; nothing depends on its result
            _log.warning(
                "the connection of destination %s was not closed: %s",
                self._destination.name,
                describe(error),
            )

    def _open(self) -> tuple[Any, ...]:
        connect = self._destination.connect
        if connect is None:
            return ()
        opened = connect()
        if inspect.isgenerator(opened):
            self._finish = lambda: _resume(opened)
            return (next(opened),)
        close = getattr(opened, "close", None)
        if callable(close):
            self._finish = lambda: close()
        return (opened,)


def _resume(opened: Iterator[Any]) -> None:
    next(opened, None)
