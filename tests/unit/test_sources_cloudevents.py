"""What CloudEvents in each content mode become, or why they are rejected."""

import base64
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from blacksmith_dagster import Request
from blacksmith_dagster.errors import (
    BadRequest,
    RequestError,
    UnsupportedMedia,
    ValidationError,
)
from blacksmith_dagster.sources import CloudEventsSource

STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.fixture
def orders() -> CloudEventsSource:
    source = CloudEventsSource("orders")
    source.on("com.example.order.placed", name="placed")
    source.on("com.example.order.cancelled", name="cancelled")
    return source


def cloud_event(**changed: Any) -> dict[str, Any]:
    whole = {
        "specversion": "1.0",
        "type": "com.example.order.placed",
        "source": "/shop",
        "id": "A1",
        "time": "2026-01-31T12:00:00Z",
        "subject": "order/7",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "data": {"id": 7},
    } | changed
    return {name: value for name, value in whole.items() if value is not msgspec.UNSET}


def receive(source: CloudEventsSource, body: Any, media: str) -> Any:
    function = source.webhooks[0].function
    return function(Request(msgspec.json.encode(body), {"content-type": media}))


def binary(
    source: CloudEventsSource, body: bytes, headers: dict[str, str], media: str | None = None
) -> Any:
    attributes = {
        "ce-specversion": "1.0",
        "ce-type": "com.example.order.placed",
        "ce-source": "/shop",
        "ce-id": "A1",
    }
    content = {} if media is None else {"content-type": media}
    return source.webhooks[0].function(Request(body, attributes | headers | content))


def test_structured(orders: CloudEventsSource) -> None:
    received = receive(orders, cloud_event(), f"{STRUCTURED}; charset=UTF-8")
    assert received.event_type == "orders/placed"
    assert (received.event.data, received.event.key) == ({"id": 7}, "/shop A1")
    assert received.event.sent_at == NOON
    assert received.event.context == cloud_event(data=msgspec.UNSET)


def test_batch_of_several_types(orders: CloudEventsSource) -> None:
    both = [cloud_event(), cloud_event(id="A2", type="com.example.order.cancelled")]
    received = receive(orders, both, BATCH)
    assert [(event.event_type, event.event.key) for event in received] == [
        ("orders/placed", "/shop A1"),
        ("orders/cancelled", "/shop A2"),
    ]
    assert receive(orders, [], BATCH) == []


def test_binary(orders: CloudEventsSource) -> None:
    headers = {"ce-time": "2026-01-31T12:00:00Z", "ce-subject": "order/7", "ce-tenant": "x"}
    event = binary(orders, b'{"id": 7}', headers, "application/json").event
    assert (event.data, event.key, event.sent_at) == ({"id": 7}, "/shop A1", NOON)
    assert event.context == {
        "specversion": "1.0",
        "type": "com.example.order.placed",
        "source": "/shop",
        "id": "A1",
        "time": "2026-01-31T12:00:00Z",
        "subject": "order/7",
        "tenant": "x",
        "datacontenttype": "application/json",
    }


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        ("Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro € 😀"),
        ('"a \\"quoted\\" one"', 'a "quoted" one'),
        ("100%2525", "100%25"),
        ("Z\u00c3\u00bcrich", "Zürich"),  # UTF-8 as it is, which a server reads as Latin-1
        ("  trimmed ", "trimmed"),
    ],
)
def test_attributes_in_headers_are_decoded_once(
    orders: CloudEventsSource, raw: str, value: str
) -> None:
    event = binary(orders, b"1", {"ce-subject": raw}).event
    assert event.context["subject"] == value


def test_attribute_that_is_not_utf8_is_rejected(orders: CloudEventsSource) -> None:
    with pytest.raises(BadRequest, match="header ce-subject is not UTF-8"):
        binary(orders, b"1", {"ce-subject": "%ff"})


