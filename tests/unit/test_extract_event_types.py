"""Events of several types from one request: children, webhooks, versions; and messages. No I/O."""

from collections.abc import Callable
from datetime import date
from typing import Any

import msgspec
import pytest

from blacksmith_dagster import (
    HTTP,
    Batch,
    Blacksmith,
    Destination,
    Event,
    Flow,
    Message,
    Reject,
    Reply,
    Request,
    Source,
    Subscription,
    TypedEvent,
)
from blacksmith_dagster.errors import BadRequest, RequestError, TooLarge, Unprocessable
from blacksmith_dagster.ingest.extract import Extracted, Extractor
from blacksmith_dagster.pipeline.limits import Limits
from blacksmith_dagster.store.records import NewEvent, NewJob
from blacksmith_dagster.testing import run


def load(batch: Batch) -> None:
    pass


def a_shop(*, key: str | None = None, **properties: Any) -> tuple[Blacksmith, Any, Any, Any]:
    """A source whose orders have lines, which have taxes; a destination receives the lines."""
    shop = Source("shop", **properties)
    tax = shop.child("tax")
    line = shop.child("line")

    def ordered(request: Request) -> Event[dict]:
        order = request.json()
        lines = [
            line.of(order_line, children=[tax.of(rate) for rate in order_line.get("taxes", ())])
            for order_line in order.get("lines", ())
        ]
        return Event(order, key=key, children=lines)

    order = shop.event(HTTP("/orders"))(ordered)
    lake = Destination("lake")
    lake.event(receives=line, name="lines")(load)
    app = Blacksmith(sources=[shop], destinations=[lake])
    return app, order, line, tax


ORDER = {"lines": [{"n": 1, "taxes": [7, 19]}, {"n": 2}]}


def made(app: Blacksmith, event: Any, request: Request) -> list[NewEvent]:
    return Extractor(app, event).extract(request).events


def keyed(data: Any, key: str = "k") -> Request:
    return Request.of(data, {"idempotency-key": key})


def test_children_follow_their_parent_and_make_their_own_jobs() -> None:
    app, order, _, _ = a_shop()
    events = made(app, order, Request.of(ORDER))
    assert [(event.event_type, event.parent) for event in events] == [
        ("shop/ordered", None),
        ("shop/line", 0),
        ("shop/tax", 1),
        ("shop/tax", 1),
        ("shop/line", 0),
    ]
    assert [event.jobs for event in events if event.event_type == "shop/line"] == [
        (NewJob("lake/lines"),)
    ] * 2


def test_children_are_made_once_with_a_parent_that_has_a_key() -> None:
    app, order, _, _ = a_shop(key="7")
    events = made(app, order, keyed(ORDER, "the request's"))
    assert [(event.key, event.ordinal) for event in events] == [
        ("7", 0),
        ("shop/ordered:7", 1),
        ("shop/ordered:7", 2),
        ("shop/ordered:7", 3),
        ("shop/ordered:7", 4),
    ]
    assert len({event.digest for event in events}) == 5


def test_children_of_events_without_a_key_count_by_the_requests() -> None:
    app, order, _, _ = a_shop()
    events = made(app, order, keyed([ORDER, {}]))
    assert [(event.key, event.ordinal) for event in events] == [
        ("k", place) for place in range(1, 7)
    ]


def test_two_parents_with_one_key_and_children_of_one_type_do_not_meet() -> None:
    shop = Source("shop")
    line = shop.child("line")
    source_events = [
        shop.event(HTTP(f"/{name}"), name=name)(
            lambda request: Event(1, key="7", children=[line.of(request.json())])
        )
        for name in ("ordered", "returned")
    ]
    app = Blacksmith(sources=[shop], destinations=[])
    keys = [made(app, source_event, Request.of(1))[1].key for source_event in source_events]
    assert len(set(keys)) == 2


def test_a_child_of_another_source_is_reported() -> None:
    other = Source("other").child("line")
    shop = Source("shop")
    ordered = shop.event(HTTP("/orders"), name="ordered")(
        lambda request: Event(1, children=[other.of(2)])
    )
    app = Blacksmith(sources=[shop], destinations=[])
    with pytest.raises(
        ValueError, match=r"other/line, which its source does not have.*shop/ordered"
    ):
        Extractor(app, ordered).extract(Request.of(1))


