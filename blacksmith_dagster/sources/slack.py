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

    - `secret`: the app's signing secret; several while one is replaced by another.

    The handshake (`url_verification`) gets its response. Of an `event_callback` the type is that of its
    `event`, which is the event's data; the rest is its context, `event_id` the key, which Slack's
    retries bear too, and `event_time` is `sent_at`. Whatever else Slack sends, such as
    `app_rate_limited`, has no data. The response is always 200.

    >>> slack = SlackSource("slack", secret=Secret("SLACK_SIGNING_SECRET"))
    >>> mentioned = slack.on("app_mention")
    >>> mentioned.path
    'slack/app_mention'

    Raises `DeclarationError`.
    """

    def __init__(
        self, name: str, *, secret: Secret | Sequence[Secret], **given: Unpack[Properties]
    ) -> None:
        super().__init__(
            name, signature=SlackSignature(*several(secret)), response=Reply(200), **given
        )

    def _receive(self, request: Request) -> WebhookResult:
        """A request of Slack's Events API."""
        body = request.json(dict)
        outer = text_field(body, "type")
        if outer == "url_verification":
            return Reply(200, text_field(body, "challenge"))
        body.pop("token", None)  # a password of Slack's own, which the signature has replaced
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
