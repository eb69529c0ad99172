"""Threads that do their work only while they hold a lock."""

from __future__ import annotations

import logging
import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence

from blacksmith_dagster.errors import BlacksmithError, FencedOut, Unavailable
from blacksmith_dagster.redaction import clean, explain, traced
from blacksmith_dagster.supervisor.interface import Supervisor
from blacksmith_dagster.supervisor.renewals import Lease

_log = logging.getLogger(__name__)

# Seconds that one attempt to acquire a lock waits, and that a lock given back is left to others.
_WAIT_FOR_LOCK = 2.0


class LockLoop(threading.Thread, ABC):
    """A thread that waits for a lock, works while it holds it, and starts over until it is stopped.

    - `key`: the lock; `holder`: the name under which it is held, for people.
    - `activity`: what the thread does, for the log: `loading warehouse/flights`.
    - `stopping`: ends the thread once it is set.
    - `first_pause`, `longest_pause`: seconds; each pause is twice as long as the last.
    - `give_back_after`: seconds of an outage after which the lock is given back.

    During an outage the lock is kept: if its supervisor does not respond either, it could not be
    released and would have to expire. But when the outage lasts, the lock is given back, as another
    host may reach what this one cannot.

    `holds_lock` says whether it works under its lock; `work` sets it. `failure` is the error that
    ended the thread. `problem` says why it does not make progress: `work` calls `progressed` at each
    of its steps, and a step takes at most `longest_step` seconds.
    """

    longest_step = 120.0  # a step may wait for a store that drops packets, and retry for a minute

    first_pause: float
    longest_pause: float
    give_back_after: float

    def __init__(
        self,
        key: str,
        activity: str,
        supervisor: Supervisor,
        holder: str,
        stopping: threading.Event,
    ) -> None:
        super().__init__(name=key, daemon=True)
        self._key = key
        self._supervisor = supervisor
        self._holder = holder
        self._activity = activity
        self._stopping = stopping
        self._next_pause = self.first_pause
        self._outage_began = math.inf
        self._last_reason: str | None = None
        self.holds_lock = False
        self.failure: BaseException | None = None
        self._progressed_at = time.monotonic()

    @property
    def problem(self) -> str | None:
        """Why this thread makes no progress, `None` while it does or once it was stopped."""
        if self.failure is not None:
            return f"{self._activity} has ended: {explain(self.failure)}"
        silent = time.monotonic() - self._progressed_at
        if silent > self.longest_step and self.is_alive():
            return f"{self._activity} has made no progress for {silent:.0f} s"
        return None

    def progressed(self) -> None:
        """Note that the thread makes progress."""
        self._progressed_at = time.monotonic()

    @abstractmethod
    def work(self, lease: Lease) -> None:
        """Work until stopped or until the lease is lost; called again while the lock is held.

        Raises `Unavailable` for an outage, which is waited out, and `FencedOut` to release the lock
        and acquire it again. Any other error ends the thread.
        """

    def interrupted(self, reason: str) -> None:
        """Called before each pause."""

    def pause(self, error: Exception) -> None:
        """Wait before the next attempt. The same reason is logged once."""
        self.interrupted(self._log_once(error))
        self._outage_began = min(self._outage_began, time.monotonic())
        self.progressed()
        self._stopping.wait(self._next_pause)
        self._next_pause = min(2 * self._next_pause, self.longest_pause)

    def recovered(self) -> None:
        """End the outage: the next one is logged, and begins with a short pause."""
        self._next_pause = self.first_pause
        self._outage_began = math.inf
        self._last_reason = None

    def run(self) -> None:
        """Work under the lock until stopped."""
        try:
            while not self._stopping.is_set():
                self.progressed()
                self._acquire_and_work()
        except BaseException as error:  # noqa: BLE001 - reported as `failure`
            self.failure = error
            _log.error("this process has stopped %s: %s", self._activity, _logged(error))

    def _acquire_and_work(self) -> None:
        try:
            lease = self._supervisor.acquire(self._key, self._holder, wait=_WAIT_FOR_LOCK)
        except Unavailable as error:
            self._log_once(error)
            self._stopping.wait(self.first_pause)
            return
        if self._outage_began == math.inf:
            self._last_reason = None  # only the supervisor did not respond, and it does now
        if lease is None:
            return
        with lease:
            give_back = self._work_under(lease)
        if give_back:
            self._stopping.wait(_WAIT_FOR_LOCK)  # for another host to acquire it

    def _work_under(self, lease: Lease) -> bool:
        """Work while the lease holds; returns whether to give it up because of a long outage."""
        acquired_at = time.monotonic()
        try:
            while not (self._stopping.is_set() or lease.lost.is_set()):
                try:
                    self.work(lease)
                except Unavailable as error:
                    self.pause(error)
                outage_began = max(self._outage_began, acquired_at)
                if time.monotonic() - outage_began >= self.give_back_after:
                    return True
        except FencedOut as error:
            _log.warning("%s", error)
        finally:
            self.holds_lock = False
        return False

    def _log_once(self, error: Exception) -> str:
        reason = explain(error)
        if reason != self._last_reason:
            _log.warning(
                "%s is interrupted and will be retried: %s", self._activity, _logged(error)
            )
        self._last_reason = reason
        return reason


class LockLoops:
    """Several such threads, started and stopped together. One that fails leaves the others running."""

    def __init__(self, loops: Sequence[LockLoop], stopping: threading.Event) -> None:
        self._loops = loops
        self._stopping = stopping

    def start(self) -> None:
        """Start every thread."""
        for loop in self._loops:
            loop.start()

    def stop(self) -> None:
        """Finish the work under way, and release the locks."""
        self._stopping.set()
        for loop in self._loops:
            loop.join()

    @property
    def failure(self) -> BaseException | None:
        """The error of a thread that has failed, if one has."""
        return next((loop.failure for loop in self._loops if loop.failure), None)

    @property
    def problems(self) -> Sequence[str]:
        """Why threads of these make no progress."""
        return [loop.problem for loop in self._loops if loop.problem]

    @property
    def is_over(self) -> bool:
        """Whether all threads have ended; valid after the start."""
        return not any(loop.is_alive() for loop in self._loops)

    @property
    def holds_locks(self) -> bool:
        """Whether one of the threads holds its lock."""
        return any(loop.holds_lock for loop in self._loops)


def _logged(error: BaseException) -> str:
    """A known error needs no traceback."""
    return clean(str(error)) if isinstance(error, BlacksmithError) else traced(error)
