"""What messages of Segment's tracking API become, or why they are rejected."""

import base64
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from blacksmith_dagster import Blacksmith, Request, Secret
from blacksmith_dagster.errors import (
    BadRequest,
    DeclarationError,
    RequestError,
    TooLarge,
    Unauthorized,
    ValidationError,
)
from blacksmith_dagster.ingest.extract import Extractor
from blacksmith_dagster.pipeline.event import Event, InvalidItem, TypedEvent
from blacksmith_dagster.sources import SegmentSource

ARRIVAL = datetime(2026, 1, 31, 12, tzinfo=UTC)
TYPES = ["track", "identify", "page", "screen", "group", "alias"]


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> SegmentSource:
    monkeypatch.setenv("SEGMENT_KEY", "a-write-key")
    monkeypatch.setenv("SEGMENT_KEY_OLD", "an-old-one")
    keys = [Secret("SEGMENT_KEY"), Secret("SEGMENT_KEY_OLD")]
    return SegmentSource("shop", write_key=keys)


def message(type_: str = "track", **changed: Any) -> dict[str, Any]:
    whole = {
        "type": type_,
        "messageId": "m-1",
        "userId": "u-1",
        "timestamp": "2026-01-31T11:00:00.000Z",
        "event": "Ordered",
        "groupId": "g-1",
        "previousId": "p-1",
        "properties": {"price": 18.99},
        "context": {"library": {"name": "test"}},
    } | changed
    return {name: value for name, value in whole.items() if value is not msgspec.UNSET}


def send(source: SegmentSource, path: str, body: Any, headers: dict[str, str] | None = None) -> Any:
    (webhook,) = [webhook for webhook in source.webhooks if webhook.on.path == path]
    return webhook.function(msgspec.structs.replace(Request.of(body, headers), received_at=ARRIVAL))


def kept(source: SegmentSource, **changed: Any) -> Event[Any]:
    event: Event[Any] = send(source, "/v1/track", message(**changed)).event
    return event


def test_paths_are_those_of_segments_libraries(shop: SegmentSource) -> None:
    paths = [webhook.on.path for webhook in shop.webhooks]
    assert sorted(paths) == sorted(
        f"/v1/{path}" for type_ in [*TYPES, "batch"] for path in (type_, type_[0])
    )
    other = SegmentSource("other", write_key=Secret("OTHER"), path="/other/v1")
    assert other.webhooks[0].on.path == "/other/v1/track"
    with pytest.raises(DeclarationError, match="write a path"):
        SegmentSource("wrong", write_key=Secret("OTHER"), path="v1")


@pytest.mark.parametrize("type_", TYPES)
def test_each_kind_is_an_event(shop: SegmentSource, type_: str) -> None:
    for path in (f"/v1/{type_}", f"/v1/{type_[0]}"):
        for body in (message(type_), message(type_, type=msgspec.UNSET)):
            event = send(shop, path, body)
            assert event.event_type == f"shop/{type_}" == getattr(shop, type_).path
            assert event.event.data["type"] == type_


def test_message_is_kept_without_what_is_of_its_sending(shop: SegmentSource) -> None:
    event = kept(shop, writeKey="a-write-key", sentAt=None, _metadata={"retryCount": 2}, email="x")
    assert event.data == message(context=msgspec.UNSET, email="x")
    assert (event.key, event.context) == ("m-1", {"library": {"name": "test"}})
    assert kept(shop, context=None, messageId=None).context == {}


def test_header_of_rudderstacks_libraries_is_kept(shop: SegmentSource) -> None:
    headers = {"AnonymousId": "YS1icm93c2Vy"}
    library, kept_headers = {"library": {"name": "test"}}, {"headers": headers}
    single = send(shop, "/v1/track", message(), headers)
    assert single.event.context == library | kept_headers
    body = {"batch": [message(), message(context=msgspec.UNSET)], "context": {"ip": "192.0.2.1"}}
    assert [typed.event.context for typed in send(shop, "/v1/batch", body, headers)] == [
        library | kept_headers | {"ip": "192.0.2.1"},
        kept_headers | {"ip": "192.0.2.1"},
    ]


