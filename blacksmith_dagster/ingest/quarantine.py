"""How a request, a message or an event that could not be ingested is kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, TypeAlias
from urllib.parse import urlencode

import msgspec

from blacksmith_dagster.pipeline.event import Event
from blacksmith_dagster.pipeline.triggers import Message, Request
from blacksmith_dagster.redaction import CREDENTIAL_HEADERS, describe
from blacksmith_dagster.store.interface import RawRequest

EventGroup: TypeAlias = Event[Any] | Iterable[Event[Any]]
"""What a poll or a listener yields: an event, or several that are committed together."""

# They describe the body as it was sent, not as it is stored.
_BODY_HEADERS = frozenset({"content-length", "content-encoding", "transfer-encoding"})


def raw_request_of(
    event_type: str, came: Request | Message | EventGroup, error: Exception
) -> RawRequest:
    """A request, a message or an event as it is kept in quarantine: without its credentials.

    What is no header is kept under names that begin with a colon, as HTTP/2 does: `:method`,
    `:path`, with its query, and `:received-at` of a request; `:topic`, `:key`, `:id`, `:sent-at` and
    `:place` of a message. Events that came without a body are kept as their data.
    """
    if not isinstance(came, Request | Message):
        return _raw_request_of_group(event_type, came, error)
    headers = {
        name: value
        for name, value in came.headers.items()
        if name.lower() not in CREDENTIAL_HEADERS and name.lower() not in _BODY_HEADERS
    }
    if isinstance(came, Message):
        headers |= _of_message(came)
    else:
        query = f"?{urlencode(came.query)}" if came.query else ""
        received_at = came.received_at or datetime.now(UTC)
        headers |= {
            ":method": came.method,
            ":path": f"{came.path}{query}",
            ":received-at": received_at.isoformat(),
        }
    return RawRequest(
        event_type, came.body, headers, describe(error), _once(key_of(came), came.body)
    )


def key_of(request: Request | Message) -> str | None:
    """What makes a request or a message once, if its sender said: its idempotency key, or its id."""
    if isinstance(request, Message):
        return request.id
    return request.headers.get("idempotency-key")


def _of_message(message: Message) -> Mapping[str, str]:
    found = {
        ":topic": message.topic,
        ":key": message.key,
        ":id": message.id,
        ":sent-at": message.sent_at and message.sent_at.isoformat(),
        ":place": message.place,
    }
    return {name: value for name, value in found.items() if value}


def _raw_request_of_group(event_type: str, group: EventGroup, error: Exception) -> RawRequest:
    data, key = (group.data, group.key) if isinstance(group, Event) else (group, None)
    try:
        body = msgspec.json.encode(data)
    except Exception:  # noqa: BLE001 - it may be what it is rejected for
        body = repr(data).encode(errors="backslashreplace")
    return RawRequest(event_type, body, {}, describe(error), _once(key, body))


def _once(key: str | None, body: bytes) -> str | None:
    """What makes it once in quarantine: of two bodies with one key both are kept.

    The key may be what it is rejected for: too long, or with what no database keeps.
    """
    if key is None:
        return None
    return blake2b(key.encode("utf-8", "surrogatepass") + b"\0" + body, digest_size=16).hexdigest()
