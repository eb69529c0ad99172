"""Realtime loading: jobs are loaded as soon as they are stored."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from blacksmith_dagster.errors import Unavailable
from blacksmith_dagster.logs import log_fields
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.destination import AnyDestinationEvent, Destination
from blacksmith_dagster.pubsub import Subscriber
from blacksmith_dagster.redaction import explain
from blacksmith_dagster.scheduler.loader import StandardScheduler
from blacksmith_dagster.scheduler.outcomes import LoadReport, Summary
from blacksmith_dagster.store import Store
from blacksmith_dagster.store.records import Lane
from blacksmith_dagster.supervisor import Lease, Supervisor
from blacksmith_dagster.supervisor.lock_loop import LockLoop, LockLoops

_log = logging.getLogger(__name__)

SWEEP = 5.0
"""Seconds between two sweeps of the store for what no notification has reported."""

SWEEP_ALONE = 1.0
"""Seconds between two sweeps while the broker does not respond."""

_RETRY = 1.0
_LONGEST_WAIT = 120.0  # seconds for the broker and a sweep; each gives up well before

ReportLoad = Callable[[AnyDestinationEvent, LoadReport], None]


def realtime_events(destination: Destination[Any]) -> list[AnyDestinationEvent]:
    """The events of a destination that are loaded in realtime."""
    return [event for event in destination.events.values() if event.schedule.realtime]


class Realtime(LockLoops):
    """Loads the realtime events of one destination until it is stopped, each in a thread of its own.

    A thread waits for its event's lock, then loads whenever it is woken: by a notification, by a
    retry that falls due, or by the sweep that finds what a lost notification missed.

    - `holder`: the name under which it holds the locks, for people; `run` the Dagster run in the
      history.
    - `report(event, done)` is called after each load, in the event's thread.

    It waits for a store, supervisor or broker that does not respond. A thread that cannot continue,
    because its load ran past the time-out (`Timeout`) or because of a bug, ends and leaves its error
    in `failure`; the others continue.
    """

    def __init__(
        self,
        app: Blacksmith,
        destination: Destination[Any],
        scheduler: StandardScheduler,
        *,
        store: Store,
        supervisor: Supervisor,
        subscriber: Subscriber[Any],
        holder: str,
        report: ReportLoad,
        run: str | None = None,
    ) -> None:
        stopping = threading.Event()
        self._store = store
        self._subscriber = subscriber
        self._broker_responds: bool | None = None  # None until the first attempt
        self._store_responds = True
        self._waker_failure: BaseException | None = None
        self._swept_at = time.monotonic()
        self._loaders = {
            event.path: _RealtimeLoader(
                event,
                store,
                supervisor,
                holder,
                partial(scheduler.drain, app, event, store=store, run=run, stop=stopping),
                report,
                stopping,
            )
            for event in realtime_events(destination)
        }
        super().__init__(list(self._loaders.values()), stopping)
        self._name = destination.name
        self._waker = threading.Thread(
            target=self._wake_until_stopped, name=f"wake-{destination.name}", daemon=True
        )

    def start(self) -> None:
        """Start loading."""
        self._waker.start()
        super().start()

    def stop(self) -> None:
        """Finish the loads under way, record them, and release the locks.

        A load that has run past its time-out is not waited for.
        """
        self._stopping.set()
        self._subscriber.close()
        self.wake(self._loaders)
        super().stop()
        self._waker.join(_RETRY)

    def wake(self, paths: Iterable[str]) -> None:
        """Let destination events look for jobs now; unknown paths are ignored."""
        for path in paths:
            if path in self._loaders:
                self._loaders[path].woken.set()

    @property
    def failure(self) -> BaseException | None:
        """The error of a thread that has failed, if one has."""
        return super().failure or self._waker_failure

    @property
    def problems(self) -> Sequence[str]:
        """Why threads of it make no progress."""
        waker = None
        if self._waker_failure is not None:
            waker = f"waking the loads of {self._name} has ended: {explain(self._waker_failure)}"
        elif self._waker.is_alive() and time.monotonic() - self._swept_at > _LONGEST_WAIT:
            waker = f"waking the loads of {self._name} has made no progress"
        return [*super().problems, *([waker] if waker else [])]

    @property
    def is_over(self) -> bool:
        """Whether it no longer loads any of its events; valid after the start."""
        return super().is_over or not self._waker.is_alive()

    @property
    def idle(self) -> float:
        """Seconds since the last load ended, or since the start; 0 while one is under way."""
        return min(loader.idle for loader in self._loaders.values())

    def _wake_until_stopped(self) -> None:
        try:
            sweep_at = time.monotonic()
            while not self._stopping.is_set():
                left = sweep_at - time.monotonic()
                if left <= 0 or self._must_sweep(left):
                    sweep_at = time.monotonic() + self._sweep()
        except BaseException as error:  # noqa: BLE001 - reported as `failure`
            self._waker_failure = error
            _log.error("this process has stopped waking the loads of %s: %s", self._name, error)

    def _must_sweep(self, timeout: float) -> bool:
        """Wait for notifications; returns whether to sweep: because none arrived, or because some may
        have been missed (a subscriber that has just reconnected returns none)."""
        try:
            paths = self._subscriber.wait(timeout)
        except Unavailable as error:
            if self._broker_responds is not False:
                _log.warning("no notifications arrive; the store is swept instead: %s", error)
            self._broker_responds = False
            self._stopping.wait(min(timeout, SWEEP_ALONE))
            return True
        self._broker_responds = True
        self.wake(paths)
        return not paths

    def _sweep(self) -> float:
        """Wake all if something is due; returns the seconds until the next sweep."""
        pause = SWEEP if self._broker_responds else SWEEP_ALONE
        self._swept_at = time.monotonic()
        try:
            due = self._store.counts.next_due(*self._loaders)
        except Unavailable as error:
            if self._store_responds:
                _log.warning("the store does not respond and will be swept again: %s", error)
            self._store_responds = False
            return SWEEP_ALONE
        self._store_responds = True
        if due == 0:
            self.wake(self._loaders)
        return min(pause, due or pause)


class _RealtimeLoader(LockLoop):
    """Loads the jobs of one destination event."""

    first_pause = longest_pause = _RETRY
    give_back_after = 15.0  # as long as a lease in the store lasts

    def __init__(
        self,
        event: AnyDestinationEvent,
        store: Store,
        supervisor: Supervisor,
        holder: str,
        drain: Callable[..., Summary],
        report: ReportLoad,
        stopping: threading.Event,
    ) -> None:
        activity = f"loading {event.path}"
        super().__init__(f"load/{event.path}", activity, supervisor, holder, stopping)
        self.longest_step += event.timeout.total_seconds()
        self._event = event
        self._store = store
        self._drain = drain
        self._report = report
        self._skipped: str | None = None
        self._loading = False
        self._loaded_at = time.monotonic()
        self.woken = threading.Event()

    @property
    def idle(self) -> float:
        return 0.0 if self._loading else time.monotonic() - self._loaded_at

    def run(self) -> None:
        """Load under the lock until stopped."""
        with log_fields(event=self._event.path, destination=self._event.destination.name):
            super().run()

    def work(self, lease: Lease) -> None:
        """Load whenever woken."""
        token = self._store.loads.take_over(self._event.path, Lane.LOAD, lease.id, lease.confirm)
        self.recovered()
        self.holds_lock = True
        retry_at = math.inf
        try:
            while not self._stopping.is_set():
                self.woken.clear()
                self.progressed()
                self._loading = True
                done = self._drain(token=token, lease=lease, report=self._report_load)
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
        due = self._store.counts.next_due(self._event.path)
        # 0: it cannot be claimed now, or has just become due.
        return math.inf if due is None else time.monotonic() + (due or _RETRY)

    def _wait(self, lease: Lease, retry_at: float) -> None:
        """Wait until woken or stopped, until the next retry, or until the lock is lost."""
        # The stop sets `woken` too, but that may have been cleared before it was seen.
        while not (self._stopping.is_set() or lease.lost.is_set()):
            self.progressed()
            left = retry_at - time.monotonic()
            if left <= 0 or self.woken.wait(min(left, SWEEP)):
                break

    def _report_load(self, done: LoadReport) -> None:
        self._loaded_at = time.monotonic()
        self.progressed()
        self._report(self._event, done)