def test_batch_of_all_kinds(shop: SegmentSource) -> None:
    batch = [message(type_, messageId=f"m-{type_}") for type_ in TYPES]
    for path in ("/v1/batch", "/v1/b"):
        events = send(shop, path, {"batch": batch, "writeKey": "a-write-key"})
        assert [event.event_type for event in events] == [f"shop/{type_}" for type_ in TYPES]
        assert [event.event.key for event in events] == [f"m-{type_}" for type_ in TYPES]
    assert send(shop, "/v1/batch", {"batch": []}) == []


def test_context_of_a_batch_is_that_of_each_message_too(shop: SegmentSource) -> None:
    batch = [message(), message(context=msgspec.UNSET)]
    shared = {"ip": "192.0.2.1", "library": {"name": "other"}}
    events = send(shop, "/v1/batch", {"batch": batch, "context": shared})
    assert [event.event.context for event in events] == [
        {"ip": "192.0.2.1", "library": {"name": "test"}},
        shared,
    ]


@pytest.mark.parametrize(
    ("sent_at", "happened"),
    [
        (None, "2026-01-31T11:00:00+00:00"),
        ("2026-01-31T11:00:30.000Z", "2026-01-31T11:59:30+00:00"),  # an hour slow
        ("2026-01-31T13:00:00+01:00", "2026-01-31T11:00:00+00:00"),
        ("2026-02-02T12:00:00Z", "2026-01-29T11:00:00+00:00"),  # two days fast
    ],
)
def test_senders_clock_is_set_right(
    shop: SegmentSource, sent_at: str | None, happened: str
) -> None:
    """timestamp = receivedAt - (sentAt - originalTimestamp), as Segment documents it."""
    assert kept(shop, sentAt=sent_at).sent_at == datetime.fromisoformat(happened)
    named_so: dict[str, Any] = {"timestamp": None, "originalTimestamp": "2026-01-31T11:00:00.000Z"}
    batch = {"batch": [message(**named_so)], "sentAt": sent_at}
    (received,) = send(shop, "/v1/batch", batch)
    assert received.event.sent_at == datetime.fromisoformat(happened)


def test_message_without_a_time_has_none(shop: SegmentSource) -> None:
    assert kept(shop, timestamp=msgspec.UNSET, sentAt="2026-01-31T12:00:00Z").sent_at is None


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"type": "tracked"}, ".type"),
    ({"type": 7}, ".type"),
    ({"userId": None}, ""),
    ({"userId": ""}, ""),
    ({"event": msgspec.UNSET}, ".event"),
    ({"type": "group", "groupId": None}, ".groupId"),
    ({"type": "alias", "previousId": None}, ".previousId"),
    ({"type": "alias", "userId": None, "anonymousId": "a"}, ".userId"),
    ({"messageId": 7}, ".messageId"),
    ({"timestamp": "yesterday"}, ".timestamp"),
    ({"timestamp": ["2026"]}, ".timestamp"),
    ({"timestamp": "0001-01-01T00:00:00Z", "sentAt": "9999-01-01T00:00:00Z"}, ".timestamp"),
    ({"sentAt": {}}, ".sentAt"),
    ({"context": "none"}, ".context"),
]


@pytest.mark.parametrize(("changed", "at"), WRONG)
def test_one_bad_event_in_a_batch(shop: SegmentSource, changed: dict[str, Any], at: str) -> None:
    batch = [message(), message(**changed), message()]
    first, bad, third = send(shop, "/v1/batch", {"batch": batch})
    assert isinstance(first, TypedEvent)
    assert isinstance(third, TypedEvent)
    assert isinstance(bad, InvalidItem)
    assert f"at `$.batch[1]{at}`" in str(bad.error)
    (alone,) = send(shop, "/v1/batch", msgspec.json.decode(bad.body))
    assert f"at `$.batch[0]{at}`" in str(alone.error)


@pytest.mark.parametrize(
    ("body", "at"),
    [
        ({}, "$.batch"),
        ({"batch": {}}, "$.batch"),
        ({"batch": [], "sentAt": "noon"}, "$.sentAt"),
        ({"batch": [], "context": []}, "$.context"),
    ],
)
def test_batch_that_is_none(shop: SegmentSource, body: Any, at: str) -> None:
    with pytest.raises(ValidationError) as rejected:
        send(shop, "/v1/batch", body)
    assert f"at `{at}`" in str(rejected.value)


