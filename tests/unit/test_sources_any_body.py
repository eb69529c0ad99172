"""Any body sent to a ready-made webhook endpoint is accepted or rejected; none makes it fail."""

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blacksmith_dagster import Blacksmith, Request, Secret, Source
from blacksmith_dagster.errors import RequestError
from blacksmith_dagster.ingest.extract import Extracted, Extractor
from blacksmith_dagster.sources import (
    CloudEventsSource,
    GitHubSource,
    SegmentSource,
    SlackSource,
    StandardWebhooksSource,
    StripeSource,
)

SECRET = Secret("WEBHOOK_SECRET")
SOURCES: list[Any] = [
    GitHubSource("github", secret=SECRET),
    StripeSource("stripe", secret=SECRET),
    SlackSource("slack", secret=SECRET),
    StandardWebhooksSource("hooks", secret=SECRET),
    CloudEventsSource("orders"),
]
for source in SOURCES:
    source.on("*", name="anything")
ALL: list[Source] = [*SOURCES, SegmentSource("segment", write_key=SECRET)]
APP = Blacksmith(sources=ALL, destinations=[])
WEBHOOKS = {webhook.on.path: Extractor(APP, webhook) for webhook in APP.webhooks}

# The fields that the webhooks look for, with values that they do not expect.
FIELDS = [
    *("type", "id", "data", "created", "timestamp", "event", "event_id", "event_time", "challenge"),
    *("specversion", "source", "time", "data_base64", "datacontenttype", "api_version"),
    *("batch", "userId", "messageId", "context", "sentAt", "properties", "payload"),
]
TEXTS = st.sampled_from(
    [
        *("", "1.0", "track", "alias", "event_callback", "url_verification", "text/plain"),
        *("2026-01-31T12:00:00Z", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59", "AA=="),
    ]
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | TEXTS
BODIES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=8)
        | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=20,
)
MEDIA = st.sampled_from(
    [
        "application/json",
        "application/x-www-form-urlencoded",
        "application/cloudevents+json",
        "application/cloudevents-batch+json",
        "application/octet-stream",
        "",
    ]
)
HEADERS: Mapping[str, str] = {
    "x-github-event": "push",
    "x-github-delivery": "d-1",
    "webhook-id": "msg_1",
    "webhook-timestamp": "1769860800",
    "ce-specversion": "1.0",
    "ce-type": "t",
    "ce-source": "/s",
    "ce-id": "%31",
}


def sent(path: str, body: bytes, headers: Mapping[str, str]) -> Extracted | RequestError:
    """What is extracted, or the rejection; whatever else is raised fails the test."""
    try:
        return WEBHOOKS[path].extract(
            Request(body, {**HEADERS, **headers, "idempotency-key": "a-key"})
        )
    except RequestError as error:
        return error


@pytest.mark.parametrize("path", WEBHOOKS)
@given(body=BODIES.map(msgspec.json.encode) | st.binary(max_size=60), media=MEDIA)
def test_any_body_is_accepted_or_rejected(path: str, body: bytes, media: str) -> None:
    result = sent(path, body, {"content-type": media})
    if isinstance(result, RequestError):
        assert 400 <= result.status < 500
        assert str(result)
    else:
        for event in result.events:
            msgspec.json.decode(event.payload.encode())


@pytest.mark.parametrize("name", ["ce-subject", "ce-time", "ce-id", "ce-type", "content-type"])
@given(value=st.text(st.characters(max_codepoint=255), max_size=40))
def test_any_header_is_accepted_or_rejected(name: str, value: str) -> None:
    """Servers read headers as Latin-1."""
    result = sent("/v1/orders", b"1", {name: value})
    assert isinstance(result, RequestError) or result.reply is None
