"""Segment's own library sends to the gateway as to Segment, without an error."""

import base64
import json
import uuid
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from segment.analytics.client import Client
from segment.analytics.request import APIError
from segment.analytics.request import post as post_batch

from blacksmith_dagster import Request
from blacksmith_dagster.ingest.ingest import retry_quarantined
from blacksmith_dagster.ingest.quarantine import raw_request_of
from tests.support.pipelines.webhooks import blacksmith
from tests.support.processes.webhooks import SEGMENT_KEY, SEGMENT_KEY_OLD, Webhooks, opened
from tests.support.waiting import until

YESTERDAY = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Webhooks]:
    with opened(request.param, request, tmp_path_factory.mktemp("webhooks")) as webhooks:
        yield webhooks


@pytest.fixture
def webhooks(running: Webhooks, monkeypatch: pytest.MonkeyPatch) -> Webhooks:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    running.new()
    return running


class Library:
    """Segment's library for Python, and the errors that it reports."""

    def __init__(self, webhooks: Webhooks, write_key: str = SEGMENT_KEY, **options: Any) -> None:
        self.errors: list[tuple[Exception, list[Any]]] = []
        self.client = Client(
            write_key,
            host=webhooks.gateway.url,
            on_error=lambda error, batch: self.errors.append((error, batch)),
            upload_interval=0.05,
            **options,
        )

    def close(self) -> None:
        self.client.shutdown()


def say_everything(client: Client) -> list[str]:
    """Call each of the library's methods; returns the ids of the messages."""
    messages = [
        client.identify("u-1", {"plan": "enterprise"}),
        client.track("u-1", "Ordered", {"price": 18.99}, context={"ip": "192.0.2.1"}),
        client.page("u-1", "shop", "Anvils", {"path": "/anvils"}),
        client.screen("u-1", "shop", "Anvils"),
        client.group("u-1", "g-1", {"seats": 12}),
        client.alias("u-0", "u-1"),
    ]
    assert all(accepted for accepted, _ in messages)
    return [message["messageId"] for _, message in messages]


@pytest.mark.parametrize("gzip", [False, True])
@pytest.mark.parametrize("sync_mode", [False, True])
def test_every_call_is_an_event(webhooks: Webhooks, gzip: bool, sync_mode: bool) -> None:
    began = datetime.now(UTC)
    library = Library(webhooks, gzip=gzip, sync_mode=sync_mode)
    ids = say_everything(library.client)
    if not sync_mode:
        library.close()
    assert library.errors == []
    events = webhooks.new()
    names = ["identify", "track", "page", "screen", "group", "alias"]
    assert [event.event_type for event in events] == [f"segment/{name}" for name in names]
    assert [event.key for event in events] == ids
    for event, name in zip(events, names, strict=True):
        data = json.loads(event.payload)
        assert (data["type"], data["userId"]) == (name, "u-1")
        assert data.keys().isdisjoint({"context", "writeKey", "sentAt"})
        assert json.loads(event.context or "")["library"]["name"] == "analytics-python"
        assert event.sent_at is not None
        assert abs(event.sent_at - began) < timedelta(minutes=1)
    track = events[1]
    assert json.loads(track.payload)["properties"] == {"price": 18.99}
    assert json.loads(track.context or "")["ip"] == "192.0.2.1"
    # Each type has its own jobs.
    assert [len(event.destinations) for event in events] == [1, 2, 1, 1, 1, 1]
    assert set(track.destinations) == {"lake/everything", "lake/ordered"}


def test_history_keeps_its_time(webhooks: Webhooks) -> None:
    library = Library(webhooks)
    library.client.track("u-1", "Ordered", timestamp=YESTERDAY)
    library.close()
    (event,) = webhooks.new()
    assert library.errors == []
    assert event.sent_at is not None
    assert abs(event.sent_at - YESTERDAY) < timedelta(minutes=1)


