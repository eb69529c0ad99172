"""Ingests requests and messages that do not come over HTTP: no sender waits for a response."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple, TypeAlias

from blacksmith_dagster.errors import KeyReused, NotFound, RequestError, UsageError
from blacksmith_dagster.ingest.extract import Extractor, destinations_to_notify
from blacksmith_dagster.ingest.quarantine import EventGroup, as_message, as_request, raw_request_of
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.source import AnySourceEvent, SourceEvent, Webhook
from blacksmith_dagster.pipeline.triggers import HTTP, Message, Request, Subscription
from blacksmith_dagster.pubsub.notifier import Notify
from blacksmith_dagster.store import Store
from blacksmith_dagster.store.records import Cursor, NewEvent, RawRequest

EventsOrRaw: TypeAlias = list[NewEvent] | RawRequest
"""The events of a request, or what goes to quarantine."""


def ingest(
    app: Blacksmith,
    store: Store,
    event: AnySourceEvent,
    requests: Sequence[Request | Message],
    cursor: Cursor | None = None,
    received_at: datetime | None = None,
) -> list[list[str]]:
    """Store the events of `requests` to a source event in one commit, together with `cursor`.

    `received_at` is for history that is imported from elsewhere; see `Log.append`.

    Returns the ids of each request's events. A request that would be rejected, or whose function
    raises, goes to quarantine in the same commit and has no ids; a `Reply` is ignored. Repeating the
    call after a crash stores nothing twice if there is a `cursor` or the requests have keys.

    Raises `CursorMoved` if another process has read on from `cursor`, and what the store raises.
    """
    ingester = Ingester(app, event, store)
    extracted = [ingester.extract_request(request) for request in requests]
    cursors = () if cursor is None else (cursor,)
    return ingester.commit(requests, extracted, cursors, received_at).ids


class Ingested(NamedTuple):
    """The ids of each request's events, none for a request in quarantine; how many are there."""

    ids: list[list[str]]
    quarantined: int

    @property
    def number(self) -> int:
        """How many events were received, and requests put into quarantine."""
        return sum(map(len, self.ids)) + self.quarantined


class Ingester:
    """Extracts and commits the events of one source event. `notify` is called after each commit, with
    the destination events that have new jobs."""

    def __init__(
        self,
        app: Blacksmith,
        event: AnySourceEvent,
        store: Store,
        notify: Notify = lambda _: None,
    ) -> None:
        self.path = event.path
        self.store = store
        self._notify = notify
        self._extractor = Extractor(app, event)

    def extract_request(self, request: Request | Message) -> EventsOrRaw:
        """The events of a request or a message, or what goes to quarantine."""
        try:
            return self._with_known_parents(self._extractor.extract(request).events)
        except Exception as error:  # noqa: BLE001 - the user's code, or a body that is not JSON
            return raw_request_of(self.path, request, error)

    def extract_group(self, group: EventGroup) -> EventsOrRaw:
        """The events that a poll or a listener has yielded together, or what goes to quarantine: an
        event that cannot be ingested must not block those after it."""
        try:
            return self._with_known_parents(self._extractor.extract_returned(group))
        except (RequestError, NotFound) as error:
            return raw_request_of(self.path, group, error)

    def _with_known_parents(self, events: list[NewEvent]) -> list[NewEvent]:
        """The events. Raises `NotFound` if one names a parent that is not an event of this store: the
        commit would fail with it, and all that it holds."""
        for event in events:
            if isinstance(event.parent, str):
                self.store.database.epochs.seq_of(event.parent)
        return events

    def commit(
        self,
        requests: Sequence[Request | Message | EventGroup],
        extracted: Sequence[EventsOrRaw],
        cursors: Sequence[Cursor] = (),
        received_at: datetime | None = None,
    ) -> Ingested:
        """Commit what was `extracted` from `requests`. A request with a reused key goes to quarantine.

        Raises `CursorMoved`, and what the store raises.
        """
        parts = list(extracted)
        results = self.store.log.append(parts, cursors=cursors, received_at=received_at)
        while reused := {
            index: result for index, result in enumerate(results) if isinstance(result, KeyReused)
        }:
            for index, error in reused.items():
                parts[index] = raw_request_of(self.path, requests[index], error)
            if cursors:  # nothing was stored: with cursors, it is all or nothing
                results = self.store.log.append(parts, cursors=cursors, received_at=received_at)
            else:
                retried = self.store.log.append([parts[index] for index in reused])
                for index, result in zip(reused, retried, strict=True):
                    results[index] = result
        self._notify(destinations_to_notify(parts))
        ids = [
            [] if isinstance(part, RawRequest) or isinstance(result, KeyReused) else result
            for part, result in zip(parts, results, strict=True)
        ]
        return Ingested(ids, sum(isinstance(part, RawRequest) for part in parts))


def retry_quarantined(
    app: Blacksmith, store: Store, quarantine_id: str, notify: Notify = lambda _: None
) -> list[str]:
    """Ingest a request or a message from quarantine again; returns the ids of its events.

    It uses the functions that the application has now. The request leaves quarantine in the commit
    that stores its events. Its idempotency key still counts: if its sender has sent it again since,
    the ids are those of that request. A function that now returns a `Reply` makes no event. `notify`
    is called with the destination events that have new jobs.

    Raises what the function raises, and `RequestError` (`KeyReused` too): then the request stays in
    quarantine. Raises `UsageError` if no part of the application receives it, `NotFound` if it is not
    in quarantine, and what the store raises.
    """
    raw = store.quarantine.get(quarantine_id)
    event = _receiver_of(app, quarantine_id, raw)
    subscribes = isinstance(event, SourceEvent) and isinstance(event.trigger, Subscription)
    events = (
        Extractor(app, event).extract(as_message(raw) if subscribes else as_request(raw)).events
    )
    [result] = store.log.append([events], released=[quarantine_id])
    if isinstance(result, KeyReused):
        raise result
    notify(destinations_to_notify([events]))
    return result


def _receiver_of(app: Blacksmith, quarantine_id: str, raw: RawRequest) -> AnySourceEvent | Webhook:
    """The source event or the webhook that receives such requests in the application as it is now."""
    drop = f"`blacksmith quarantine drop {quarantine_id}`"
    event = app.source_events.get(raw.event_type)
    if event is not None:
        if isinstance(event.trigger, HTTP | Subscription):
            return event
        raise UsageError(
            f"{quarantine_id} came to {raw.event_type}, whose function accepts neither requests nor "
            f"messages, so it cannot be retried; see what is in it, then {drop}"
        )
    fix = f"declare it again, or {drop}"
    source = app.sources.get(raw.event_type)
    if source is None:
        raise UsageError(
            f"{quarantine_id} came to {raw.event_type}, which the application does not have; {fix}"
        )
    request = as_request(raw)
    for webhook in source.webhooks:
        if (webhook.on.method, webhook.on.path) == (request.method, request.path):
            return webhook
    raise UsageError(
        f"{quarantine_id} came to {request.method} {request.path}, where source {raw.event_type!r} has "
        f"no webhook; {fix}"
    )