def test_children_may_be_nested_as_deep_as_a_request_may_be_long() -> None:
    shop = Source("shop")
    step = shop.child("step")

    def walked(request: Request) -> Event[int]:
        chain: tuple[TypedEvent, ...] = ()
        for number in range(5000, 0, -1):
            chain = (step.of(number, children=chain),)
        return Event(0, children=chain)

    app = Blacksmith(sources=[shop.event(HTTP("/walks"))(walked).source], destinations=[])
    events = made(app, shop.events["walked"], Request.of(1))
    assert [event.payload for event in events] == [str(number) for number in range(5001)]
    assert [event.parent for event in events[1:]] == list(range(5000))


def test_the_jobs_of_children_are_tested_like_others() -> None:
    app, order, _, _ = a_shop()
    jobs = run(app, [(order, {"lines": [{"n": 1}, {"n": 2}]})])["lake/lines"]
    assert [(job.data["n"], job.event.parent) for job in jobs] == [(1, "evt_1"), (2, "evt_1")]


# -- webhooks


def a_webhook(function: Any, **properties: Any) -> Callable[[Request], Extracted]:
    shop = Source("shop", **properties)
    for name in ("opened", "closed"):
        shop.child(name)
    shop.webhook(HTTP("/shop"))(function)
    app = Blacksmith(sources=[shop], destinations=[])
    return Extractor(app, shop.webhooks[0]).extract


def by_state(request: Request) -> Any:
    shop = Source("shop")
    children = {True: shop.child("opened"), False: shop.child("closed")}
    return [children[state["open"]].of(state) for state in request.json()]


def test_a_webhooks_function_gets_the_whole_body_and_names_the_event_types() -> None:
    extracted = a_webhook(by_state)(keyed([{"open": True}, {"open": False}]))
    assert [(event.event_type, event.ordinal) for event in extracted.events] == [
        ("shop/opened", 1),
        ("shop/closed", 2),
    ]


def test_a_webhook_may_respond_at_once() -> None:
    extracted = a_webhook(lambda request: Reply(200, "hello"))(Request.of(1))
    assert extracted == Extracted([], reply=Reply(200, "hello"))


def test_what_a_webhook_must_return_is_reported() -> None:
    expected = r"gave a Event; it must return an event made by SourceEvent\.of"
    with pytest.raises(TypeError, match=expected):
        a_webhook(lambda request: Event(1))(Request.of(1))


@pytest.mark.parametrize(
    ("limits", "body", "rejected"),
    [
        (Limits(event_bytes=10), b'{"much": "too much"}', TooLarge),
        (Limits(depth=2), b"[[[1]]]", Unprocessable),
        (Limits(keys=1), b'{"a": 1, "b": 2}', Unprocessable),
    ],
)
def test_the_sources_limits_hold_at_its_webhooks(
    limits: Limits, body: bytes, rejected: type[RequestError]
) -> None:
    def opened(request: Request) -> Any:
        return Source("shop").child("opened").of(request.json())

    with pytest.raises(rejected):
        a_webhook(opened, limits=limits)(Request(body))


def test_keys_and_depth_are_limited_per_event_at_a_webhook() -> None:
    """A request of many events has many keys."""
    webhook = a_webhook(by_state, limits=Limits(depth=1, keys=2))
    assert len(webhook(Request.of([{"open": True}] * 100)).events) == 100
    for wrong in ({"open": True, "a": 1, "b": 2}, {"open": True, "a": [1]}):
        with pytest.raises(Unprocessable):
            webhook(Request.of([{"open": True}, wrong]))


def test_context_is_limited_at_a_webhook_as_data_is() -> None:
    def opened(request: Request) -> Any:
        return Source("shop").child("opened").of(1, context=request.json())

    with pytest.raises(Unprocessable, match="more than 1 keys"):
        a_webhook(opened, limits=Limits(keys=1))(Request.of({"a": 1, "b": 2}))


