"""Listening: messages and changes are kept together with how far they were read."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from blacksmith_dagster.errors import BlacksmithError, CursorMoved, Unavailable
from blacksmith_dagster.ingest.changes import Changes
from blacksmith_dagster.ingest.subscription import Messages
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.source import Source, SourceEvent
from blacksmith_dagster.pipeline.triggers import CDC, Subscription
from blacksmith_dagster.pubsub import PubSub
from blacksmith_dagster.pubsub.notifier import Notify
from blacksmith_dagster.redaction import clean, describe, traced
from blacksmith_dagster.store.interface import ListenerStatus, Store

if TYPE_CHECKING:
    from blacksmith_dagster.supervisor.interface import Supervisor

_log = logging.getLogger(__name__)

NOTE = 5.0
"""Seconds between two notes of a listener's status."""

_TRY_LOCK = 2.0
_FIRST_REST = 0.5
_LONGEST_REST = 30.0

ReportReceived = Callable[[SourceEvent[Any, Any, Any], int], None]


def listened_events(source: Source) -> list[SourceEvent[Any, Any, Any]]:
    """The events of a source that someone must listen for: subscriptions and CDC."""
    return [
        event for event in source.events.values() if isinstance(event.trigger, Subscription | CDC)
    ]


class Listeners:
    """Listens for the events of one source until it is stopped, for each in a thread of its own.

    A thread waits for the lock `listen/<source>/<event>`, and then reads on from where the store
    says that it was read. It notes its status in the store every few seconds.

    - `pubsub`: the broker of subscriptions that have none of their own, `None` if there is none.
    - `holder`: the name under which it holds the locks, for people.
    - `notify`: is called with the destination events that have new jobs.
    - `report(event, number)` is called after each commit, in the event's thread, with the number of
      events and of what went to quarantine.

    What does not respond (store, supervisor, broker, database), or raises, is tried again, a little
    later each time; after a minute the lock is given back, as another host may reach what this one
    cannot. A thread that meets a bug ends and leaves its error in `failure`; the others go on.
    """

    def __init__(
        self,
        app: Blacksmith,
        source: Source,
        *,
        store: Store,
        supervisor: Supervisor,
        pubsub: PubSub | None,
        holder: str,
        notify: Notify = lambda _: None,
        report: ReportReceived = lambda *_: None,
    ) -> None:
        self._stopping = threading.Event()
        self._threads = [
            _ListenerThread(
                app, event, store, supervisor, pubsub, holder, notify, report, self._stopping
            )
            for event in listened_events(source)
        ]

    def start(self) -> None:
        """Begin to listen."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Commit what was read, and release the locks."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    @property
    def failure(self) -> BaseException | None:
        """Why an event is listened for no more, if one is not."""
        return next((each.failure for each in self._threads if each.failure), None)

    @property
    def is_over(self) -> bool:
        """Whether it listens for none of its events any more; asked after the start."""
        return not any(each.is_alive() for each in self._threads)

    @property
    def holds_locks(self) -> bool:
        """Whether it holds the lock of any of its events."""
        return any(each.holds_lock for each in self._threads)

    @property
    def statuses(self) -> Sequence[ListenerStatus]:
        """The last status of each event that it has listened for."""
        return [each.status for each in self._threads if each.status]


class _ListenerThread(threading.Thread):
    """Listens for one source event, whenever it holds the lock."""

    def __init__(
        self,
        app: Blacksmith,
        event: SourceEvent[Any, Any, Any],
        store: Store,
        supervisor: Supervisor,
        pubsub: PubSub | None,
        holder: str,
        notify: Notify,
        report: ReportReceived,
        stopping: threading.Event,
    ) -> None:
        super().__init__(name=f"listen-{event.path}", daemon=True)
        self._app = app
        self._event = event
        self._store = store
        self._supervisor = supervisor
        self._pubsub = pubsub
        self._holder = holder
        self._notify = notify
        self._report = report
        self._stopping = stopping
        self._read_at: datetime | None = None
        self._noted_at = self._began = 0.0
        self._rest = _FIRST_REST
        self._last_logged: str | None = None
        self._unit = "messages"
        self.status: ListenerStatus | None = None
        self.holds_lock = False
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._listen_under_lock()
        except BaseException as error:  # noqa: BLE001 - reported by `failure`; the others go on
            self.failure = error
            path = self._event.path
            _log.error("%s is listened for no more by this process: %s", path, traced(error))

    def _listen_under_lock(self) -> None:
        """Listen while the lock can be held; returns if it is another's or was lost."""
        try:
            key = f"listen/{self._event.path}"
            lease = self._supervisor.acquire(key, self._holder, wait=_TRY_LOCK)
        except Unavailable as error:
            self._log_once(error)
            self._stopping.wait(_TRY_LOCK)
            return
        if lease is None:
            return
        with lease:
            self.holds_lock = True
            try:
                while not (self._stopping.is_set() or lease.lost.is_set()):
                    self._listen(lease.lost)
                    if self._rest == _LONGEST_REST:
                        break
            finally:
                self.holds_lock = False
        if self._rest == _LONGEST_REST:
            self._stopping.wait(_TRY_LOCK)  # for another to take it

    def _listen(self, lost: threading.Event) -> None:
        """Read until stopped, until the lock is lost, or until something does not respond."""
        # Noted soon, though not before something may have been read.
        self._began = self._noted_at = time.monotonic()
        try:
            self._read_at = self._read_at or self._last_read()
            with contextlib.closing(self._open()) as reader:
                while not (self._stopping.is_set() or lost.is_set()):
                    self._read(reader)
                if not lost.is_set():
                    for number in reader.finish():
                        self._count(number)
                    self._note(*reader.lag())
        except CursorMoved as error:
            _log.warning("%s", error)  # and read on from where the other has come
            self._stopping.wait(_FIRST_REST)
        except Exception as error:  # noqa: BLE001 - what a user's generator raises, too
            self._note(None, self._unit, self._log_once(error))
            self._stopping.wait(self._rest)
            self._rest = min(2 * self._rest, _LONGEST_REST)

    def _last_read(self) -> datetime | None:
        """When whoever listened before has read last."""
        noted = (each for each in self._store.listeners() if each.path == self._event.path)
        return next((each.read_at for each in noted), None)

    def _open(self) -> Messages | Changes:
        if isinstance(self._event.trigger, CDC):
            return Changes(self._app, self._event, self._store, self._notify)
        return Messages(self._app, self._event, self._store, self._pubsub, self._notify)

    def _read(self, reader: Messages | Changes) -> None:
        number = reader.read(timeout=1.0)
        self._count(number)
        if number is not None or time.monotonic() - self._began > _LONGEST_REST:
            self._rest, self._last_logged = _FIRST_REST, None
        if time.monotonic() - self._noted_at >= NOTE:
            self._note(*reader.lag())

    def _count(self, number: int | None) -> None:
        if number is not None:
            self._read_at = datetime.now(UTC)
        if number:
            self._report(self._event, number)

    def _log_once(self, error: Exception) -> str:
        """Log why nothing can be read, once; returns it."""
        known = isinstance(error, BlacksmithError)
        why = clean(str(error)) if known else describe(error)
        if why != self._last_logged:
            _log.warning("%s is read later: %s", self._event.path, why if known else traced(error))
        self._last_logged = why
        return why

    def _note(self, lag: int | None, unit: str, error: str | None = None) -> None:
        self._noted_at = time.monotonic()
        self._unit = unit
        self.status = ListenerStatus(
            self._event.path, self._holder, lag, unit, self._read_at, error
        )
        try:
            self._store.note_listener(self.status)
        except Unavailable as silent:
            _log.debug("%s: its status is noted later: %s", self._event.path, silent)
