"""Polls: the events that a `Cron` function returns are committed together with its cursor."""

from __future__ import annotations

from datetime import datetime
from itertools import islice
from typing import Any

import msgspec

from blacksmith_dagster.errors import CursorMoved, FencedOut, TooLarge, UsageError
from blacksmith_dagster.ingest.extract import events_in
from blacksmith_dagster.ingest.ingest import Ingester
from blacksmith_dagster.ingest.items import REQUEST_EVENTS
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.event import Event
from blacksmith_dagster.pipeline.source import AnySourceEvent
from blacksmith_dagster.pipeline.triggers import Poll
from blacksmith_dagster.pubsub.notifier import Notify
from blacksmith_dagster.store import Store
from blacksmith_dagster.store.records import Cursor
from blacksmith_dagster.supervisor import Lease, Supervisor

_RULE = "an Event or a list of them, or yield them; an empty list if there is nothing new"


class Polled(msgspec.Struct, frozen=True):
    """The result of a poll.

    - `events`: how many were received, children and those with a known key included.
    - `quarantined`: how many could not be ingested.
    - `skipped`: which process polls this event now, if another does; then the function was not
      called.
    """

    events: int = 0
    quarantined: int = 0
    skipped: str | None = None


def poll(
    app: Blacksmith,
    event: AnySourceEvent,
    *,
    store: Store,
    supervisor: Supervisor,
    at: datetime,
    holder: str,
    notify: Notify = lambda _: None,
) -> Polled:
    """Call the function of a `Cron` event, and store what it returns together with its cursor.

    All of it goes into one commit: the cursor does not move if the function raises or the process is
    killed. An event that cannot be ingested goes to quarantine in the same commit. One poll of an
    event runs at a time, under the lock `listen/<source>/<event>`.

    - `at`: when this poll was due, in UTC; the function receives it.
    - `holder`: the name under which it holds the lock, for people.
    - `notify`: is called with the destination events that have new jobs.

    Raises whatever the function raises; `TypeError` if it returns anything but events; `UsageError`
    for a cursor that JSON cannot hold; `TooLarge` for more than 100,000 events; `FencedOut` when the
    lock was lost meanwhile, `CursorMoved` when another process has read on; `Unavailable`.
    """
    key = f"listen/{event.path}"
    lease = supervisor.acquire(key, holder)
    if lease is None:
        return Polled(skipped=f"{event.path} is polled by {supervisor.status(key).held_by}")
    with lease:
        return _poll(event, Ingester(app, event, store, notify), at, lease)


def _poll(event: AnySourceEvent, ingester: Ingester, at: datetime, lease: Lease) -> Polled:
    reader = f"cron/{event.path}"
    before = ingester.store.log.cursor(reader)
    cron_poll = Poll(None if before is None else msgspec.json.decode(before), at)
    returned = events_in(event(cron_poll), Event, event.path, _RULE)
    events: list[Event[Any]] = list(islice(returned, REQUEST_EVENTS + 1))
    if len(events) > REQUEST_EVENTS:
        raise TooLarge(
            f"a poll of {event.path} gave more than {REQUEST_EVENTS} events, which are committed "
            "together; return fewer, with the cursor at the last of them: the next poll continues there"
        )
    extracted = [ingester.extract_group(polled) for polled in events]
    after = _encoded_cursor(event.path, cron_poll.cursor)
    moves = before is not None or cron_poll.cursor is not None
    cursors = [Cursor(reader, before, after)] if moves else []
    if lease.lost.is_set():
        raise FencedOut(
            f"the lock of {event.path} was lost while its function ran, so another process may poll it "
            "now; nothing was stored, and the next poll starts from the same cursor"
        )
    try:
        ids, quarantined = ingester.commit(events, extracted, cursors)
    except CursorMoved:
        # Its own message shows the cursor, which may be secret.
        raise CursorMoved(
            f"{event.path} was polled by another process meanwhile; nothing was stored, and the next "
            "poll starts from that process's cursor"
        ) from None
    return Polled(sum(map(len, ids)), quarantined)


def _encoded_cursor(path: str, cursor: Any) -> str:
    try:
        return msgspec.json.encode(cursor).decode()
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UsageError(
            f"{path} has set poll.cursor to what JSON cannot hold: {error}; set it to text, a number, a "
            "list or a dict of these"
        ) from error
