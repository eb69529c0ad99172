"""The base of the sources whose sender gives each event a type."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar, Unpack, overload

from blacksmith_dagster.errors import BadRequest, DeclarationError, Reject, ValidationError
from blacksmith_dagster.pipeline.access import Auth
from blacksmith_dagster.pipeline.model import JSONSchema
from blacksmith_dagster.pipeline.source import (
    AnySourceEvent,
    Properties,
    Source,
    SourceEvent,
    WebhookResult,
)
from blacksmith_dagster.pipeline.triggers import HTTP, Reply, Request
from blacksmith_dagster.redaction import Secret

T = TypeVar("T")

OTHERS = "*"

_NOT_IN_NAMES = re.compile(r"[^a-z0-9]+")


class TypedSource(Source, ABC):
    """A source whose events come to one path, `POST /v1/<name>`, each with its sender's type.

    `on` declares the types that are accepted. A subclass reads the requests of one sender.

    Raises `DeclarationError`.
    """

    def __init__(
        self,
        name: str,
        *,
        signature: Auth | None = None,
        response: Reply | None = None,
        **properties: Unpack[Properties],
    ) -> None:
        super().__init__(name, **with_auth(signature, name, properties))
        self._types: dict[str, AnySourceEvent] = {}
        self.webhook(HTTP(f"/v1/{self.name}"), response=response)(self._receive)

    @overload
    def on(
        self,
        type: str,
        *,
        name: str | None = None,
        model: type[T],
        description: str | None = None,
        **own: Unpack[Properties],
    ) -> SourceEvent[T, Any, Any]: ...
    @overload
    def on(
        self,
        type: str,
        *,
        name: str | None = None,
        model: JSONSchema,
        description: str | None = None,
        **own: Unpack[Properties],
    ) -> AnySourceEvent: ...
    @overload
    def on(
        self,
        type: str,
        *,
        name: str | None = None,
        description: str | None = None,
        **own: Unpack[Properties],
    ) -> AnySourceEvent: ...
    def on(
        self,
        type: str,
        *,
        name: str | None = None,
        model: Any = Any,
        description: str | None = None,
        **own: Unpack[Properties],
    ) -> AnySourceEvent:
        """A source event for this type; `'*'` is for every type that is not declared.

        Its default name is the type in lower case, with `_` for characters that a name cannot have
        (`invoice.paid` becomes `invoice_paid`). Data that does not fit `model` is rejected with 422 and
        the place of the fault. A type that is not declared is rejected with 422 and the list of the
        declared types.

        Raises `DeclarationError`.
        """
        if type in self._types:
            raise DeclarationError(
                f"source {self.name!r} has an event on {type!r} already: "
                f"{self._types[type].name}; receive that one"
            )
        if name is None and type == OTHERS:
            raise DeclarationError(
                f"source {self.name!r}: on('*') needs a name; write on('*', name='other')"
            )
        event_name = _NOT_IN_NAMES.sub("_", type.lower()).strip("_") if name is None else name
        event = self.child(event_name, model=model, description=description, **own)
        self._types[type] = event
        return event

    @abstractmethod
    def _receive(self, request: Request) -> WebhookResult:
        """The events of a request, or a reply. Raises `RequestError`."""

    def _source_event(self, type: str) -> AnySourceEvent:
        source_event = self._types.get(type) or self._types.get(OTHERS)
        if source_event is None:
            raise Reject(
                f"{self.name} accepts no events of the type {type!r}; it accepts "
                f"{', '.join(self._types) or 'none at all'}"
            )
        return source_event


def with_auth(auth: Auth | None, name: str, properties: Properties) -> Properties:
    """The properties of a source whose senders authenticate with `auth`, if it is not `None`."""
    if auth is None:
        return properties
    if properties.get("auth") is not None:
        raise DeclarationError(
            f"source {name!r}: its senders authenticate with {type(auth).__name__}; leave auth= out"
        )
    with_own: Properties = {**properties, "auth": auth}
    return with_own


def several(secret: Secret | Sequence[Secret]) -> Sequence[Secret]:
    """One secret, or several while a new one replaces an old one."""
    return (secret,) if isinstance(secret, Secret) else secret


def header(request: Request, name: str) -> str:
    """A header that the sender always sends. Raises `BadRequest` without it."""
    value = request.headers.get(name.lower())
    if not value:
        raise BadRequest(
            f"the header {name} is missing; this path accepts only that sender's requests"
        )
    return value


def text_field(body: Mapping[str, Any], field: str, place: str = "$") -> str:
    """A field that must be a text that is not empty. Raises `ValidationError`."""
    value = body.get(field)
    if not isinstance(value, str) or not value:
        raise ValidationError(f"the body does not fit: a text is needed - at `{place}.{field}`")
    return value


def parse_time(value: Any, place: str) -> datetime | None:
    """A time from seconds since 1970 or ISO 8601 text, in UTC if it names no zone; `None` for `None`.

    Raises `ValidationError`.
    """
    if value is None:
        return None
    try:
        if isinstance(value, int):
            return datetime.fromtimestamp(value, UTC)
        if isinstance(value, str):
            time = datetime.fromisoformat(value.upper())
            return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
    except (ValueError, OverflowError, OSError):
        pass
    raise ValidationError(
        "the body does not fit: a time is needed, as seconds since 1970 or as "
        f"'2026-01-31T12:00:00Z' - at `{place}`"
    )
