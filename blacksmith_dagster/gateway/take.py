"""Requests that do not come by HTTP: lines of a landed file, for example."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from blacksmith_dagster.gateway.extract import Extractor
from blacksmith_dagster.gateway.quarantine import raw_of
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.source import SourceEvent
from blacksmith_dagster.pipeline.trigger import Reply, Request
from blacksmith_dagster.store.interface import NewEvent, Position, Store


def take(
    app: Blacksmith,
    store: Store,
    event: SourceEvent[Any, Any, Any],
    requests: Sequence[Request],
    position: Position | None = None,
    received_at: datetime | None = None,
) -> list[list[str]]:
    """Keep the events of `requests` to a source event in one commit, `position` with them.

    `received_at` is for history that is imported from elsewhere; see `Store.ingest`.

    Returns the ids of each request's events. There is no sender who could be answered: a request
    that would be refused, or that makes the function raise, goes to quarantine and has no ids here;
    a `Reply` goes nowhere. Called again after a crash, it may quarantine a request once more; its
    events are kept once, if there is a `position` or they have keys.

    Raises `PositionMoved` if another process has read on from `position`, and what the store raises.
    """
    extractor = Extractor(app, event)
    extracted: list[list[NewEvent]] = []
    for request in requests:
        try:
            found = extractor(request, request.headers.get("idempotency-key"))
        except Exception as error:  # noqa: BLE001 - the user's code, or a line that is not JSON
            store.quarantine(raw_of(event.path, request, error))
            found = []
        extracted.append([] if isinstance(found, Reply) else found)
    kept = store.ingest(extracted, position=position, received_at=received_at)
    ids: list[list[str]] = []
    for request, each in zip(requests, kept, strict=True):
        if isinstance(each, Exception):
            store.quarantine(raw_of(event.path, request, each))
        ids.append([] if isinstance(each, Exception) else each)
    return ids
