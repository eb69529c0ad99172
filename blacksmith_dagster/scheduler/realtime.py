"""The realtime loop: jobs are loaded as soon as they are there."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from blacksmith_dagster.errors import FencedOut, Unavailable
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.destination import Destination, DestinationEvent
from blacksmith_dagster.pubsub.notifier import Notify
from blacksmith_dagster.scheduler.executor import Executor
from blacksmith_dagster.scheduler.interface import LoadReport
from blacksmith_dagster.scheduler.loader import Loader
from blacksmith_dagster.store.interface import Lane, Store

if TYPE_CHECKING:
    from blacksmith_dagster.pubsub import Subscriber
    from blacksmith_dagster.supervisor.interface import Lease, Supervisor

_log = logging.getLogger(__name__)

SWEEP = 5.0
"""Seconds between two looks into the store for what no notification has reported."""

SWEEP_ALONE = 1.0
"""The same while the broker does not respond."""

_TRY_LOCK = 2.0
_AGAIN = 1.0
_GIVE_BACK = 15.0  # seconds without the store: what a lock in the store lives

ReportLoad = Callable[[DestinationEvent[Any], LoadReport], None]


def realtime_events(destination: Destination[Any]) -> list[DestinationEvent[Any]]:
    """The events of a destination that are to be loaded at once."""
    return [event for event in destination.events.values() if event.schedule.realtime]


class Realtime:
    """Loads the realtime events of one destination until it is stopped, each in a thread of its own.

    A thread waits for its event's lock, and then loads whenever it is woken: by a message, by a
    retry that falls due, or by the sweep that finds what a lost message missed. A slow event holds up
    no other, as each has its own connection to the destination, too.

    - `holder`: the name under which it holds the locks, for people; `run` the Dagster run in the
      history.
    - `report(event, done)` is called after each load, in the event's thread.
    - `notify`: is called with the destination events that get jobs by a load's outcomes.

    What does not respond (store, supervisor, broker) is waited for. A thread that cannot go on, for
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
        holder: str,
        report: ReportLoad,
        notify: Notify,
        run: str | None = None,
    ) -> None:
        self._store = store
        self._subscriber = subscriber
        self._stopping = threading.Event()
        self._broker_responds: bool | None = None  # None until it was asked
        self._store_responds = True
        self._failure: BaseException | None = None
        self._threads = {
            event.path: _RealtimeThread(
                app, event, store, supervisor, holder, run, report, notify, self._stopping
            )
            for event in realtime_events(destination)
        }
        self._name = destination.name
        self._listener = threading.Thread(
            target=self._listen, name=f"listen-{destination.name}", daemon=True
        )

    def start(self) -> None:
        """Begin to load."""
        self._listener.start()
        for thread in self._threads.values():
            thread.start()

    def stop(self) -> None:
        """Finish the loads under way, record them, and release the locks.

        A load that has run past its time-out is not waited for.
        """
        self._stopping.set()
        self._subscriber.close()
        self.wake(self._threads)
        for thread in self._threads.values():
            thread.join()
        self._listener.join(_AGAIN)

    def wake(self, paths: Iterable[str]) -> None:
        """Let destination events look for jobs now; those of others are left out."""
        for path in paths:
            if path in self._threads:
                self._threads[path].woken.set()

    @property
    def failure(self) -> BaseException | None:
        """Why an event is loaded no more, if one is not."""
        found = (each.failure for each in self._threads.values() if each.failure)
        return next(found, self._failure)

    @property
    def is_over(self) -> bool:
        """Whether none of its events is loaded by it any more; asked after the start."""
        loading = any(each.is_alive() for each in self._threads.values())
        return not (loading and self._listener.is_alive())

    @property
    def holds_locks(self) -> bool:
        """Whether it holds the lock of any of its events."""
        return any(each.holds_lock for each in self._threads.values())

    @property
    def idle(self) -> float:
        """Seconds since the last load ended, or since the start; 0 while one is under way."""
        return min(each.idle for each in self._threads.values())

    def _listen(self) -> None:
        try:
            sweep_at = time.monotonic()
            while not self._stopping.is_set():
                left = sweep_at - time.monotonic()
                if left <= 0 or self._hears_nothing(left):
                    sweep_at = time.monotonic() + self._sweep()
        except BaseException as error:  # noqa: BLE001 - reported by `failure`
            self._failure = error
            _log.error("%s: nothing is woken any more by this process: %s", self._name, error)

    def _hears_nothing(self, timeout: float) -> bool:
        """Wait for notifications; `True` if it is time to sweep: none has come, or some may be missed,
        as a subscriber returns without any when it has connected again."""
        try:
            heard = self._subscriber.wait(timeout)
        except Unavailable as error:
            if self._broker_responds is not False:
                _log.warning(
                    "no notifications are heard; the store is looked into instead: %s", error
                )
            self._broker_responds = False
            self._stopping.wait(min(timeout, SWEEP_ALONE))
            return True
        self._broker_responds = True
        self.wake(heard)
        return not heard

    def _sweep(self) -> float:
        """Wake all if something is due; seconds until the next sweep."""
        rest = SWEEP if self._broker_responds else SWEEP_ALONE
        try:
            due = self._store.next_due(*self._threads)
        except Unavailable as error:
            if self._store_responds:
                _log.warning("the store does not respond, and is asked again: %s", error)
            self._store_responds = False
            return SWEEP_ALONE
        self._store_responds = True
        if due == 0:
            self.wake(self._threads)
        return min(rest, due or rest)