def test_same_message_twice_is_one_event(webhooks: Webhooks) -> None:
    again = [{"type": "page", "userId": "u-1", "messageId": str(uuid.uuid4()), "n": 1}]
    responses = [
        post_batch(key, webhooks.gateway.url, batch=again) for key in (SEGMENT_KEY, SEGMENT_KEY_OLD)
    ]
    assert [(response.status_code, response.json()) for response in responses] == [
        (200, {"success": True}),
        (200, {"success": True}),
    ]
    (event,) = webhooks.new()
    assert event.key == again[0]["messageId"]
    # The library's own retries send the message with another time and number.
    with pytest.raises(APIError, match="key"):
        post_batch(SEGMENT_KEY, webhooks.gateway.url, batch=[again[0] | {"n": 2}])
    assert not webhooks.new()


def test_gateway_killed_under_the_library(webhooks: Webhooks) -> None:
    library = Library(webhooks, upload_size=5)
    before = len(webhooks.store.log.newest("segment/track"))
    ids = []
    with closing(library):
        for number in range(60):
            _, message = library.client.track("u-1", "Counted", {"n": number})
            ids.append(message["messageId"])
            if number == 30:
                until(lambda: len(webhooks.store.log.newest("segment/track")) > before)
                webhooks.gateway.kill()
            if number == 45:
                webhooks.gateway.start()
    assert library.errors == []
    assert sorted(event.key or "" for event in webhooks.new()) == sorted(ids)


def test_wrong_write_key(webhooks: Webhooks) -> None:
    with pytest.raises(APIError) as rejected:
        post_batch("another", webhooks.gateway.url, batch=[])
    assert rejected.value.status == 401
    library = Library(webhooks, "another")
    library.client.track("u-1", "Ordered")
    library.close()
    ((error, batch),) = library.errors
    assert isinstance(error, APIError)
    assert error.status == 401
    assert [message["event"] for message in batch] == ["Ordered"]
    assert not webhooks.new()


def sent(webhooks: Webhooks, path: str, body: Any, **headers: str) -> httpx.Response:
    basic = base64.b64encode(f"{SEGMENT_KEY}:".encode()).decode()
    content = body if isinstance(body, str) else json.dumps(body)
    return webhooks.post(path, content, {"Authorization": f"Basic {basic}"} | headers)


def test_pages_send_the_key_in_the_body(webhooks: Webhooks) -> None:
    """As analytics.js does from a page: text/plain, for which a browser sends no preflight request."""
    message = {"anonymousId": "a-1", "event": "Ordered", "writeKey": SEGMENT_KEY}
    plain = {"Content-Type": "text/plain"}
    retried = [
        message | {"messageId": "ajs-1", "sentAt": sent_at, "_metadata": {"retryCount": number}}
        for number, sent_at in enumerate(["2026-01-31T12:00:00Z", "2026-01-31T12:00:09Z"], 1)
    ]
    for body in retried:
        response = webhooks.post("/v1/t", json.dumps(body), plain)
        assert (response.status_code, response.json()) == (200, {"success": True})
    batch = {"writeKey": SEGMENT_KEY, "batch": [{"type": "page", "anonymousId": "a-1"}]}
    assert webhooks.post("/v1/b", json.dumps(batch), plain).status_code == 200
    track, page = webhooks.new()
    assert json.loads(track.payload) == {
        "anonymousId": "a-1",
        "event": "Ordered",
        "messageId": "ajs-1",
        "type": "track",
    }
    assert page.event_type == "segment/page"
    rejected = webhooks.post("/v1/t", json.dumps(message | {"writeKey": "another"}), plain)
    assert rejected.status_code == 401
    assert rejected.headers["WWW-Authenticate"].startswith("Basic")


