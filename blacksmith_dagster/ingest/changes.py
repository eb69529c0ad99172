"""Runs the generator of a CDC event, and commits the events that it yields."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import msgspec

from blacksmith_dagster.errors import UsageError
from blacksmith_dagster.ingest.ingest import Ingester
from blacksmith_dagster.ingest.quarantine import EventGroup
from blacksmith_dagster.pipeline.event import Event
from blacksmith_dagster.pipeline.source import AnySourceEvent
from blacksmith_dagster.pipeline.triggers import Listener
from blacksmith_dagster.store.records import Cursor

EVENTS = 2_000
"""The most events in one commit."""

# While this many yielded events are uncommitted, the generator is not resumed.
_MAX_UNCOMMITTED = 4_000
_GRACE = 10.0  # seconds in which a stopped generator has to return


class _YieldedEvent(NamedTuple):
    event: EventGroup
    cursor: str


class _GeneratorEnd(NamedTuple):
    error: BaseException | None


class Changes:
    """Runs the generator of one CDC event in a thread, and commits what it yields.

    During a commit the generator keeps running, and its events form the next commit. An event that
    cannot be ingested goes to quarantine with its error.
    """

    def __init__(self, event: AnySourceEvent, ingester: Ingester) -> None:
        self._ingester = ingester
        self._reader = f"cdc/{event.path}"
        self._cursor = ingester.store.log.cursor(self._reader)
        self._stop = threading.Event()
        cursor = None if self._cursor is None else msgspec.json.decode(self._cursor)
        self._listener = Listener(cursor, self._stop)
        # A bounded Queue takes ten times as long per event.
        self._yielded: SimpleQueue[_YieldedEvent | _GeneratorEnd] = SimpleQueue()
        self._has_room = threading.Event()
        self._ended: _GeneratorEnd | None = None
        self._thread = threading.Thread(
            target=self._run, args=[event.function], name=f"cdc-{event.path}", daemon=True
        )
        self._thread.start()

    def read(self, timeout: float) -> int | None:
        """Commit what was yielded; returns how many events, or `None` if the generator has yielded
        nothing for `timeout` seconds.

        Raises what the generator has raised, `CursorMoved`, and what the store raises.
        """
        gathered = [] if self._ended else self._gather(timeout)
        if not gathered:
            self._raise_if_ended()
            return None
        return self._commit(gathered)

    def finish(self) -> Iterator[int | None]:
        """Stop the generator and commit what it has yielded; yields the number of events per commit."""
        self._stop.set()
        deadline = time.monotonic() + _GRACE
        while self._ended is None and time.monotonic() < deadline:
            yield self.read(1.0)  # what the generator yields later is read again from the cursor
        self._raise_if_ended()

    def close(self) -> None:
        """Stop the generator; what it still yields is dropped."""
        self._stop.set()
        with contextlib.suppress(Empty):  # a generator that does not return is left running
            while self._ended is None:
                item = self._yielded.get(timeout=_GRACE)
                self._has_room.set()
                self._ended = item if isinstance(item, _GeneratorEnd) else None

    def lag(self) -> tuple[int | None, str]:
        """How much waits at the origin according to the generator, and in what unit."""
        return self._listener.lag, self._listener.unit

    def _run(self, function: Callable[[Listener], Any]) -> None:
        error: BaseException | None = None
        try:
            with contextlib.closing(_generator(function(self._listener))) as events:
                for event in events:
                    cursor = msgspec.json.encode(self._listener.cursor).decode()
                    self._yielded.put(_YieldedEvent(event, cursor))
                    self._wait_for_room()
                    if self._stop.is_set():
                        break
        except BaseException as raised:  # noqa: BLE001 - `read` raises it again
            error = raised
        self._yielded.put(_GeneratorEnd(error))

    def _wait_for_room(self) -> None:
        while self._yielded.qsize() >= _MAX_UNCOMMITTED:
            self._has_room.clear()
            # False if `_gather` made room before `clear`.
            if self._yielded.qsize() >= _MAX_UNCOMMITTED:
                self._has_room.wait()

    def _gather(self, timeout: float) -> list[_YieldedEvent]:
        gathered: list[_YieldedEvent] = []
        with contextlib.suppress(Empty):
            item = self._yielded.get(timeout=timeout)
            while isinstance(item, _YieldedEvent):
                gathered.append(item)
                if len(gathered) == EVENTS:
                    break
                item = self._yielded.get_nowait()
            else:
                self._ended = item
        self._has_room.set()
        return gathered

    def _raise_if_ended(self) -> None:
        if self._ended is None:
            return
        if self._ended.error is not None:
            raise self._ended.error
        if not self._stop.is_set():
            raise UsageError(
                f"{self._ingester.path}: its generator has returned, but a listener must run until "
                "`listener.stopping`; wait for more with `listener.wait(seconds)`"
            )

    def _commit(self, gathered: list[_YieldedEvent]) -> int:
        groups = [yielded.event for yielded in gathered]
        extracted = [self._ingester.extract_group(group) for group in groups]
        cursor = gathered[-1].cursor
        moves = self._cursor is not None or cursor != "null"
        cursors = [Cursor(self._reader, self._cursor, cursor)] if moves else []
        ingested = self._ingester.commit(groups, extracted, cursors)
        if moves:
            self._cursor = cursor
        self._listener.committed = msgspec.json.decode(cursor)
        return ingested.number


def _generator(returned: Iterable[Event[Any]]) -> Generator[Event[Any], None, None]:
    yield from returned