def test_when_is_asked_with_the_model_of_what_came_through_a_webhook() -> None:
    class Order(msgspec.Struct):
        total: int

    shop = Source("shop")
    placed = shop.child("placed", model=Order)

    @shop.webhook(HTTP("/shop"))
    def arrived(request: Request) -> Any:
        return placed.of(request.json())

    lake = Destination("lake")

    lake.event(receives=Flow(placed, when=lambda event: event.data.total > 100), name="large")(load)
    app = Blacksmith(sources=[shop], destinations=[lake])
    for total, jobs in ((99, 0), (101, 1)):
        [event] = made(app, shop.webhooks[0], Request.of({"total": total, "unknown": "is kept"}))
        assert [job.when_error for job in event.jobs] == [None] * jobs
        assert "unknown" in event.payload


# -- versions

VERSIONS = {"2": None, "1": date(2026, 1, 1)}


def versions_of(request: Request, **properties: Any) -> list[str | None]:
    app, order, _, _ = a_shop(**properties)
    return [event.version for event in made(app, order, request)]


def test_an_event_without_a_version_is_of_the_default_one() -> None:
    assert versions_of(Request.of(ORDER), versions=VERSIONS, default_version="2") == ["2"] * 5
    assert versions_of(Request.of({}), versions=VERSIONS) == [None]


def test_the_header_names_the_version_of_all_that_name_none() -> None:
    request = Request.of(ORDER, {"Api-Version": "1"})
    assert versions_of(request, versions=VERSIONS, default_version="2") == ["1"] * 5
    assert versions_of(request) == ["1"] * 5


def test_an_unknown_version_is_rejected() -> None:
    with pytest.raises(Unprocessable, match=r"shop/ordered has no version '3'; send one of 2, 1"):
        versions_of(Request.of(ORDER, {"Api-Version": "3"}), versions=VERSIONS)


def test_a_version_is_deprecated_from_its_day_on() -> None:
    versions = Source("shop", versions=VERSIONS, default_version="2").versions
    assert versions.deprecated_since("1", date(2025, 12, 31)) is None
    assert versions.deprecated_since("1", date(2026, 1, 1)) == date(2026, 1, 1)
    assert versions.deprecated_since("2", date(2030, 1, 1)) is None
    assert versions.deprecated_since(None, date(2030, 1, 1)) is None


# -- messages


def a_subscription(function: Any = None, **properties: Any) -> Callable[[Message], Extracted]:
    shop = Source("shop", **properties)
    if function is None:
        event: Any = shop.accept("ordered", on=Subscription("orders"))
    else:
        event = shop.event(Subscription("orders"), name="ordered")(function)
    app = Blacksmith(sources=[shop], destinations=[])
    return Extractor(app, event).extract


def test_a_message_is_one_item_whatever_it_holds() -> None:
    events = a_subscription()(Message(b"[1, 2]")).events
    assert [event.payload for event in events] == ["[1, 2]"]


def test_a_message_is_handed_over_as_it_came() -> None:
    handed: list[Message] = []

    def extract(argument: Message) -> Event[Any]:
        handed.append(argument)
        return Event(1)

    message = Message(b"\x00\xff", {"a": "b"}, "orders", "k", "m1")
    a_subscription(extract)(message)
    assert handed == [message]


def test_the_id_of_a_message_makes_its_events_once() -> None:
    extract = a_subscription(lambda message: [Event(1), Event(2)])
    events = extract(Message(b"x", id="m1")).events
    assert [(event.key, event.ordinal) for event in events] == [("m1", 1), ("m1", 2)]


@pytest.mark.parametrize(
    ("function", "body", "error"),
    [
        (None, b"\xff", BadRequest),
        (None, b"{", BadRequest),
        (lambda message: Event(message.json(int)), b'"one"', Reject),
        (lambda message: Reply(200), b"1", TypeError),
    ],
)
def test_a_message_that_cannot_be_ingested_says_why(
    function: Any, body: bytes, error: type[Exception]
) -> None:
    with pytest.raises(error):
        a_subscription(function)(Message(body))
