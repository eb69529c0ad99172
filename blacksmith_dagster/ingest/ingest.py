"""Ingests requests and messages that do not come over HTTP: no sender waits for a response."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from blacksmith_dagster.errors import KeyReused, RequestError
from blacksmith_dagster.ingest.extract import Extractor
from blacksmith_dagster.ingest.quarantine import EventGroup, key_of, raw_request_of
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.source import AnySourceEvent
from blacksmith_dagster.pipeline.triggers import Message, Reply, Request
from blacksmith_dagster.store import Store
from blacksmith_dagster.store.records import Cursor, NewEvent, RawRequest


def ingest(
    app: Blacksmith,
    store: Store,
    event: AnySourceEvent,
    requests: Sequence[Request | Message],
    cursor: Cursor | None = None,
    received_at: datetime | None = None,
) -> list[list[str]]:
    """Store the events of `requests` to a source event in one commit, together with `cursor`.

    `received_at` is for history that is imported from elsewhere; see `Store.ingest`.

    Returns the ids of each request's events. A request that would be rejected, or whose function
    raises, goes to quarantine in the same commit and has no ids; a `Reply` is ignored. Repeating the
    call after a crash stores nothing twice if there is a `cursor` or the requests have keys.

    Raises `CursorMoved` if another process has read on from `cursor`, and what the store raises.
    """
    extractor = Extractor(app, event)
    extracted = [extract_request(extractor, request) for request in requests]
    cursors = () if cursor is None else (cursor,)
    ids = commit_extracted(store, event.path, requests, extracted, cursors, received_at)
    return [
        [] if isinstance(events, RawRequest) else event_ids
        for events, event_ids in zip(extracted, ids, strict=True)
    ]


def extract_request(
    extractor: Extractor, request: Request | Message
) -> list[NewEvent] | RawRequest:
    """The events of a request or a message, or what goes to quarantine."""
    try:
        extracted = extractor(request, key_of(request))
    except Exception as error:  # noqa: BLE001 - the user's code, or a body that is not JSON
        return raw_request_of(extractor.event.path, request, error)
    return [] if isinstance(extracted, Reply) else extracted


def extract_group(extractor: Extractor, group: EventGroup) -> list[NewEvent] | RawRequest:
    """The events that a poll or a listener has yielded together, or what goes to quarantine: an event
    that cannot be ingested must not block those after it."""
    try:
        return extractor.events(group)
    except RequestError as error:
        return raw_request_of(extractor.event.path, group, error)


def commit_extracted(
    store: Store,
    path: str,
    requests: Sequence[Request | Message | EventGroup],
    extracted: list[list[NewEvent] | RawRequest],
    cursors: Sequence[Cursor] = (),
    received_at: datetime | None = None,
) -> list[list[str]]:
    """Commit what was `extracted` from `requests`. A request with a reused key goes to quarantine, and
    takes the place of its events in `extracted`.

    Raises `CursorMoved`, and what the store raises.
    """
    results = store.log.append(extracted, cursors=cursors, received_at=received_at)
    while reused := {
        index: result for index, result in enumerate(results) if isinstance(result, KeyReused)
    }:
        for index, error in reused.items():
            extracted[index] = raw_request_of(path, requests[index], error)
        if cursors:  # nothing was stored: with cursors, it is all or nothing
            results = store.log.append(extracted, cursors=cursors, received_at=received_at)
        else:
            retried = store.log.append([extracted[index] for index in reused])
            for index, ids in zip(reused, retried, strict=True):
                results[index] = ids
    return [result for result in results if not isinstance(result, KeyReused)]
