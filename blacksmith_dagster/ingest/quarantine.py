"""Requests and messages in the form in which quarantine keeps them, and back: pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, TypeAlias
from urllib.parse import parse_qsl, urlencode

import msgspec
from msgspec import structs

from blacksmith_dagster.ingest.items import KEY_CHARACTERS
from blacksmith_dagster.pipeline.event import Event
from blacksmith_dagster.pipeline.triggers import Message, Request
from blacksmith_dagster.redaction import CREDENTIAL_HEADERS, describe
from blacksmith_dagster.store.records import RawRequest

EventGroup: TypeAlias = Event[Any] | Iterable[Event[Any]]
"""What a poll or a listener yields: an event, or several that are committed together."""

KEY_HEADER = "idempotency-key"

# The others describe the body as it was sent, not as it is stored.
_LEFT_OUT = CREDENTIAL_HEADERS | {"content-length", "content-encoding", "transfer-encoding"}


def raw_request_of(
    event_type: str, item: Request | Message | EventGroup, error: Exception
) -> RawRequest:
    """A request, a message or an event in the form in which quarantine keeps it: without credentials.

    Facts that are not headers have names that begin with a colon, as in HTTP/2: `:method`, `:path`
    with its query, and `:received-at` of a request; `:topic`, `:key`, `:id`, `:sent-at` and `:place`
    of a message. An event that came without a body is kept as its data.
    """
    headers: dict[str, str] = {}
    if isinstance(item, Request | Message):
        key, body = key_of(item), item.body
        sent = item.headers.items()
        headers = {name: value for name, value in sent if name.lower() not in _LEFT_OUT}
        facts = _message_facts(item) if isinstance(item, Message) else _request_facts(item)
        headers |= {name: value for name, value in facts.items() if value}
    else:
        data, key = (item.data, item.key) if isinstance(item, Event) else (item, None)
        try:
            body = msgspec.json.encode(data)
        except Exception:  # noqa: BLE001 - this may be why it is in quarantine
            body = repr(data).encode(errors="backslashreplace")
    return RawRequest(event_type, body, headers, describe(error), _quarantine_key(key, body))


def key_of(request: Request | Message) -> str | None:
    """The idempotency key of a request, or the id of a message, if its sender set one."""
    return request.id if isinstance(request, Message) else request.headers.get(KEY_HEADER)


def item_of(request: Request | Message, body: bytes, place: int) -> Request | Message:
    """An item of a request, by its place there, as a request of its own: with its own key, as it is
    retried without the other items."""
    headers = request.headers
    if (key := headers.get(KEY_HEADER)) is not None:
        headers = {**headers, KEY_HEADER: f"{place}.{key}"[:KEY_CHARACTERS]}
    return structs.replace(request, body=body, headers=headers)


def as_request(raw: RawRequest) -> Request:
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


def as_message(raw: RawRequest) -> Message:
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


def _request_facts(request: Request) -> dict[str, str | None]:
    query = f"?{urlencode(request.query)}" if request.query else ""
    return {
        ":method": request.method,
        ":path": f"{request.path}{query}",
        ":received-at": (request.received_at or datetime.now(UTC)).isoformat(),
    }


def _message_facts(message: Message) -> dict[str, str | None]:
    return {
        ":topic": message.topic,
        ":key": message.key,
        ":id": message.id,
        ":sent-at": message.sent_at.isoformat() if message.sent_at else None,
        ":place": message.place,
    }


def _headers(raw: RawRequest) -> dict[str, str]:
    return {name: value for name, value in raw.headers.items() if not name.startswith(":")}


def _time(raw: RawRequest, name: str) -> datetime | None:
    time = raw.headers.get(name)
    return None if time is None else datetime.fromisoformat(time)


def _quarantine_key(key: str | None, body: bytes) -> str | None:
    """A key within quarantine. It includes the body: two bodies with the same key are both kept.

    It is a digest, as the key itself may be invalid: too long, or with characters that no database
    can store.
    """
    if key is None:
        return None
    return blake2b(key.encode("utf-8", "surrogatepass") + b"\0" + body, digest_size=16).hexdigest()