def test_call_of_another_kind_than_its_path_is_rejected(shop: SegmentSource) -> None:
    with pytest.raises(ValidationError, match=r"'track' is needed - at `\$.type`"):
        send(shop, "/v1/track", message("page"))


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", BadRequest),
        (b"{", BadRequest),
        (b"\xff", BadRequest),
        (b"[]", ValidationError),
        (b"7", ValidationError),
        (b"[NaN]", BadRequest),
        (b'{"a": NaN', BadRequest),
    ],
)
def test_body_that_is_no_object_is_rejected(
    shop: SegmentSource, body: bytes, error: type[RequestError]
) -> None:
    for webhook in shop.webhooks:
        with pytest.raises(error):
            webhook.function(Request(body))


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_a_number_that_json_lacks_fails_its_message_only(shop: SegmentSource, number: str) -> None:
    good, bad = msgspec.json.encode(message()).decode(), f'{{"type": "track", "price": {number}}}'
    (webhook,) = [webhook for webhook in shop.webhooks if webhook.on.path == "/v1/batch"]
    body = f'{{"batch": [{good}, {bad}, {good}]}}'.encode()
    first, invalid, third = webhook.function(Request(body))
    assert isinstance(first, TypedEvent)
    assert isinstance(third, TypedEvent)
    assert isinstance(invalid, InvalidItem)
    assert "no infinite numbers - at `$.batch[1]`" in str(invalid.error)


def test_what_a_bad_message_shares_is_not_kept_without_a_limit(shop: SegmentSource) -> None:
    app = Blacksmith(sources=[shop], destinations=[])
    (webhook,) = [webhook for webhook in shop.webhooks if webhook.on.path == "/v1/batch"]
    extract = Extractor(app, webhook, quarantines_invalid=True).extract
    body = {"batch": [7] * 100, "context": {"text": "x" * 100_000}}
    with pytest.raises(TooLarge, match="too much to keep in quarantine"):
        extract(Request.of(body))
    assert len(extract(Request.of({**body, "batch": [7] * 10})).quarantined) == 10


# ------------------------------------------------------------------------------ the write key


def basic(user: str) -> dict[bytes, bytes]:
    return {b"authorization": b"Basic " + base64.b64encode(user.encode())}


def asked(source: SegmentSource, headers: dict[bytes, bytes], body: bytes) -> None:
    assert source.auth is not None
    source.auth.check()
    source.auth.admit(headers)
    source.auth.verify(headers, body)


@pytest.mark.parametrize("key", ["a-write-key", "an-old-one"])
def test_write_key_is_taken_from_the_header_or_the_body(shop: SegmentSource, key: str) -> None:
    asked(shop, basic(f"{key}:"), b"{}")
    asked(shop, {}, msgspec.json.encode({"writeKey": key, "batch": []}))


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (basic("another:"), b'{"writeKey": "a-write-key"}'),
        ({b"authorization": b"Bearer a-write-key"}, b"{}"),
        ({}, b'{"writeKey": "another"}'),
        ({}, b'{"writeKey": ["a-write-key"]}'),
        ({}, b"{}"),
        ({}, b"no JSON"),
        ({}, b'"\xff"'),
        ({}, b""),
    ],
)
def test_wrong_write_key(shop: SegmentSource, headers: dict[bytes, bytes], body: bytes) -> None:
    with pytest.raises(Unauthorized, match="write key") as rejected:
        asked(shop, headers, body)
    assert rejected.value.challenge.startswith("Basic")
    assert "another" not in str(rejected.value)


def test_request_that_comes_now_is_measured_by_the_clock(shop: SegmentSource) -> None:
    fast = datetime.now(UTC) + timedelta(days=1)
    body = message(timestamp=fast.isoformat(), sentAt=fast.isoformat())
    sent_at = shop.webhooks[0].function(Request.of(body)).event.sent_at
    assert abs(datetime.now(UTC) - sent_at) < timedelta(minutes=1)
