"""Webhooks of any sender that follows Standard Webhooks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

from blacksmith_dagster.errors import ValidationError
from blacksmith_dagster.pipeline.signatures import StandardWebhooksSignature
from blacksmith_dagster.pipeline.source import Properties, WebhookResult
from blacksmith_dagster.pipeline.triggers import Request
from blacksmith_dagster.redaction import Secret
from blacksmith_dagster.sources.typed import TypedSource, header, parse_time, several, text_field


class StandardWebhooksSource(TypedSource):
    """The webhooks of a sender that follows the Standard Webhooks specification.

    - `secret`: in base64, with or without the prefix `whsec_`; several while a new one replaces an old
      one.

    A body is `{"type": ..., "timestamp": ..., "data": ...}`; `webhook-id` is the key, `timestamp` is
    `sent_at` (the header's timestamp if the body has none). The event's data is `data`, its context the
    other fields.

    >>> hooks = StandardWebhooksSource("billing", secret=Secret("BILLING_SECRET"))
    >>> created = hooks.on("user.created")
    >>> created.path
    'billing/user_created'

    Raises `DeclarationError`.
    """

    def __init__(
        self, name: str, *, secret: Secret | Sequence[Secret], **properties: Unpack[Properties]
    ) -> None:
        super().__init__(name, signature=StandardWebhooksSignature(*several(secret)), **properties)

    def _receive(self, request: Request) -> WebhookResult:
        """A webhook in the format of Standard Webhooks."""
        body: dict[str, Any] = request.json(dict)
        source_event = self._source_event(text_field(body, "type"))
        if "data" not in body:
            raise ValidationError("the body does not fit: a value is needed - at `$.data`")
        timestamp: Any = body.get("timestamp")
        if not isinstance(timestamp, str):
            timestamp = int(header(request, "webhook-timestamp"))
        return source_event.of(
            body.pop("data"),
            key=header(request, "webhook-id"),
            sent_at=parse_time(timestamp, "$.timestamp"),
            context=body,
        )
