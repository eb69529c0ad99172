"""Retrying what is in quarantine, with the functions that the application has now."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl

from blacksmith_dagster.errors import KeyReused, UsageError
from blacksmith_dagster.ingest.extract import Extractor
from blacksmith_dagster.ingest.ingest import destinations_to_notify
from blacksmith_dagster.ingest.quarantine import key_of
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.source import SourceEvent, Webhook
from blacksmith_dagster.pipeline.triggers import HTTP, Message, Reply, Request, Subscription
from blacksmith_dagster.pubsub.notifier import Notify
from blacksmith_dagster.store.interface import RawRequest, Store


def retry_quarantined(
    app: Blacksmith, store: Store, quarantine_id: str, notify: Notify | None = None
) -> list[str]:
    """Ingest a request or a message from quarantine again; returns the ids of its events.

    It leaves quarantine in the commit that keeps its events. A key that it came with counts as it
    did then: if its sender has sent it again meanwhile, these are the ids of that. A function that
    now returns a `Reply` makes no event. `notify` is called with the destination events
    that have new jobs.

    Raises what the function raises, and `RequestError` (`KeyReused` too): then it stays where it is.
    `UsageError` if the application has nothing that receives it, `NotFound` if it is not in
    quarantine, and what the store raises.
    """
    raw = store.in_quarantine(quarantine_id)
    event = _receiver_of(app, quarantine_id, raw)
    given = _message(raw) if _subscribes(event) else _request(raw)
    made = Extractor(app, event)(given, key_of(given))
    events = [] if isinstance(made, Reply) else made
    [result] = store.ingest([events], released=[quarantine_id])
    if isinstance(result, KeyReused):
        raise result
    if notify is not None:
        notify(destinations_to_notify([events]))
    return result


def _subscribes(event: SourceEvent[Any, Any, Any] | Webhook) -> bool:
    return isinstance(event, SourceEvent) and isinstance(event.trigger, Subscription)


def _receiver_of(
    app: Blacksmith, quarantine_id: str, raw: RawRequest
) -> SourceEvent[Any, Any, Any] | Webhook:
    """The source event or the webhook that a request came to, as the application has it now."""
    drop = f"`blacksmith quarantine drop {quarantine_id}`"
    event = app.source_events.get(raw.event_type)
    if event is not None:
        if isinstance(event.trigger, HTTP | Subscription):
            return event
        raise UsageError(
            f"{quarantine_id} came to {raw.event_type}, whose function is handed neither requests nor "
            f"messages, so it cannot be handed this again; see what is in it, then {drop}"
        )
    fix = f"declare it again, or {drop}"
    source = app.sources.get(raw.event_type)
    if source is None:
        raise UsageError(
            f"{quarantine_id} came to {raw.event_type}, which the application does not have; {fix}"
        )
    request = _request(raw)
    for webhook in source.webhooks:
        if (webhook.on.method, webhook.on.path) == (request.method, request.path):
            return webhook
    raise UsageError(
        f"{quarantine_id} came to {request.method} {request.path}, where source {raw.event_type!r} has "
        f"no webhook; {fix}"
    )


def _request(raw: RawRequest) -> Request:
    """The request that was kept by `raw_request_of`."""
    path, _, query = raw.headers.get(":path", "/").partition("?")
    return Request(
        raw.body,
        _headers(raw),
        dict(parse_qsl(query, keep_blank_values=True)),
        raw.headers.get(":method", "POST"),
        path,
        _time(raw, ":received-at"),
    )


def _message(raw: RawRequest) -> Message:
    """The message that was kept by `raw_request_of`."""
    return Message(
        raw.body,
        _headers(raw),
        raw.headers.get(":topic", ""),
        raw.headers.get(":key"),
        raw.headers.get(":id"),
        _time(raw, ":sent-at"),
        raw.headers.get(":place", ""),
    )


def _time(raw: RawRequest, name: str) -> datetime | None:
    time = raw.headers.get(name)
    return None if time is None else datetime.fromisoformat(time)


def _headers(raw: RawRequest) -> Mapping[str, str]:
    return {name: value for name, value in raw.headers.items() if not name.startswith(":")}