def test_one_bad_event_in_a_batch(webhooks: Webhooks) -> None:
    good = {"type": "track", "userId": "u-1", "event": "Ordered"}
    batch = {"batch": [good, good, good | {"event": None}, good]}
    response = sent(webhooks, "/v1/batch", batch)
    assert response.status_code == 422
    assert response.json()["type"] == "urn:blacksmith:validation-error"
    assert "at `$.batch[2].event`" in response.json()["detail"]
    assert not webhooks.new()
    before = len(webhooks.store.quarantine.oldest())
    kept = sent(webhooks, "/lenient/v1/batch", batch)
    assert (kept.status_code, kept.json()) == (200, {"success": True})
    assert len(webhooks.store.quarantine.oldest()) == before + 1
    assert len(webhooks.new()) == 3


def test_clock_is_set_right_by_the_time_of_arrival_when_a_request_is_retried(
    webhooks: Webhooks,
) -> None:
    minute = timedelta(minutes=1)
    message = {
        "userId": "u-1",
        "event": "Ordered",
        "timestamp": YESTERDAY.isoformat(),
        "sentAt": (YESTERDAY + minute).isoformat(),
    }
    request = Request(json.dumps(message).encode(), path="/v1/track", received_at=YESTERDAY)
    waiting = webhooks.store.quarantine.add(
        raw_request_of("segment", request, RuntimeError("a bug, since fixed"))
    )
    (kept,) = retry_quarantined(blacksmith, webhooks.store, waiting)
    (event,) = webhooks.new()
    assert (event.id, event.sent_at) == (kept, YESTERDAY - minute)


def test_large_batches_are_accepted(webhooks: Webhooks) -> None:
    """The most that Segment accepts, and more keys than an event may have."""
    traits = {f"trait_{number}": number for number in range(300)}
    batch = [{"type": "identify", "userId": f"u-{n}", "traits": traits} for n in range(100)]
    assert len(json.dumps(batch)) > 500_000
    response = sent(webhooks, "/v1/batch", {"batch": batch})
    assert response.status_code == 200, response.text
    assert len(webhooks.new()) == 100
    many = {f"trait_{number}": number for number in range(10_001)}
    response = sent(webhooks, "/v1/identify", {"userId": "u", "traits": many})
    assert (response.status_code, "keys" in response.json()["detail"]) == (422, True)
    large = {"userId": "u", "traits": {"note": "x" * 1024 * 1024}}
    assert sent(webhooks, "/v1/identify", large).status_code == 413
    assert not webhooks.new()


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/track", "", 400),
        ("/v1/track", "{", 400),
        ("/v1/track", "[]", 422),
        ("/v1/track", '{"userId": "u"}', 422),
        ("/v1/track", '{"event": "Ordered"}', 422),
        ("/v1/track", '{"userId": "u", "event": "e", "type": "page"}', 422),
        ("/v1/track", '{"userId": "u", "event": "e", "timestamp": "noon"}', 422),
        ("/v1/track", '{"userId": "u", "event": "e", "messageId": ""}', 422),
        ("/v1/track", '{"userId": "u", "event": "e", "messageId": "a\\u0000"}', 422),
        ("/v1/track", '{"userId": "u", "event": "e", "context": {"a": "\\ud800"}}', 400),
        ("/v1/batch", "{}", 422),
        ("/v1/batch", '{"batch": [7]}', 422),
        ("/v1/batch", '{"batch": [{"type": "metric", "userId": "u"}]}', 422),
        ("/v1/batch", f'{{"batch": {"[" * 5000}', 400),
        ("/v1/tracks", "{}", 404),
    ],
)
def test_bad_requests_are_rejected(webhooks: Webhooks, path: str, body: str, status: int) -> None:
    response = sent(webhooks, path, body)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["detail"]
    assert not webhooks.new()


def test_nothing_is_kept_of_an_empty_batch(webhooks: Webhooks) -> None:
    response = sent(webhooks, "/v1/batch", {"batch": []})
    assert (response.status_code, response.json()) == (200, {"success": True})
    assert not webhooks.new()
