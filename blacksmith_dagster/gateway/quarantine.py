"""How a request or a message is kept that could not be taken."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from urllib.parse import urlencode

from blacksmith_dagster.errors import describe
from blacksmith_dagster.pipeline.subscription import Message
from blacksmith_dagster.pipeline.trigger import Request
from blacksmith_dagster.store.interface import Raw

# Never kept with a request in quarantine; nor what described the body as it was sent.
_SECRET_HEADERS = frozenset({"authorization", "cookie", "proxy-authorization"})
_BODY_HEADERS = frozenset({"content-length", "content-encoding", "transfer-encoding"})


def raw_of(kind: str, request: Request | Message, error: Exception) -> Raw:
    """A request or a message as it is kept in quarantine: without its credentials.

    What is no header is kept under names that begin with a colon, as HTTP/2 does: `:method` and
    `:path` of a request, with its query; `:topic`, `:key`, `:id`, `:sent-at` and `:place` of a message.
    """
    kept = {
        name: value
        for name, value in request.headers.items()
        if name.lower() not in _SECRET_HEADERS and name.lower() not in _BODY_HEADERS
    }
    key = key_of(request)
    if isinstance(request, Message):
        kept |= _of_message(request)
    else:
        query = f"?{urlencode(request.query)}" if request.query else ""
        kept |= {":method": request.method, ":path": f"{request.path}{query}"}
    if key is not None:  # of two bodies with one key both are kept
        key = f"{key}:{blake2b(request.body, digest_size=16).hexdigest()}"
    return Raw(kind, request.body, kept, describe(error), key)


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
