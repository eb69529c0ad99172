"""Requests and messages that do not come by HTTP: no sender waits for a response."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from blacksmith_dagster.errors import KeyReused, RequestError
from blacksmith_dagster.ingest.extract import Extractor
from blacksmith_dagster.ingest.quarantine import EventGroup, key_of, raw_request_of
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.source import SourceEvent
from blacksmith_dagster.pipeline.triggers import Message, Reply, Request
from blacksmith_dagster.store.interface import Cursor, NewEvent, RawRequest, Store


def ingest(
    app: Blacksmith,
    store: Store,
    event: SourceEvent[Any, Any, Any],
    requests: Sequence[Request | Message],
    cursor: Cursor | None = None,
    received_at: datetime | None = None,
) -> list[list[str]]:
    """Keep the events of `requests` to a source event in one commit, `cursor` with them.

    `received_at` is for history that is imported from elsewhere; see `Store.ingest`.

    Returns the ids of each request's events. A request that would be rejected, or that makes the
    function raise, is kept in quarantine, in the same commit, and has no ids here; a `Reply` goes
    nowhere. Called again after a crash it makes nothing twice, if there is a `cursor` or the
    requests have keys.

    Raises `CursorMoved` if another process has read on from `cursor`, and what the store raises.
    """
    extractor = Extractor(app, event)
    extracted = [extract_request(extractor, request) for request in requests]
    cursors = () if cursor is None else (cursor,)
    ids = commit_extracted(store, event.path, requests, extracted, cursors, received_at)
    return [
        [] if isinstance(each, RawRequest) else found
        for each, found in zip(extracted, ids, strict=True)
    ]


def extract_request(
    extractor: Extractor, request: Request | Message
) -> list[NewEvent] | RawRequest:
    """The events of a request or a message, or how it is kept in quarantine."""
    try:
        found = extractor(request, key_of(request))
    except Exception as error:  # noqa: BLE001 - the user's code, or a body that is not JSON
        return raw_request_of(extractor.event.path, request, error)
    return [] if isinstance(found, Reply) else found


def extract_group(extractor: Extractor, group: EventGroup) -> list[NewEvent] | RawRequest:
    """The events of what a poll or a listener has yielded; or how it is kept in quarantine if it cannot
    be ingested: it must not hold up what comes after it."""
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
    """Commit what was `extracted` from `requests`. One with a reused key goes to quarantine; `extracted`
    is changed to that.

    Raises `CursorMoved`, and what the store raises.
    """
    results = store.ingest(extracted, cursors=cursors, received_at=received_at)
    while reused := {
        place: each for place, each in enumerate(results) if isinstance(each, KeyReused)
    }:
        for place, error in reused.items():
            extracted[place] = raw_request_of(path, requests[place], error)
        if cursors:  # nothing was kept, as the cursors go with all of it
            results = store.ingest(extracted, cursors=cursors, received_at=received_at)
        else:
            again = store.ingest([extracted[place] for place in reused])
            for place, ids in zip(reused, again, strict=True):
                results[place] = ids
    return [each for each in results if not isinstance(each, KeyReused)]


def destinations_to_notify(extracted: Iterable[list[NewEvent] | RawRequest]) -> set[str]:
    """The destination events that have new jobs."""
    return {
        job.destination
        for events in extracted
        if not isinstance(events, RawRequest)
        for event in events
        for job in event.jobs
    }
