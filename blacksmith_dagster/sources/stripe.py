"""Stripe's webhooks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from blacksmith_dagster.pipeline.signatures import StripeSignature
from blacksmith_dagster.pipeline.source import Properties, WebhookResult
from blacksmith_dagster.pipeline.triggers import Request
from blacksmith_dagster.redaction import Secret
from blacksmith_dagster.sources.typed import TypedSource, parse_time, several, text_field


class StripeSource(TypedSource):
    """The events of a Stripe account.

    - `secret`: the webhook endpoint's secret; several while a new one replaces an old one.

    Stripe's id of the event is the key, `created` is `sent_at`, `api_version` the version. The
    event's data is Stripe's `data` (`object`, and `previous_attributes` of an update), its context the
    other fields. A thin event has no data: its object is named in the context, as `related_object`.

    >>> stripe = StripeSource("stripe", secret=Secret("STRIPE_SECRET"))
    >>> paid = stripe.on("invoice.paid")
    >>> paid.path
    'stripe/invoice_paid'

    Raises `DeclarationError`.
    """

    def __init__(
        self, name: str, *, secret: Secret | Sequence[Secret], **properties: Unpack[Properties]
    ) -> None:
        super().__init__(name, signature=StripeSignature(*several(secret)), **properties)

    def _receive(self, request: Request) -> WebhookResult:
        """An event of Stripe."""
        event = request.json(dict)
        source_event = self._source_event(text_field(event, "type"))
        version = None if event.get("api_version") is None else text_field(event, "api_version")
        return source_event.of(
            event.pop("data", None),
            key=text_field(event, "id"),
            sent_at=parse_time(event.get("created"), "$.created"),
            version=version,
            context=event,
        )
