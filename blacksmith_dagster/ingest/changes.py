"""From what a listener's generator yields to committed events."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import msgspec

from blacksmith_dagster.errors import UsageError
from blacksmith_dagster.ingest.extract import Extractor
from blacksmith_dagster.ingest.ingest import commit_extracted, destinations_to_notify, extract_group
from blacksmith_dagster.ingest.quarantine import EventGroup
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.event import Event
from blacksmith_dagster.pipeline.source import SourceEvent
from blacksmith_dagster.pipeline.triggers import Listener
from blacksmith_dagster.pubsub.notifier import Notify
from blacksmith_dagster.store.interface import Cursor, RawRequest, Store

EVENTS = 2_000
"""How many events are committed at once, at most."""

_WAITING = 4_000  # events that were yielded and wait for their commit; more are not asked for
_GRACE = 10.0  # seconds that a generator has to return in when it is asked to


class _YieldedEvent(NamedTuple):
    event: EventGroup
    cursor: str


class _GeneratorEnd(NamedTuple):
    error: BaseException | None


class Changes:
    """Runs the generator of one CDC event in a thread, and keeps what it yields.

    While one commit is under way the generator goes on, and what it yields makes the next one. An event
    that cannot be kept goes to quarantine with its error.
    """

    def __init__(
        self,
        app: Blacksmith,
        event: SourceEvent[Any, Any, Any],
        store: Store,
        notify: Notify,
    ) -> None:
        self._path = event.path
        self._store = store
        self._notify = notify
        self._extractor = Extractor(app, event)
        self._cursor = store.cursor(self._reader)
        self._stop = threading.Event()
        cursor = None if self._cursor is None else msgspec.json.decode(self._cursor)
        self._listener = Listener(cursor, self._stop)
        # A bounded Queue takes ten times as long for each event.
        self._yielded: SimpleQueue[_YieldedEvent | _GeneratorEnd] = SimpleQueue()
        self._has_room = threading.Event()
        self._ended: _GeneratorEnd | None = None
        self._thread = threading.Thread(
            target=self._run, args=[event.function], name=f"cdc-{event.path}", daemon=True
        )
        self._thread.start()

    @property
    def _reader(self) -> str:
        return f"cdc/{self._path}"

    def read(self, timeout: float) -> int | None:
        """Keep what was yielded; returns how many events, `None` if nothing was in `timeout` seconds.

        Raises what the generator has raised, `CursorMoved`, and what the store raises.
        """
        gathered = [] if self._ended else self._gather(timeout)
        if not gathered:
            self._raise_if_ended()
            return None
        return self._commit(gathered)

    def finish(self) -> Iterator[int | None]:
        """Have the generator return, and keep what it has yielded: how many events, by commits."""
        self._stop.set()
        ends = time.monotonic() + _GRACE
        while self._ended is None and time.monotonic() < ends:
            yield self.read(1.0)  # if it stays all the same, what it yields later is read again
        self._raise_if_ended()

    def close(self) -> None:
        """Have the generator return; what it yields is not kept any more."""
        self._stop.set()
        with contextlib.suppress(Empty):  # it does not return, and is left behind
            while self._ended is None:
                each = self._yielded.get(timeout=_GRACE)
                self._has_room.set()
                self._ended = each if isinstance(each, _GeneratorEnd) else None

    def lag(self) -> tuple[int | None, str]:
        """How much waits at the origin, as the generator says, and in what unit."""
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
        except BaseException as raised:  # noqa: BLE001 - raised again by `read`
            error = raised
        self._yielded.put(_GeneratorEnd(error))

    def _wait_for_room(self) -> None:
        while self._yielded.qsize() >= _WAITING:
            self._has_room.clear()
            if self._yielded.qsize() >= _WAITING:  # it may have been read before the clearing
                self._has_room.wait()

    def _gather(self, timeout: float) -> list[_YieldedEvent]:
        gathered: list[_YieldedEvent] = []
        with contextlib.suppress(Empty):
            each = self._yielded.get(timeout=timeout)
            while isinstance(each, _YieldedEvent):
                gathered.append(each)
                if len(gathered) == EVENTS:
                    break
                each = self._yielded.get_nowait()
            else:
                self._ended = each
        self._has_room.set()
        return gathered

    def _raise_if_ended(self) -> None:
        if self._ended is None:
            return
        if self._ended.error is not None:
            raise self._ended.error
        if not self._stop.is_set():
            raise UsageError(
                f"{self._path}: its generator has returned, and a listener goes on until "
                "`listener.stopping`; wait for more with `listener.wait(seconds)`"
            )

    def _commit(self, gathered: list[_YieldedEvent]) -> int:
        groups = [each.event for each in gathered]
        extracted = [extract_group(self._extractor, group) for group in groups]
        cursor = gathered[-1].cursor
        moves = self._cursor is not None or cursor != "null"
        cursors = [Cursor(self._reader, self._cursor, cursor)] if moves else []
        commit_extracted(self._store, self._path, groups, extracted, cursors)
        if moves:
            self._cursor = cursor
        self._listener.committed = msgspec.json.decode(cursor)
        self._notify(destinations_to_notify(extracted))
        return sum(1 if isinstance(each, RawRequest) else len(each) for each in extracted)


def _generator(returned: Iterable[Event[Any]]) -> Generator[Event[Any], None, None]:
    yield from returned