class _RealtimeThread(threading.Thread):
    """Loads one destination event, whenever it holds the lock."""

    def __init__(
        self,
        app: Blacksmith,
        event: DestinationEvent[Any],
        store: Store,
        supervisor: Supervisor,
        holder: str,
        run: str | None,
        report: ReportLoad,
        notify: Notify,
        stopping: threading.Event,
    ) -> None:
        super().__init__(name=f"load-{event.path}", daemon=True)
        self._event = event
        self._store = store
        self._supervisor = supervisor
        self._holder = holder
        self._report = report
        self._stopping = stopping
        self._executor = Executor()
        self._loader = Loader(
            app, event, store=store, executor=self._executor, run=run, notify=notify
        )
        self._responded = True
        self._away_at = math.inf  # since when something has not responded
        self._skipped: str | None = None
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
                self._load_under_lock()
        except BaseException as error:  # noqa: BLE001 - reported by `failure`; the others go on
            self.failure = error
            _log.error("%s is loaded no more by this process: %s", self._event.path, error)
        finally:
            self._executor.close()

    def _load_under_lock(self) -> None:
        """Load while the lock can be held; returns if it is another's or was lost."""
        try:
            lease = self._supervisor.acquire(
                f"load/{self._event.path}", self._holder, wait=_TRY_LOCK
            )
        except Unavailable as error:
            self._rest(error)
            return
        self._responded = True
        if lease is None:
            return
        with lease:
            while not (self._stopping.is_set() or lease.lost.is_set()):
                try:
                    self._load_when_woken(lease)
                except Unavailable as error:
                    # The lock outlasts a short outage; given up, it could not be released, and would
                    # have to run out. But if it is kept elsewhere than in the store, another host may
                    # well reach what this one cannot.
                    self._rest(error)
                    if time.monotonic() - self._away_at > _GIVE_BACK:
                        lease.release()
                        self._stopping.wait(_TRY_LOCK)  # for another to take it
                        return
                except FencedOut as error:
                    _log.warning("%s", error)
                    return

    def _rest(self, error: Unavailable) -> None:
        if self._responded:
            self._away_at = time.monotonic()
            _log.warning("%s is loaded later: %s", self._event.path, error)
        self._responded = False
        self._stopping.wait(_AGAIN)

    def _load_when_woken(self, lease: Lease) -> None:
        token = self._store.take_over(self._event.path, Lane.LOAD, lease.id, lease.confirm)
        self.holds_lock = self._responded = True
        retry_at = math.inf
        try:
            while not self._stopping.is_set():
                self.woken.clear()
                self._loading = True
                done = self._loader.drain(token, lease, self._stopping, self._report_load)
                self._loading = False
                if done.skipped and done.skipped != self._skipped:
                    _log.warning("%s", done.skipped)
                self._skipped = done.skipped
                if done.tally.failed or time.monotonic() >= retry_at:
                    retry_at = self._next_retry()
                self._wait(lease, retry_at)
        finally:
            self._loading = self.holds_lock = False

    def _next_retry(self) -> float:
        """When a failed job is due again, on the monotonic clock. The sweep may look too late."""
        due = self._store.next_due(self._event.path)
        # 0: it cannot be claimed now, or has become due this moment.
        return math.inf if due is None else time.monotonic() + (due or _AGAIN)

    def _wait(self, lease: Lease, retry_at: float) -> None:
        """Until woken or stopped, until the time for a retry, or until the lock is lost."""
        # The stop is asked for as well: the notification of it may have been cleared unseen.
        while not (self._stopping.is_set() or lease.lost.is_set()):
            left = retry_at - time.monotonic()
            if left <= 0 or self.woken.wait(min(left, SWEEP)):
                break

    def _report_load(self, done: LoadReport) -> None:
        self._loaded_at = time.monotonic()
        self._report(self._event, done)
