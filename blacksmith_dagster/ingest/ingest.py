"""Requests and messages that do not come by HTTP: there is no sender who could be answered."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from blacksmith_dagster.errors import KeyReused, Refused
from blacksmith_dagster.ingest.extract import Extractor
from blacksmith_dagster.ingest.quarantine import Given, key_of, raw_of
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.source import SourceEvent
from blacksmith_dagster.pipeline.subscription import Message
from blacksmith_dagster.pipeline.triggers import Reply, Request
from blacksmith_dagster.store.interface import NewEvent, Position, Raw, Store


def ingest(
    app: Blacksmith,
    store: Store,
    event: SourceEvent[Any, Any, Any],
    requests: Sequence[Request | Message],
    position: Position | None = None,
    received_at: datetime | None = None,
) -> list[list[str]]:
    """Keep the events of `requests` to a source event in one commit, `position` with them.

    `received_at` is for history that is imported from elsewhere; see `Store.ingest`.

    Returns the ids of each request's events. A request that would be refused, or that makes the
    function raise, is kept in quarantine, in the same commit, and has no ids here; a `Reply` goes
    nowhere. Called again after a crash it makes nothing twice, if there is a `position` or the
    requests have keys.

    Raises `PositionMoved` if another process has read on from `position`, and what the store raises.
    """
    extractor = Extractor(app, event)
    taken = [extracted(extractor, request) for request in requests]
    positions = () if position is None else (position,)
    ids = keep(store, event.path, requests, taken, positions, received_at)
    return [[] if isinstance(each, Raw) else found for each, found in zip(taken, ids, strict=True)]


def extracted(extractor: Extractor, request: Request | Message) -> list[NewEvent] | Raw:
    """The events of a request or a message, or how it is kept in quarantine."""
    try:
        found = extractor(request, key_of(request))
    except Exception as error:  # noqa: BLE001 - the user's code, or a body that is not JSON
        return raw_of(extractor.event.path, request, error)
    return [] if isinstance(found, Reply) else found


def given_events(extractor: Extractor, given: Given) -> list[NewEvent] | Raw:
    """The events of what a poll or a listener has given; or how it is kept in quarantine if it can't
    be taken: it must not hold up what comes after it."""
    try:
        return extractor.events(given)
    except Refused as error:
        return raw_of(extractor.event.path, given, error)


def keep(
    store: Store,
    path: str,
    requests: Sequence[Request | Message | Given],
    taken: list[list[NewEvent] | Raw],
    positions: Sequence[Position] = (),
    received_at: datetime | None = None,
) -> list[list[str]]:
    """Commit what was `taken` of `requests`; one with a reused key goes to quarantine, and `taken` has
    it so then.

    Raises `PositionMoved`, and what the store raises.
    """
    kept = store.ingest(taken, positions=positions, received_at=received_at)
    while reused := {place: each for place, each in enumerate(kept) if isinstance(each, KeyReused)}:
        for place, error in reused.items():
            taken[place] = raw_of(path, requests[place], error)
        if positions:  # nothing was kept, as the positions go with all of it
            kept = store.ingest(taken, positions=positions, received_at=received_at)
        else:
            again = store.ingest([taken[place] for place in reused])
            for place, ids in zip(reused, again, strict=True):
                kept[place] = ids
    return [each for each in kept if not isinstance(each, KeyReused)]


def destinations_of(taken: Iterable[list[NewEvent] | Raw]) -> set[str]:
    """The destination events that have jobs of what was taken."""
    return {
        job.destination
        for events in taken
        if not isinstance(events, Raw)
        for event in events
        for job in event.jobs
    }
