"""GitHub's webhooks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from blacksmith_dagster.errors import Reject
from blacksmith_dagster.pipeline.signatures import GitHubSignature
from blacksmith_dagster.pipeline.source import Properties, WebhookResult
from blacksmith_dagster.pipeline.triggers import Reply, Request, decode_body
from blacksmith_dagster.redaction import Secret
from blacksmith_dagster.sources.typed import TypedSource, header, several

_FORM = "application/x-www-form-urlencoded"


class GitHubSource(TypedSource):
    """The webhooks of GitHub's repositories, organizations and apps.

    - `secret`: the webhook's secret; several while a new one replaces an old one.

    `X-GitHub-Event` is the type, `X-GitHub-Delivery` the key. The event's data is the payload, its
    context `{"event": ...}`. A `ping` that is not declared gets a 200, and is not stored.

    >>> github = GitHubSource("github", secret=Secret("GITHUB_SECRET"))
    >>> pushed = github.on("push")
    >>> pushed.path, github.webhooks[0].on.path
    ('github/push', '/v1/github')

    Raises `DeclarationError`.
    """

    def __init__(
        self, name: str, *, secret: Secret | Sequence[Secret], **properties: Unpack[Properties]
    ) -> None:
        super().__init__(name, signature=GitHubSignature(*several(secret)), **properties)

    def _receive(self, request: Request) -> WebhookResult:
        """A delivery of a GitHub webhook."""
        event = header(request, "X-GitHub-Event")
        delivery = header(request, "X-GitHub-Delivery")
        if event == "ping" and event not in self._types:
            return Reply(200, "pong")
        source_event = self._source_event(event)
        if request.headers.get("content-type", "").startswith(_FORM):
            payload = request.form().get("payload")
            if payload is None:
                raise Reject("the form has no field payload")
            data = decode_body(payload.encode(), dict)
        else:
            data = request.json(dict)
        return source_event.of(data, key=delivery, context={"event": event})
