"""Listens for messages and changes: each is stored together with how far its reader has come."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from blacksmith_dagster.errors import CursorMoved, Unavailable
from blacksmith_dagster.ingest.changes import Changes
from blacksmith_dagster.ingest.ingest import Ingester
from blacksmith_dagster.ingest.subscription import Messages
from blacksmith_dagster.logs import log_fields
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.source import AnySourceEvent, Source
from blacksmith_dagster.pipeline.triggers import CDC, Subscription
from blacksmith_dagster.pubsub import PubSub
from blacksmith_dagster.pubsub.notifier import Notify
from blacksmith_dagster.store import Store
from blacksmith_dagster.store.records import ListenerStatus
from blacksmith_dagster.supervisor import Lease, Supervisor
from blacksmith_dagster.supervisor.lock_loop import LockLoop, LockLoops

_log = logging.getLogger(__name__)

NOTE_INTERVAL = 5.0
"""Seconds between two notes of a listener's status."""

ReportReceived = Callable[[AnySourceEvent, int], None]


def listened_events(source: Source) -> list[AnySourceEvent]:
    """The events of a source that need a listener: subscriptions and CDC."""
    return [
        event for event in source.events.values() if isinstance(event.trigger, Subscription | CDC)
    ]


class Listeners(LockLoops):
    """Listens for the events of one source until it is stopped, for each in a thread of its own.

    A thread waits for the lock `listen/<source>/<event>`, then reads on from the cursor in the store.
    It notes its status in the store every few seconds.

    - `pubsub`: the broker of subscriptions that have none of their own, or `None`.
    - `holder`: the name under which it holds the locks, for people.
    - `notify`: is called with the destination events that have new jobs.
    - `report(event, number)` is called after each commit, in the event's thread, with the number of
      events and of requests that went to quarantine.

    A store, supervisor, broker or database that does not respond, or a function that raises, is
    retried with growing pauses; after half a minute the lock is given back, as another host may reach
    what this one cannot.
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
        stopping = threading.Event()

        def open_reader(event: AnySourceEvent) -> Messages | Changes:
            ingester = Ingester(app, event, store, notify)
            if isinstance(event.trigger, CDC):
                return Changes(event, ingester)
            return Messages(event, ingester, pubsub)

        self._listeners = [
            _ListenLoop(event, open_reader, store, supervisor, holder, report, stopping)
            for event in listened_events(source)
        ]
        super().__init__(self._listeners, stopping)

    @property
    def statuses(self) -> Sequence[ListenerStatus]:
        """The status of each event as last noted, of those that it has listened for."""
        return [listener.status for listener in self._listeners if listener.status]


class _ListenLoop(LockLoop):
    """Listens for one source event."""

    first_pause = 0.5
    longest_pause = give_back_after = 30.0  # during a pause, it keeps its lock

    def __init__(
        self,
        event: AnySourceEvent,
        open_reader: Callable[[AnySourceEvent], Messages | Changes],
        store: Store,
        supervisor: Supervisor,
        holder: str,
        report: ReportReceived,
        stopping: threading.Event,
    ) -> None:
        activity = f"listening for {event.path}"
        super().__init__(f"listen/{event.path}", activity, supervisor, holder, stopping)
        self._event = event
        self._open_reader = open_reader
        self._store = store
        self._report = report
        self._read_at: datetime | None = None
        self._noted_at = self._began = 0.0
        self._unit = "messages"
        self.status: ListenerStatus | None = None

    def run(self) -> None:
        """Listen under the lock until stopped."""
        with log_fields(event=self._event.path):
            super().run()

    def work(self, lease: Lease) -> None:
        """Read until stopped, until the lock is lost, or until something does not respond."""
        self.holds_lock = True
        # Note the first status soon, but not before there was time to read something.
        self._began = self._noted_at = time.monotonic()
        try:
            self._read_at = self._read_at or self._last_read()
            with contextlib.closing(self._open_reader(self._event)) as reader:
                while not (self._stopping.is_set() or lease.lost.is_set()):
                    self.progressed()
                    self._read(reader)
                if not lease.lost.is_set():
                    for number in reader.finish():
                        self._count(number)
                    self._note(*reader.lag())
        except CursorMoved as error:
            _log.warning("%s", error)  # the next attempt reads on from the new cursor
            self._stopping.wait(self.first_pause)
        except Exception as error:  # noqa: BLE001 - a user's generator may raise anything
            self.pause(error)

    def interrupted(self, reason: str) -> None:
        """Note why nothing can be read."""
        self._note(None, self._unit, reason)

    def _last_read(self) -> datetime | None:
        """When the previous listener last read something."""
        statuses = {status.path: status for status in self._store.log.listeners()}
        previous = statuses.get(self._event.path)
        return None if previous is None else previous.read_at

    def _read(self, reader: Messages | Changes) -> None:
        number = reader.read(timeout=1.0)
        self._count(number)
        if number is not None or time.monotonic() - self._began > self.longest_pause:
            self.recovered()
        if time.monotonic() - self._noted_at >= NOTE_INTERVAL:
            self._note(*reader.lag())

    def _count(self, number: int | None) -> None:
        if number is not None:
            self._read_at = datetime.now(UTC)
        if number:
            self._report(self._event, number)

    def _note(self, lag: int | None, unit: str, error: str | None = None) -> None:
        self._noted_at = time.monotonic()
        self._unit = unit
        path = self._event.path
        self.status = ListenerStatus(path, self._holder, lag, unit, self._read_at, error)
        try:
            self._store.log.note_listener(self.status)
        except Unavailable as unavailable:
            _log.debug("%s: its status is noted later: %s", path, unavailable)
