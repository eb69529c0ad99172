"""Slack's Events API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

from blacksmith_dagster.errors import ValidationError
from blacksmith_dagster.pipeline.signatures import SlackSignature
from blacksmith_dagster.pipeline.source import Properties, WebhookResult
from blacksmith_dagster.pipeline.triggers import Reply, Request
from blacksmith_dagster.redaction import Secret
from blacksmith_dagster.sources.typed import TypedSource, parse_time, several, text_field


class SlackSource(TypedSource):
    """The events of a Slack app.

    - `secret`: the app's signing secret; several while a new one replaces an old one.

    The handshake (`url_verification`) is answered. An `event_callback` has the type of its `event`,
    which is the event's data. `event_id`, which Slack's retries repeat, is the key, `event_time` is
    `sent_at`, and the other fields are the context. Other requests of Slack, such as
    `app_rate_limited`, become events without data. The response is always 200.

    >>> slack = SlackSource("slack", secret=Secret("SLACK_SIGNING_SECRET"))
    >>> mentioned = slack.on("app_mention")
    >>> mentioned.path
    'slack/app_mention'

    Raises `DeclarationError`.
    """

    def __init__(
        self, name: str, *, secret: Secret | Sequence[Secret], **properties: Unpack[Properties]
    ) -> None:
        super().__init__(
            name, signature=SlackSignature(*several(secret)), response=Reply(200), **properties
        )

    def _receive(self, request: Request) -> WebhookResult:
        """A request of Slack's Events API."""
        body = request.json(dict)
        outer = text_field(body, "type")
        if outer == "url_verification":
            return Reply(200, text_field(body, "challenge"))
        body.pop(
            "token", None
        )  # Slack's older verification token, a secret; the signature replaces it
        if outer != "event_callback":
            return self._source_event(outer).of(None, context=body)
        event: Any = body.pop("event", None)
        if not isinstance(event, dict):
            raise ValidationError("the body does not fit: an object is needed - at `$.event`")
        return self._source_event(text_field(event, "type", "$.event")).of(
            event,
            key=text_field(body, "event_id"),
            sent_at=parse_time(body.get("event_time"), "$.event_time"),
            context=body,
        )