@pytest.mark.parametrize(
    ("body", "media", "data", "encoded"),
    [
        (b'{"id": 7}', None, {"id": 7}, False),
        (b'{"id": 7}', "application/vnd.order+json; charset=utf-8", {"id": 7}, False),
        (b"", "application/json", None, False),
        ("<größe/>".encode(), "application/xml", "<größe/>", False),
        (b"hello", "text/plain; charset=utf-8", "hello", False),
        (b"\x00\xff", "application/octet-stream", "AP8=", True),
    ],
)
def test_data_of_any_type_is_kept(
    orders: CloudEventsSource, body: bytes, media: str | None, data: Any, encoded: bool
) -> None:
    received = [binary(orders, body, {}, media)]
    if body:
        content = {} if media is None else {"datacontenttype": media}
        packed = {"data_base64": base64.b64encode(body).decode(), "data": msgspec.UNSET}
        received.append(receive(orders, cloud_event(**packed, **content), STRUCTURED))
    for typed in received:
        assert typed.event.data == data
        assert (typed.event.context.get("datacontentencoding") == "base64") is encoded


def test_event_without_data(orders: CloudEventsSource) -> None:
    assert receive(orders, cloud_event(data=msgspec.UNSET), STRUCTURED).event.data is None
    text = cloud_event(data="<xml/>", datacontenttype="application/xml")
    assert receive(orders, text, STRUCTURED).event.data == "<xml/>"


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"id": msgspec.UNSET}, "a text is needed - at `$.id`"),
        ({"id": ""}, "a text is needed - at `$.id`"),
        ({"source": 7}, "a text is needed - at `$.source`"),
        ({"type": None}, "a text is needed - at `$.type`"),
        ({"specversion": msgspec.UNSET}, "a text is needed - at `$.specversion`"),
        ({"specversion": "0.3"}, "only CloudEvents 1.0 is supported - at `$.specversion`"),
        ({"time": "noon"}, "at `$.time`"),
        ({"data_base64": "AAAA"}, "data or data_base64, not both"),
        ({"data": None, "data_base64": "no base64"}, "this is not base64 - at `$.data_base64`"),
        ({"data": None, "data_base64": 7}, "this is not base64 - at `$.data_base64`"),
    ],
)
def test_attributes_are_checked(orders: CloudEventsSource, changed: Any, says: str) -> None:
    with pytest.raises(ValidationError) as rejected:
        receive(orders, cloud_event(**changed), STRUCTURED)
    assert says in str(rejected.value)
    _, bad = receive(orders, [cloud_event(), cloud_event(**changed)], BATCH)
    assert says.replace("`$.", "`$[1].") in str(bad.error)
    (alone,) = receive(orders, msgspec.json.decode(bad.body), BATCH)
    assert says.replace("`$.", "`$[0].") in str(alone.error)


@pytest.mark.parametrize(
    ("body", "headers", "error", "says"),
    [
        (b"{}", {"content-type": "application/json"}, BadRequest, "this is not a CloudEvent"),
        (b"", {}, BadRequest, "no header ce-specversion"),
        (b"<e/>", {"content-type": "application/cloudevents+xml"}, UnsupportedMedia, "send JSON"),
        (b"{}", {"content-type": BATCH}, ValidationError, "Expected `array`"),
        (b"[]", {"content-type": STRUCTURED}, ValidationError, "an object is needed"),
        (b"{", {"content-type": STRUCTURED}, BadRequest, "is not JSON"),
        (b"\xff", {"content-type": STRUCTURED}, BadRequest, "is not JSON"),
    ],
)
def test_what_is_no_cloud_event_is_rejected(
    orders: CloudEventsSource,
    body: bytes,
    headers: dict[str, str],
    error: type[RequestError],
    says: str,
) -> None:
    with pytest.raises(error, match=says):
        orders.webhooks[0].function(Request(body, headers))


@pytest.mark.parametrize(
    ("body", "media", "error"),
    [(b"{", "application/json", BadRequest), (b"\xff", "text/plain", BadRequest)],
)
def test_data_that_is_not_what_it_says_is_rejected(
    orders: CloudEventsSource, body: bytes, media: str, error: type[RequestError]
) -> None:
    with pytest.raises(error):
        binary(orders, body, {}, media)
