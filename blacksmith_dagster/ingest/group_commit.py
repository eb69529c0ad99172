"""One thread commits the requests of all senders: those gathered since the last commit, together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Sequence
from itertools import islice
from queue import SimpleQueue
from typing import TypeAlias

import msgspec

from blacksmith_dagster.errors import (
    OutcomeUnknown,
    TooManyRequests,
    Unavailable,
)
from blacksmith_dagster.ingest.extract import destinations_to_notify
from blacksmith_dagster.pubsub.notifier import Notify
from blacksmith_dagster.store import Store
from blacksmith_dagster.store.records import NewEvent, RawRequest

_Part: TypeAlias = list[NewEvent] | RawRequest
_Result: TypeAlias = list[str] | Exception


class _Waiting(msgspec.Struct, frozen=True):
    number: int
    parts: Sequence[_Part]
    ids: asyncio.Future[list[str]]


_LONGEST_COMMIT = 120.0  # seconds; one that waits for a silent network ends well before

_log = logging.getLogger(__name__)


class StoreOutages:
    """Logs an outage of the store once when it begins, and once when it ends."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._rejected = 0
        self._lock = threading.Lock()

    def failed(self, error: Unavailable, requests: int = 0) -> None:
        """The store did not respond, and this many requests were rejected for it."""
        with self._lock:
            self._rejected += requests
            if self._began is None:
                self._began = time.monotonic()
                _log.error(
                    "the store does not respond; requests are rejected until it does: %s", error
                )

    def responded(self) -> None:
        """The store has responded."""
        if self._began is None:
            return
        with self._lock:
            if self._began is not None:
                _log.warning(
                    "the store responds again after %.0f seconds, in which %d requests were rejected",
                    time.monotonic() - self._began,
                    self._rejected,
                )
            self._began, self._rejected = None, 0


class GroupCommit:
    """Adaptive group commit: there is no timer, so a single request does not wait.

    Requests that arrive during a commit form the next one. `capacity` is how many events may wait.
    After a commit `notify` is called with the destination events that have new jobs. `outages` logs
    those of the store.
    """

    def __init__(
        self,
        store: Store,
        capacity: int,
        notify: Notify | None = None,
        outages: StoreOutages | None = None,
    ) -> None:
        self._store = store
        self._capacity = capacity
        self._outages = outages or StoreOutages()
        self._notify = notify
        self._waiting = 0  # touched only by the event loop's thread
        self._loop: asyncio.AbstractEventLoop | None = None
        self._committing_since: float | None = None
        self._queue: SimpleQueue[_Waiting | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="blacksmith-commits", daemon=True)
        self._thread.start()

    def submit(
        self, events: list[NewEvent], raw_requests: Sequence[RawRequest] = ()
    ) -> asyncio.Future[list[str]]:
        """Submit the events of a request, and its parts that go to quarantine, for the next commit.

        The future's result is their ids, quarantine's last; it raises what prevented the commit.

        Raises `TooManyRequests`.
        """
        number = len(events) + len(raw_requests)
        if self._waiting and self._waiting + number > self._capacity:
            raise TooManyRequests(
                f"{self._waiting} events are waiting to be stored; send this again in a second"
            )
        self._waiting += number
        if self._loop is None:  # kept, as looking it up is a system call
            self._loop = asyncio.get_running_loop()
        ids: asyncio.Future[list[str]] = self._loop.create_future()
        self._queue.put(_Waiting(number, [events, *raw_requests], ids))
        return ids

    @property
    def makes_progress(self) -> bool:
        """Whether its thread waits for requests, or commits some and has not done so for minutes."""
        since = self._committing_since
        hangs = since is not None and time.monotonic() - since > _LONGEST_COMMIT
        return self._thread.is_alive() and not hangs

    async def stop(self) -> None:
        """Commit what was submitted, then end the thread."""
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        queue = self._queue
        running = True
        while running:
            gathered = [queue.get()]
            gathered.extend(queue.get() for _ in range(queue.qsize()))
            running = None not in gathered
            batch = [waiting for waiting in gathered if waiting is not None]
            parts = [part for waiting in batch for part in waiting.parts]
            self._committing_since = time.monotonic()
            results = self._append(parts)
            self._committing_since = None
            if self._notify is not None:
                committed = zip(parts, results, strict=True)
                self._notify(
                    destinations_to_notify(
                        part for part, result in committed if isinstance(result, list)
                    )
                )
            if len(parts) > len(batch):
                of_parts = iter(results)
                results = [_joined([*islice(of_parts, len(waiting.parts))]) for waiting in batch]
            # The loop is closed if the process got a second stop signal; then no request waits.
            with contextlib.suppress(RuntimeError):
                if self._loop is not None:
                    self._loop.call_soon_threadsafe(self._hand_back, batch, results)

    def _append(self, parts: Sequence[_Part]) -> Sequence[_Result]:
        if not parts:
            return []
        for may_retry in (True, False):
            try:
                results = self._store.log.append(parts)
                self._outages.responded()
                return results
            except Unavailable as error:
                # A connection that died while idle fails at its next commit. A commit with an
                # unknown outcome is never retried here: only the sender's key makes that safe.
                if may_retry and not isinstance(error, OutcomeUnknown):
                    continue
                self._outages.failed(error, len(parts))
                return [error] * len(parts)
            except Exception as error:  # noqa: BLE001 - the database rejects the data of a request
                if len(parts) == 1:
                    return [error]
                break
        return [self._append([part])[0] for part in parts]

    def _hand_back(self, batch: Sequence[_Waiting], results: Sequence[_Result]) -> None:
        for waiting, result in zip(batch, results, strict=True):
            self._waiting -= waiting.number
            if waiting.ids.done():
                continue
            if isinstance(result, Exception):
                waiting.ids.set_exception(result)
            else:
                waiting.ids.set_result(result)


def _joined(results: Sequence[_Result]) -> _Result:
    """The ids of all parts of a request, or the first error."""
    ids: list[str] = []
    for result in results:
        if isinstance(result, Exception):
            return result
        ids += result
    return ids
