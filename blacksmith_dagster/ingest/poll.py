"""From what a poll's function returns to committed events, and the cursor with them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

import msgspec

from blacksmith_dagster.errors import CursorMoved, FencedOut, TooLarge, UsageError
from blacksmith_dagster.ingest.extract import REQUEST_EVENTS, Extractor
from blacksmith_dagster.ingest.ingest import commit_extracted, destinations_to_notify, extract_group
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.event import Event
from blacksmith_dagster.pipeline.source import SourceEvent
from blacksmith_dagster.pipeline.triggers import Poll
from blacksmith_dagster.pubsub.notifier import Notify
from blacksmith_dagster.store.interface import Cursor, RawRequest, Store

if TYPE_CHECKING:
    from blacksmith_dagster.supervisor.interface import Lease, Supervisor


class Polled(msgspec.Struct, frozen=True):
    """What a poll has brought.

    - `events`: that were received, those with a known key and children included.
    - `quarantined`: those that could not be ingested.
    - `skipped`: who polls this event now, if another does; then the function was not called.
    """

    events: int = 0
    quarantined: int = 0
    skipped: str | None = None


def poll(
    app: Blacksmith,
    event: SourceEvent[Any, Any, Any],
    *,
    store: Store,
    supervisor: Supervisor,
    at: datetime,
    holder: str,
    notify: Notify = lambda _: None,
) -> Polled:
    """Call the function of a `Cron` event, and keep what it returns together with its cursor.

    All of it goes in one commit, or none: a function that raises leaves the cursor as it was, and so
    does a process that is killed. An event that cannot be ingested goes to quarantine in that commit.
    One poll of an event runs at a time, under the lock `listen/<source>/<event>`.

    - `at`: when this poll was due, in UTC; the function is told.
    - `holder`: the name under which it holds the lock, for people.
    - `notify`: is called with the destination events that have new jobs.

    Raises whatever the function raises; `TypeError` for what is no event; `UsageError` for a cursor
    that is no JSON; `TooLarge` for more than 100,000 events; `FencedOut` when the lock was lost
    meanwhile, `CursorMoved` when another has read on; `Unavailable`.
    """
    key = f"listen/{event.path}"
    lease = supervisor.acquire(key, holder)
    if lease is None:
        return Polled(skipped=f"{event.path} is polled by {supervisor.status(key).held_by}")
    with lease:
        return _poll(app, event, store, at, lease, notify)


def _poll(
    app: Blacksmith,
    event: SourceEvent[Any, Any, Any],
    store: Store,
    at: datetime,
    lease: Lease,
    notify: Notify,
) -> Polled:
    reader = f"cron/{event.path}"
    before = store.cursor(reader)
    handed = Poll(None if before is None else msgspec.json.decode(before), at)
    events = list(islice(_several(event.path, event(handed)), REQUEST_EVENTS + 1))
    if len(events) > REQUEST_EVENTS:
        raise TooLarge(
            f"a poll of {event.path} gave more than {REQUEST_EVENTS} events, which are committed "
            "together; return fewer, with the cursor at the last of them: the next poll goes on there"
        )
    extractor = Extractor(app, event)
    extracted = [extract_group(extractor, each) for each in events]
    after = _written(event.path, handed.cursor)
    moves = before is not None or handed.cursor is not None
    cursors = [Cursor(reader, before, after)] if moves else []
    if lease.lost.is_set():
        raise FencedOut(
            f"the lock of {event.path} was lost while its function ran, and another may poll by now; "
            "nothing was kept, and the next poll begins from the same cursor"
        )
    try:
        ids = commit_extracted(store, event.path, events, extracted, cursors)
    except CursorMoved:
        # Its own message shows the cursor, which may be secret.
        raise CursorMoved(
            f"{event.path} was polled by another process meanwhile; nothing was kept, and the next poll "
            "begins from the cursor that the other has left"
        ) from None
    notify(destinations_to_notify(extracted))
    quarantined = sum(isinstance(each, RawRequest) for each in extracted)
    return Polled(sum(map(len, ids)) - quarantined, quarantined)


def _several(path: str, returned: Any) -> Iterator[Event[Any]]:
    if isinstance(returned, Event):
        yield returned
        return
    each = returned
    if isinstance(returned, Iterable) and not isinstance(returned, str | bytes | Mapping):
        for each in returned:
            if not isinstance(each, Event):
                break
            yield each
        else:
            return
    raise TypeError(
        f"{path} gave a {type(each).__name__}; it must return an Event or a list of them, or yield "
        "them; an empty list if there is nothing new"
    )


def _written(path: str, cursor: Any) -> str:
    try:
        return msgspec.json.encode(cursor).decode()
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UsageError(
            f"{path} has set poll.cursor to what JSON cannot hold: {error}; set it to text, a number, a "
            "list or a dict of these"
        ) from error
