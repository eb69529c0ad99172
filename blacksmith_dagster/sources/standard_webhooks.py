"""Webhooks as Standard Webhooks has them, of whoever keeps to it."""

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
    """The webhooks of a sender that keeps to the specification Standard Webhooks.

    - `secret`: in base64, with `whsec_` before or without; several while one is replaced by another.

    A body is `{"type": ..., "timestamp": ..., "data": ...}`; `webhook-id` is the key, `timestamp` is
    `sent_at` (that of the header if the body has none). The event's data is `data`, its context the
    rest.

    >>> hooks = StandardWebhooksSource("billing", secret=Secret("BILLING_SECRET"))
    >>> created = hooks.on("user.created")
    >>> created.path
    'billing/user_created'

    Raises `DeclarationError`.
    """

    def __init__(
        self, name: str, *, secret: Secret | Sequence[Secret], **given: Unpack[Properties]
    ) -> None:
        super().__init__(name, signature=StandardWebhooksSignature(*several(secret)), **given)

    def _receive(self, request: Request) -> WebhookResult:
        """A webhook as Standard Webhooks has it."""
        body: dict[str, Any] = request.json(dict)
        source_event = self._source_event(text_field(body, "type"))
        if "data" not in body:
            raise ValidationError("the body does not fit: a value is needed - at `$.data`")
        sent: Any = body.get("timestamp")
        if not isinstance(sent, str):
            sent = int(header(request, "webhook-timestamp"))
        return source_event.of(
            body.pop("data"),
            key=header(request, "webhook-id"),
            sent_at=parse_time(sent, "$.timestamp"),
            context=body,
        )
