"""Quarantine: what could not be ingested is kept raw, and retried later."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, TypeAlias
from urllib.parse import parse_qsl, urlencode

import msgspec

from blacksmith_dagster.errors import KeyReused, UsageError
from blacksmith_dagster.ingest.extract import Extractor, destinations_to_notify
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.event import Event
from blacksmith_dagster.pipeline.source import AnySourceEvent, SourceEvent, Webhook
from blacksmith_dagster.pipeline.triggers import HTTP, Message, Reply, Request, Subscription
from blacksmith_dagster.pubsub.notifier import Notify
from blacksmith_dagster.redaction import CREDENTIAL_HEADERS, describe
from blacksmith_dagster.store import Store
from blacksmith_dagster.store.records import RawRequest

EventGroup: TypeAlias = Event[Any] | Iterable[Event[Any]]
"""What a poll or a listener yields: an event, or several that are committed together."""

# They describe the body as it was sent, not as it is stored.
_BODY_HEADERS = frozenset({"content-length", "content-encoding", "transfer-encoding"})


def raw_request_of(
    event_type: str, item: Request | Message | EventGroup, error: Exception
) -> RawRequest:
    """A request, a message or an event in the form in which quarantine keeps it: without credentials.

    Facts that are not headers have names that begin with a colon, as in HTTP/2: `:method`, `:path`
    with its query, and `:received-at` of a request; `:topic`, `:key`, `:id`, `:sent-at` and `:place`
    of a message. An event that came without a body is kept as its data.
    """
    if not isinstance(item, Request | Message):
        return _raw_request_of_group(event_type, item, error)
    headers = {
        name: value
        for name, value in item.headers.items()
        if name.lower() not in CREDENTIAL_HEADERS and name.lower() not in _BODY_HEADERS
    }
    if isinstance(item, Message):
        headers |= _message_facts(item)
    else:
        query = f"?{urlencode(item.query)}" if item.query else ""
        received_at = item.received_at or datetime.now(UTC)
        headers |= {
            ":method": item.method,
            ":path": f"{item.path}{query}",
            ":received-at": received_at.isoformat(),
        }
    key = _quarantine_key(key_of(item), item.body)
    return RawRequest(event_type, item.body, headers, describe(error), key)


def key_of(request: Request | Message) -> str | None:
    """The idempotency key of a request, or the id of a message, if its sender set one."""
    if isinstance(request, Message):
        return request.id
    return request.headers.get("idempotency-key")


def _message_facts(message: Message) -> Mapping[str, str]:
    facts = {
        ":topic": message.topic,
        ":key": message.key,
        ":id": message.id,
        ":sent-at": message.sent_at and message.sent_at.isoformat(),
        ":place": message.place,
    }
    return {name: value for name, value in facts.items() if value}


def _raw_request_of_group(event_type: str, group: EventGroup, error: Exception) -> RawRequest:
    data, key = (group.data, group.key) if isinstance(group, Event) else (group, None)
    try:
        body = msgspec.json.encode(data)
    except Exception:  # noqa: BLE001 - this may be why it is in quarantine
        body = repr(data).encode(errors="backslashreplace")
    return RawRequest(event_type, body, {}, describe(error), _quarantine_key(key, body))


def _quarantine_key(key: str | None, body: bytes) -> str | None:
    """A key within quarantine. It includes the body: two bodies with the same key are both kept.

    It is a digest, as the key itself may be invalid: too long, or with characters that no database
    can store.
    """
    if key is None:
        return None
    return blake2b(key.encode("utf-8", "surrogatepass") + b"\0" + body, digest_size=16).hexdigest()


def retry_quarantined(
    app: Blacksmith, store: Store, quarantine_id: str, notify: Notify | None = None
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
    request = _message(raw) if subscribes else _request(raw)
    extracted = Extractor(app, event)(request, key_of(request))
    events = [] if isinstance(extracted, Reply) else extracted
    [result] = store.log.append([events], released=[quarantine_id])
    if isinstance(result, KeyReused):
        raise result
    if notify is not None:
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
    request = _request(raw)
    for webhook in source.webhooks:
        if (webhook.on.method, webhook.on.path) == (request.method, request.path):
            return webhook
    raise UsageError(
        f"{quarantine_id} came to {request.method} {request.path}, where source {raw.event_type!r} has "
        f"no webhook; {fix}"
    )


def _request(raw: RawRequest) -> Request:
    """The request that `raw_request_of` has turned into `raw`."""
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
    """The message that `raw_request_of` has turned into `raw`."""
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
