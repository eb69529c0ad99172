"""Publishes notifications from a thread of its own, so that commits never wait for the broker."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from typing import TypeAlias

from blacksmith_dagster.errors import Unavailable
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pubsub.interface import PubSub

Notify: TypeAlias = Callable[[Iterable[str]], None]
"""Called with the paths of destination events that have new jobs."""

_log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
"""Seconds between two attempts while the broker does not respond."""

_CLOSE_SECONDS = 3.0


class Notifier:
    """Publishes that realtime destination events have new jobs.

    Events that are notified while a message is being sent go with the next one. While the broker does
    not respond, the notifier keeps each path once and sends them all when it responds again;
    meanwhile the loaders' sweeps find the jobs.

    `unpublished` counts the notifications that could not be sent in time, each once.
    """

    def __init__(self, app: Blacksmith, pubsub: PubSub) -> None:
        self._realtime = frozenset(
            path for path, event in app.destination_events.items() if event.schedule.realtime
        )
        self._label = pubsub.label
        self._publisher = pubsub.publisher()
        self._pending: set[str] = set()
        self._late: set[str] = set()  # could not be sent yet; used only by the thread
        self._lock = threading.Lock()
        self._wanted = threading.Event()
        self._closing = threading.Event()
        self.unpublished = 0
        self._thread = threading.Thread(target=self._run, name="blacksmith-notifier", daemon=True)
        self._thread.start()

    def notify(self, paths: Iterable[str]) -> None:
        """Publish soon that these destination events have new jobs; never blocks.

        Ignores those that are not realtime.
        """
        realtime = self._realtime.intersection(paths)
        if realtime:
            with self._lock:
                self._pending |= realtime
            self._wanted.set()

    def close(self) -> None:
        """Send what is pending, for a few seconds at most, and disconnect."""
        self._closing.set()
        self._wanted.set()
        self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        responds = True
        while not self._closing.is_set():
            self._wanted.wait()
            responds = self._publish(responds)
            if not responds:
                self._closing.wait(RETRY_SECONDS)
        if responds:
            self._publish(responds)
        self._publisher.close()

    def _publish(self, responded: bool) -> bool:
        """Send what is pending; returns whether the broker responds."""
        self._wanted.clear()
        with self._lock:
            pending, self._pending = self._pending, set()
        if not (pending or self._late):
            return responded
        try:
            self._publisher.publish(pending | self._late)
        except Exception as error:  # noqa: BLE001 - no error may end this thread
            self.unpublished += len(pending)
            if responded:
                _log.warning(
                    "notifications cannot be published; loaders find jobs by their sweeps: %s",
                    error,
                    exc_info=None if isinstance(error, Unavailable) else error,
                )
            self._late |= pending
            self._wanted.set()
            return False
        self._late.clear()
        if not responded:
            _log.warning(
                "%s accepts notifications again; %d could not be published in time",
                self._label,
                self.unpublished,
            )
        return True
