"""What becomes of a request: its events, their keys and jobs, or a rejection. No I/O."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blacksmith_dagster import (
    HTTP,
    Batch,
    Blacksmith,
    Destination,
    Event,
    Flow,
    Limits,
    Message,
    Reject,
    Reply,
    Request,
    Source,
    Subscription,
)
from blacksmith_dagster.errors import (
    BadRequest,
    RequestError,
    TooLarge,
    Unprocessable,
    UnsupportedMedia,
)
from blacksmith_dagster.ingest.extract import Extracted, Extractor
from blacksmith_dagster.ingest.items import REQUEST_EVENTS
from blacksmith_dagster.store.records import NewEvent, NewJob


class Flight(msgspec.Struct):
    flight: str
    delay: int = 0


def nothing(batch: Batch) -> None:
    pass


Extract = Callable[[Request], Extracted]


def accepting(*, model: Any = Any, limits: Limits | None = None, flows: Any = ()) -> Extract:
    source = Source("airport", limits=limits)
    event = source.accept("departed", model=model)
    destination = Destination("lake")
    for number, flow in enumerate(flows):
        destination.event(receives=flow(event), name=f"e{number}")(nothing)
    app = Blacksmith(sources=[source], destinations=[destination])
    return Extractor(app, event).extract


def calling(function: Callable[[Request], Any], limits: Limits | None = None) -> Extract:
    source = Source("airport", limits=limits)
    event = source.event(HTTP("/departures"), name="departed")(function)
    app = Blacksmith(sources=[source], destinations=[])
    return Extractor(app, event).extract


def events(extracted: Extracted) -> list[NewEvent]:
    assert extracted.reply is None
    return extracted.events


def payloads(extracted: Extracted) -> list[str]:
    return [event.payload for event in events(extracted)]


def keyed(body: bytes) -> Request:
    return Request(body, {"idempotency-key": "k"})


def ndjson(body: bytes) -> Request:
    return Request(body, {"content-type": "application/x-ndjson"})


# ------------------------------------------------------------------------- events


def test_accepted_body_is_kept_to_the_byte() -> None:
    body = b' {"b": 1.0,\t"a": "\\u0041\xc3\xa9", "b": 12345678901234567890123, "n": "\\u0000"}\r\n'
    assert payloads(accepting()(Request(body))) == [body.decode()]


def test_an_array_has_an_event_per_item_with_its_exact_bytes() -> None:
    body = b'\n[ {"a" : 1.50} ,"x",\t[2], null ]'
    assert payloads(accepting()(Request(body))) == ['{"a" : 1.50}', '"x"', "[2]", "null"]


def test_ndjson_is_an_event_a_line() -> None:
    assert payloads(accepting()(ndjson(b'{"a":1}\r\n\n  [1, 2]\n'))) == ['{"a":1}', "[1, 2]"]


@pytest.mark.parametrize("request_", [Request(b"[]"), ndjson(b"\n\n")])
def test_nothing_is_no_event(request_: Request) -> None:
    assert accepting()(request_).events == []


@given(st.lists(st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=9)))
def test_items_come_out_as_they_went_in(items: list[Any]) -> None:
    extracted = payloads(accepting()(Request(msgspec.json.encode(items))))
    assert [msgspec.json.decode(payload) for payload in extracted] == items


@pytest.mark.parametrize(
    ("content_type", "accepted"),
    [
        ("application/json; charset=utf-8", True),
        ("Application/Vnd.Github+JSON", True),
        ("text/csv", False),
        ("application/x-www-form-urlencoded", False),
        ("application/octet-stream", False),
    ],
)
def test_event_without_function_accepts_json_only(content_type: str, accepted: bool) -> None:
    request = Request(b"{}", {"content-type": content_type})
    if accepted:
        assert payloads(accepting()(request)) == ["{}"]
    else:
        with pytest.raises(UnsupportedMedia, match="send it with Content-Type"):
            accepting()(request)


def test_other_content_types_are_handed_over_to_the_function() -> None:
    def form(request: Request) -> Event[dict[str, str]]:
        return Event(request.form())

    request = Request(b"a=%5B1&b=", {"content-type": "application/x-www-form-urlencoded"})
    assert payloads(calling(form)(request)) == ['{"a":"[1","b":""}']


def test_function_is_called_once_per_item_with_the_requests_headers() -> None:
    def one(request: Request) -> Event[Any]:
        return Event([request.json(), request.headers["x"], request.query["q"], request.path])

    request = Request(b'[1, {"a": 2}]', {"x": "y"}, {"q": "1"}, "POST", "/departures")
    assert payloads(calling(one)(request)) == [
        '[1,"y","1","/departures"]',
        '[{"a":2},"y","1","/departures"]',
    ]


def test_function_may_give_several_events_or_none() -> None:
    def several(request: Request) -> Iterator[Event[int]]:
        for number in range(request.json()):
            yield Event(number)

    assert payloads(calling(several)(Request(b"[2, 0, 1]"))) == ["0", "1", "0"]


def test_reply_stores_nothing_even_beside_events() -> None:
    def handshake(request: Request) -> Event[Any] | Reply:
        return Reply(200, "hello") if request.json() == "hi" else Event(1)

    assert calling(handshake)(Request(b'[1, "hi"]')) == Extracted([], reply=Reply(200, "hello"))


@pytest.mark.parametrize("reply", [Reply(99), Reply(600), Reply(content_type="a/b\r\nX: y")])
def test_reply_that_http_cannot_say_is_the_functions_error(reply: Reply) -> None:
    with pytest.raises(ValueError, match="Reply"):
        calling(lambda _: reply)(Request(b"1"))


@pytest.mark.parametrize("returned", [None, {"a": 1}, "text", [Event(1), 2], 7])
def test_function_that_gives_something_else_fails(returned: Any) -> None:
    with pytest.raises(TypeError, match="must return an Event"):
        calling(lambda _: returned)(Request(b"1"))


def test_errors_of_the_function_pass() -> None:
    def fails(request: Request) -> Event[Any]:
        raise {"a": Reject("no"), "b": KeyError("b")}[request.json()]

    with pytest.raises(Reject, match="no"):
        calling(fails)(Request(b'"a"'))
    with pytest.raises(KeyError):
        calling(fails)(Request(b'"b"'))


# ------------------------------------------------------------------------- rejections


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b'{"a": 1} x',
        b"[1, 2",
        b'{"a": NaN}',
        b"[Infinity]",
        b'"\xff"',
        b'["\xed\xa0\x80"]',
        b'{"a": "\\ud800"}',
        b'"a\x00b"',
        b'"a\nb"',
        b"'a'",
    ],
)
def test_what_is_not_json_is_rejected(body: bytes) -> None:
    with pytest.raises(BadRequest, match="not JSON"):
        accepting()(Request(body))


def test_one_bad_item_rejects_the_request_and_is_named() -> None:
    with pytest.raises(BadRequest, match="event 2"):
        accepting()(ndjson(b"1\n{\n3"))


@pytest.mark.parametrize("body", [b"1e999", b"9" * 5000])
def test_numbers_that_nobody_can_hold_are_rejected(body: bytes) -> None:
    with pytest.raises(Unprocessable, match="out of range"):
        accepting()(Request(body))


def test_model_rejects_with_the_place_of_the_fault() -> None:
    with pytest.raises(Unprocessable, match=r"event 1 .*Expected `int`, got `str` - at `\$.delay`"):
        accepting(model=Flight)(Request(b'{"flight": "UA1", "delay": "x"}'))


def test_event_over_its_bytes_is_rejected() -> None:
    extract = accepting(limits=Limits(event_bytes=10))
    assert len(events(extract(Request(b"[12345678,12345678]")))) == 2
    with pytest.raises(TooLarge, match="11 bytes"):
        extract(Request(b"12345678901"))
    with pytest.raises(TooLarge, match="11 bytes"):
        extract(Request(b"[1, 12345678901]"))


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"]":'])
@pytest.mark.parametrize("taker", [accepting, lambda **k: calling(lambda r: Event(1), **k)])
def test_depth_is_limited_exactly(opening: str, taker: Callable[..., Extract]) -> None:
    extract = taker(limits=Limits(depth=6))
    closing = opening.replace('"a":', "").replace('"]":', "").translate(str.maketrans("[{", "]}"))
    closing = closing[::-1]
    levels = 6 // len(closing)
    text = opening * levels + "0" + closing * levels
    deeper = '{"s":' + text + "}"
    # Wrapped in an array, each is one item.
    extract(Request(f"[{text}, {text}]".encode()))
    with pytest.raises(Unprocessable, match="deeper than 6"):
        extract(Request(f"[{deeper}]".encode()))


@pytest.mark.parametrize("body", [b"[" * 200_000, b'{"a":' * 200_000, b"[" * 3000 + b"]" * 3000])
def test_endless_depth_is_rejected(body: bytes) -> None:
    for extract in (accepting(), calling(lambda request: Event(request.json()))):
        with pytest.raises(RequestError):
            extract(Request(body))


def test_keys_are_limited_exactly_and_strings_do_not_count() -> None:
    extract = accepting(limits=Limits(keys=4))
    inner = r'{"a": "::::\":{{{", "b\\": {"c": ":"}, "d": []}'
    assert payloads(extract(Request(f"[{inner}, {inner}]".encode()))) == [inner, inner]
    with pytest.raises(Unprocessable, match="more than 4 keys"):
        extract(Request(b'{"a":1,"b":{"c":1,"d":1,"d":1}}'))


@pytest.mark.parametrize("media", ["application/x-www-form-urlencoded", "text/plain"])
def test_depth_and_keys_are_limited_for_json_of_another_content_type(media: str) -> None:
    extract = calling(lambda request: Event(request.json()), limits=Limits(depth=2, keys=2))
    headers = {"content-type": media}
    assert payloads(extract(Request(b'{"a": [1]}', headers))) == ['{"a":[1]}']
    for body in (b" [[[1]]]\n", b'{"a": [[1]]}'):
        with pytest.raises(Unprocessable, match="deeper than 2"):
            extract(Request(body, headers))
    with pytest.raises(Unprocessable, match="more than 2 keys"):
        extract(Request(b'{"a": 1, "b": 2, "c": 3}', headers))


@pytest.mark.parametrize("body", [b"at: 10:00:00 [[[", b"[10:00:00] open [ and [ again: done"])
def test_text_is_not_limited_as_json_is(body: bytes) -> None:
    extract = calling(lambda request: Event(request.body.decode()), limits=Limits(depth=2, keys=2))
    assert len(events(extract(Request(body, {"content-type": "text/plain"})))) == 1


def test_many_tiny_items_are_rejected_before_they_are_made() -> None:
    with pytest.raises(TooLarge, match="at most"):
        accepting()(Request(b"[" + b"1," * REQUEST_EVENTS + b"1]"))
    with pytest.raises(TooLarge, match="at most"):
        accepting()(ndjson(b"1\n" * (REQUEST_EVENTS + 1)))
    commas = b'[[{"a": ",,"}' + b",1" * (2 * REQUEST_EVENTS) + b"]]"
    assert len(events(accepting()(Request(commas)))) == 1


# ------------------------------------------------------------------------- keys and times


def test_requests_key_counts_with_the_events_place_and_the_whole_body() -> None:
    first, second = events(accepting()(keyed(b"[1, 2]")))
    assert (first.key, first.ordinal, second.key, second.ordinal) == ("k", 1, "k", 2)
    other, _ = events(accepting()(keyed(b"[1, 3]")))
    assert first.digest == second.digest != other.digest
    assert first.digest is not None
    assert len(first.digest) == 16


def test_events_own_key_comes_first_and_stands_for_its_data() -> None:
    def own_key(request: Request) -> Event[Any]:
        data = request.json()
        return Event(data["n"], key=data.get("key"))

    body = b'[{"n": 1, "key": "k"}, {"n": 2}]'
    own, requests = events(calling(own_key)(keyed(body)))
    assert (own.key, own.ordinal, requests.key, requests.ordinal) == ("k", 0, "k", 2)
    assert own.digest != requests.digest
    (alone,) = events(calling(own_key)(Request(b'{"key": "k", "n": 1, "x": 0}')))
    assert alone.digest == own.digest


def test_without_a_key_there_is_none() -> None:
    (event,) = events(accepting()(Request(b"1")))
    assert (event.key, event.ordinal, event.digest) == (None, 0, None)


@pytest.mark.parametrize(
    ("event", "says"),
    [
        (Event(1, key="a\0b"), "NUL"),
        (Event(1, key="x" * 513), "512 characters"),
        (Event(1, key=""), "512 characters"),
        (Event(1, key="\ud800"), "surrogate"),
        (Event(1, version="\0"), "NUL"),
        (Event(1, sent_at=datetime(2026, 1, 31, 12)), "time zone"),  # noqa: DTZ001
        (Event(1, sent_at=datetime.min.replace(tzinfo=timezone(timedelta(hours=1)))), "range"),
        (Event(object()), "cannot be written as JSON"),
        (Event("\ud800"), "cannot be written as JSON"),
        (Event(10**5000), "cannot be written as JSON"),
        (Event(1, context={"a": object()}), "cannot be written as JSON"),
    ],
)
def test_events_that_no_store_can_keep_are_rejected(event: Event[Any], says: str) -> None:
    with pytest.raises(Unprocessable, match=says):
        calling(lambda _: event)(Request(b"1"))


def test_what_an_event_knows_is_kept() -> None:
    sent_at = datetime(2026, 1, 31, 12, tzinfo=timezone(timedelta(hours=2)))
    event = Event(Flight("UA1"), sent_at=sent_at, context={"agent": "x"}, version="2", parent="p")
    (extracted,) = events(calling(lambda _: event)(Request(b"1")))
    assert extracted == NewEvent(
        "airport/departed",
        '{"flight":"UA1","delay":0}',
        context='{"agent":"x"}',
        version="2",
        sent_at=datetime(2026, 1, 31, 10, tzinfo=UTC),
        parent="p",
    )


def test_key_that_is_no_text_is_the_functions_error() -> None:
    with pytest.raises(TypeError, match="make it a str"):
        calling(lambda _: Event(1, key=7))(Request(b"1"))  # type: ignore[arg-type]


# ------------------------------------------------------------------------- jobs


def test_when_decides_per_destination_with_the_decoded_data() -> None:
    extract = accepting(
        model=Flight,
        flows=[lambda e: e, lambda e: Flow(e, when=lambda event: event.data.delay > 120)],
    )
    late, early = events(extract(Request(b'[{"flight": "a", "delay": 121}, {"flight": "b"}]')))
    assert [job.destination for job in late.jobs] == ["lake/e0", "lake/e1"]
    assert [job.destination for job in early.jobs] == ["lake/e0"]


def test_when_that_raises_makes_the_job_with_its_error() -> None:
    extract = accepting(flows=[lambda e: Flow(e, when=lambda event: event.data["no\0"] > 1)])
    (event,) = events(extract(Request(b"{}")))
    assert list(event.jobs) == [NewJob("lake/e0", "KeyError: 'no\\x00'")]


# -------------------------------------------------------------------- byte order marks

TEXT = '{"a": "é"}'
MARKED = {
    "utf-8": b"\xef\xbb\xbf" + TEXT.encode(),
    "utf-16-le": b"\xff\xfe" + TEXT.encode("utf-16-le"),
    "utf-16-be": b"\xfe\xff" + TEXT.encode("utf-16-be"),
    "utf-32-le": b"\xff\xfe\0\0" + TEXT.encode("utf-32-le"),
    "utf-32-be": b"\0\0\xfe\xff" + TEXT.encode("utf-32-be"),
}


@pytest.mark.parametrize("mark", MARKED)
@pytest.mark.parametrize("media", ["application/json", "application/x-ndjson", "text/plain", ""])
def test_byte_order_marks(mark: str, media: str) -> None:
    request = Request(MARKED[mark], {"content-type": media})
    (event,) = calling(lambda request: Event(request.json()))(request).events
    assert msgspec.json.decode(event.payload) == {"a": "é"}
    if media != "text/plain":
        (accepted,) = accepting()(request).events
        assert accepted.payload == TEXT
    assert Request(MARKED[mark]).json() == {"a": "é"}


def test_byte_order_marks_of_arrays_and_lines_are_taken() -> None:
    bodies = {"application/json": "[1, 2]", "application/x-ndjson": "1\n2\n"}
    for media, text in bodies.items():
        for body in (b"\xef\xbb\xbf" + text.encode(), text.encode("utf-16")):
            extracted = accepting()(Request(body, {"content-type": media}))
            assert [event.payload for event in extracted.events] == ["1", "2"]


def test_byte_order_marks_of_messages_and_forms_are_taken() -> None:
    source = Source("shop")
    event = source.accept("ordered", on=Subscription("orders"))
    app = Blacksmith(sources=[source], destinations=[])
    (stored,) = Extractor(app, event).extract(Message(MARKED["utf-8"])).events
    assert stored.payload == TEXT
    form = Request("\ufeffa=1&b=2".encode(), {"content-type": "application/x-www-form-urlencoded"})
    assert form.form() == {"a": "1", "b": "2"}


def test_byte_order_marks_that_lie_are_named() -> None:
    with pytest.raises(BadRequest, match="not in the encoding of its byte order mark"):
        accepting()(Request(b"\xff\xfe{", {"content-type": "application/json"}))
    image = b"\xff\xfe\x01"
    (event,) = calling(lambda request: Event(request.body.hex()))(
        Request(image, {"content-type": "image/x-own"})
    ).events
    assert event.payload == '"fffe01"'


def test_limits_hold_behind_a_byte_order_mark() -> None:
    deep = "[" * 70 + "]" * 70
    for media in ("application/json", "text/plain"):
        with pytest.raises(Unprocessable, match="nested deeper"):
            calling(lambda request: Event(request.json()))(
                Request(f'{{"a": {deep}}}'.encode("utf-16"), {"content-type": media})
            )


# -------------------------------------------------------------------- which item is wrong


def refusing(request: Request) -> Event[Any]:
    data = request.json(dict[str, int])
    if data["n"] < 0:
        raise Reject("n is below 0")
    return Event(data)


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ('{"n": -1}', "item 2: n is below 0"),
        ('{"n": "x"}', "item 2: the body does not fit: Expected `int`"),
        ("[]", "item 2: the body does not fit: Expected `object`"),
        (f'{{"n": 1, "deep": {"[" * 70}{"]" * 70}}}', "item 2: an event is nested deeper"),
        (f'{{"n": 1, "long": "{"x" * 300}"}}', "item 2: an event of 320 bytes is over the limit"),
    ],
    ids=["reject", "model", "kind", "depth", "size"],
)
def test_array_refusal_names_the_item(item: str, says: str) -> None:
    extract = calling(refusing, Limits(event_bytes=300))
    for media, body in (
        ("application/json", f'[{{"n": 1}}, {item}, {{"n": 2}}]'),
        ("application/x-ndjson", f'{{"n": 1}}\n{item}\n{{"n": 2}}'),
    ):
        with pytest.raises(RequestError) as refused:
            extract(Request(body.encode(), {"content-type": media}))
        assert str(refused.value).startswith(says)
    with pytest.raises(RequestError) as refused:
        extract(Request(item.encode(), {"content-type": "application/x-ndjson"}))
    assert not str(refused.value).startswith("item")
