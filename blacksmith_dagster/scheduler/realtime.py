"""The realtime loop: jobs are loaded as soon as they are there."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from blacksmith_dagster.errors import Fenced, Unavailable
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.destination import Destination, DestinationEvent
from blacksmith_dagster.scheduler.interface import LoadReport
from blacksmith_dagster.scheduler.loader import Announce, Loader
from blacksmith_dagster.scheduler.workers import Workers
from blacksmith_dagster.store.interface import Lane, Store

if TYPE_CHECKING:
    from blacksmith_dagster.pubsub import Subscriber
    from blacksmith_dagster.supervisor.interface import Lease, Supervisor

_log = logging.getLogger(__name__)

SWEEP = 5.0
"""Seconds between two looks into the store for what no wake-up has told."""

SWEEP_ALONE = 1.0
"""The same while the broker does not answer."""

_TRY_LOCK = 2.0
_AGAIN = 1.0

Report = Callable[[DestinationEvent[Any], LoadReport], None]


def realtime_events(destination: Destination[Any]) -> list[DestinationEvent[Any]]:
    """The events of a destination that are to be loaded at once."""
    return [event for event in destination.events.values() if event.schedule.realtime]


class Realtime:
    """Loads the realtime events of one destination until it is stopped, each in a thread of its own.

    A thread waits for its event's lock, and then loads whenever it is woken: by a message, by a
    retry that falls due, or by the sweep that finds what a lost message missed. A slow event holds up
    no other, as each has its own connection to the destination, too.

    - `owner`: names the holder of the locks, for people; `run` the Dagster run in the history.
    - `report(event, done)` is called after each load, in the event's thread.
    - `announce`: tells of the jobs that a load's outcomes make.

    What does not answer (store, supervisor, broker) is waited for. A thread that cannot go on, for
    the load it waits for ran past its time-out (`Timeout`) or by a bug, ends and leaves its error in
    `failure`; the others go on.
    """

    def __init__(
        self,
        app: Blacksmith,
        destination: Destination[Any],
        *,
        store: Store,
        supervisor: Supervisor,
        subscriber: Subscriber,
        owner: str,
        report: Report,
        announce: Announce,
        run: str | None = None,
    ) -> None:
        self._store = store
        self._subscriber = subscriber
        self._stopping = threading.Event()
        self._down = True
        self._keepers = {
            event.path: _Keeper(
                app, event, store, supervisor, owner, run, report, announce, self._stopping
            )
            for event in realtime_events(destination)
        }
        self._listener = threading.Thread(
            target=self._listen, name=f"listen-{destination.name}", daemon=True
        )

    def start(self) -> None:
        """Begin to load."""
        self._listener.start()
        for keeper in self._keepers.values():
            keeper.start()

    def stop(self) -> None:
        """Finish the loads under way, record them, and release the locks.

        A load that has run past its time-out is not waited for.
        """
        self._stopping.set()
        self._subscriber.close()
        self.wake(self._keepers)
        for keeper in self._keepers.values():
            keeper.join()

    def wake(self, paths: Iterable[str]) -> None:
        """Let destination events look for jobs now; those of others are left out."""
        for path in paths:
            if path in self._keepers:
                self._keepers[path].woken.set()

    @property
    def failure(self) -> BaseException | None:
        """Why an event is loaded no more, if one is not."""
        return next((each.failure for each in self._keepers.values() if each.failure), None)

    @property
    def holds_locks(self) -> bool:
        """Whether it holds the lock of any of its events."""
        return any(each.holds_lock for each in self._keepers.values())

    @property
    def idle(self) -> float:
        """Seconds since the last load ended, or since the start; 0 while one is under way."""
        return min(each.idle for each in self._keepers.values())

    def _listen(self) -> None:
        sweep_at = time.monotonic()
        while not self._stopping.is_set():
            left = sweep_at - time.monotonic()
            if left > 0 and not self._hear(left):
                continue
            sweep_at = time.monotonic() + self._sweep()

    def _hear(self, timeout: float) -> bool:
        """Wait for wake-ups; `True` if it is time to sweep: the broker answers again, or does not."""
        try:
            self.wake(self._subscriber.wait(timeout))
        except Unavailable as error:
            if not self._down:
                _log.warning("no wake-ups are heard; the store is looked into instead: %s", error)
            self._down = True
            self._stopping.wait(min(timeout, SWEEP_ALONE))
            return True
        answers_again, self._down = self._down, False
        return answers_again

    def _sweep(self) -> float:
        """Wake all if something is due; seconds until the next sweep."""
        rest = SWEEP_ALONE if self._down else SWEEP
        try:
            due = self._store.next_due(*self._keepers)
        except Unavailable as error:
            _log.warning("the store does not answer, and is asked again: %s", error)
            return rest
        if due == 0:
            self.wake(self._keepers)
        return min(rest, due or rest)


class _Keeper(threading.Thread):
    """Keeps one destination event loaded."""

    def __init__(
        self,
        app: Blacksmith,
        event: DestinationEvent[Any],
        store: Store,
        supervisor: Supervisor,
        owner: str,
        run: str | None,
        report: Report,
        announce: Announce,
        stopping: threading.Event,
    ) -> None:
        super().__init__(name=f"keep-{event.path}", daemon=True)
        self._event = event
        self._store = store
        self._supervisor = supervisor
        self._owner = owner
        self._report = report
        self._stopping = stopping
        self._workers = Workers()
        self._loader = Loader(
            app, event, store=store, workers=self._workers, run=run, announce=announce
        )
        self._loading = False
        self._loaded_at = time.monotonic()
        self.woken = threading.Event()
        self.holds_lock = False
        self.failure: BaseException | None = None

    @property
    def idle(self) -> float:
        return 0.0 if self._loading else time.monotonic() - self._loaded_at

    def run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._try()
        except BaseException as error:  # noqa: BLE001 - told by `failure`; the others go on
            self.failure = error
            _log.error("%s is loaded no more by this process: %s", self._event.path, error)
        finally:
            self._workers.close()

    def _try(self) -> None:
        try:
            lease = self._supervisor.acquire(
                f"load/{self._event.path}", self._owner, wait=_TRY_LOCK
            )
            if lease is not None:
                with lease:
                    self._load_when_woken(lease)
        except Fenced as error:
            _log.warning("%s", error)
        except Unavailable as error:
            _log.warning("%s is loaded later: %s", self._event.path, error)
            self._stopping.wait(_AGAIN)

    def _load_when_woken(self, lease: Lease) -> None:
        fence = self._store.take_over(self._event.path, Lane.LOAD, lease.id, lease.confirm)
        self.holds_lock = True
        try:
            while not self._stopping.is_set():
                self.woken.clear()
                self._loading = True
                self._loader.drain(fence, lease, self._stopping, self._tell)
                self._loading = False
                while not self.woken.wait(SWEEP) and not lease.lost.is_set():
                    pass
        finally:
            self._loading = self.holds_lock = False

    def _tell(self, done: LoadReport) -> None:
        self._loaded_at = time.monotonic()
        self._report(self._event, done)
