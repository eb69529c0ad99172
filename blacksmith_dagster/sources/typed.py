"""What the sources share whose sender gives each event a type."""

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

_NO_NAME = re.compile(r"[^a-z0-9]+")


class TypedSource(Source, ABC):
    """A source whose events come to one path, `POST /v1/<name>`, each with its sender's type.

    `on` declares those that are wanted. Each sender's own class says how its requests are read.

    Raises `DeclarationError`.
    """

    def __init__(
        self,
        name: str,
        *,
        signature: Auth | None = None,
        response: Reply | None = None,
        **given: Unpack[Properties],
    ) -> None:
        super().__init__(name, **proved_by(signature, name, given))
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
        """A source event of what comes with this type; `'*'` is all that has another.

        It is named after the type, in lower case, with `_` for what no name may have
        (`invoice.paid` is `invoice_paid`), unless `name` is given. Data that does not fit `model` is
        rejected with 422 and the place of the fault. What has a type that is not declared is rejected
        with 422, which says which are.

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
        named = _NO_NAME.sub("_", type.lower()).strip("_") if name is None else name
        event = self.child(named, model=model, description=description, **own)
        self._types[type] = event
        return event

    @abstractmethod
    def _receive(self, request: Request) -> WebhookResult:
        """What a request holds. Raises `RequestError`."""

    def _source_event(self, type: str) -> AnySourceEvent:
        found = self._types.get(type) or self._types.get(OTHERS)
        if found is None:
            raise Reject(
                f"{self.name} accepts no events of the type {type!r}; it accepts "
                f"{', '.join(self._types) or 'none at all'}"
            )
        return found


def proved_by(auth: Auth | None, name: str, given: Properties) -> Properties:
    """The properties of a source whose senders prove who they are in their own way, if in any."""
    if auth is None:
        return given
    if given.get("auth") is not None:
        raise DeclarationError(
            f"source {name!r}: its senders prove who they are by {type(auth).__name__}; leave auth= out"
        )
    proved: Properties = {**given, "auth": auth}
    return proved


def several(secret: Secret | Sequence[Secret]) -> Sequence[Secret]:
    """One secret, or those that are in use while one is replaced by another."""
    return (secret,) if isinstance(secret, Secret) else secret


def header(request: Request, name: str) -> str:
    """A header that a sender always sends. Raises `BadRequest` without it."""
    value = request.headers.get(name.lower())
    if not value:
        raise BadRequest(f"the header {name} is missing; this path accepts that sender's requests")
    return value


def text_field(body: Mapping[str, Any], field: str, at: str = "$") -> str:
    """A field that has to be a text, and not an empty one. Raises `ValidationError`."""
    value = body.get(field)
    if not isinstance(value, str) or not value:
        raise ValidationError(f"the body does not fit: a text is needed - at `{at}.{field}`")
    return value


def parse_time(value: Any, at: str) -> datetime | None:
    """A time: seconds since 1970, or a text as ISO 8601 has it, of UTC if it names no zone; `None` if
    there is none.

    Raises `ValidationError`.
    """
    if value is None:
        return None
    try:
        if isinstance(value, int):
            return datetime.fromtimestamp(value, UTC)
        if isinstance(value, str):
            found = datetime.fromisoformat(value.upper())
            return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
    except (ValueError, OverflowError, OSError):
        pass
    raise ValidationError(
        "the body does not fit: a time is needed, as seconds since 1970 or as "
        f"'2026-01-31T12:00:00Z' - at `{at}`"
    )
