"""`testing.run`: a pipeline's jobs, with nothing else running."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from blacksmith_dagster import (
    HTTP,
    Batch,
    Blacksmith,
    Cron,
    Destination,
    Event,
    Flow,
    Poll,
    Reject,
    Reply,
    Request,
    RetryPolicy,
    Source,
)
from blacksmith_dagster.errors import KeyReused, RequestError, UsageError
from blacksmith_dagster.testing import Attempt, run


class Flight(msgspec.Struct):
    id: str
    delay: int = 0


airport = Source("airport")


@airport.event(HTTP("/airport/departures"))
def departed(request: Request) -> Event[Flight] | Reply:
    if "challenge" in request.query:
        return Reply(200, request.query["challenge"])
    flight = request.json(Flight)
    if not flight.id:
        raise Reject("no id")
    return Event(flight, key=flight.id, context={"agent": request.headers.get("user-agent")})


cancelled = airport.accept("cancelled", model=Flight)
lake = Destination("lake")


@lake.event(receives=[departed, Flow(cancelled, transform=lambda event: event.data.id)])
def everything(batch: Batch[Any]) -> None: ...


@lake.event(receives=Flow(departed, when=lambda event: 100 // event.data.delay < 1))
def late(batch: Batch[Any]) -> None: ...


@lake.event(receives=everything.discarded)
def undeliverable(batch: Batch[Any]) -> None: ...


app = Blacksmith(sources=[airport], destinations=[lake])


def test_events_are_extracted_asked_for_and_transformed() -> None:
    request = Request.of({"id": "UA1", "delay": 200}, headers={"User-Agent": "tower"})
    jobs = run(
        app,
        [
            (departed, request),
            (cancelled, {"id": "AA2"}),
            (departed, Event(Flight("DL3", 5), version="v2")),
            (departed, Request(b"", query={"challenge": "x"})),
        ],
    )
    assert [job.data for job in jobs["lake/everything"]] == [
        Flight("UA1", 200),
        "AA2",
        Flight("DL3", 5),
    ]
    assert [job.event.id for job in jobs["lake/late"]] == ["evt_1"]
    assert jobs["lake/undeliverable"] == []
    (job,) = jobs["lake/late"]
    assert (job.event.key, job.event.context, job.attempt) == ("UA1", {"agent": "tower"}, 1)
    assert job.key != job.event.id
    assert job.event.received_at is not None


def test_data_goes_through_json_as_it_does_in_the_store() -> None:
    sent = [(cancelled, Event({"id": "UA1"})), (cancelled, {"id": "UA2"})]
    jobs = run(app, sent)["lake/everything"]
    assert [job.event.data for job in jobs] == [Flight("UA1"), Flight("UA2")]


def test_when_is_asked_as_at_ingest_with_what_the_function_returned() -> None:
    asked: list[Event[Any]] = []
    site = Source("site")

    @site.event(HTTP("/clicked"))
    def clicked(request: Request) -> Event[Flight]:
        return Event(request.json(), key="k")  # a dict, until it is read again

    def when(event: Event[Any]) -> bool:
        asked.append(event)
        return bool(event.data["delay"] > 1)

    pond = Destination("pond")

    @pond.event(receives=Flow(clicked, when=when))
    def fish(batch: Batch[Any]) -> None: ...

    small = Blacksmith(sources=[site], destinations=[pond])
    data = {"id": "UA1", "delay": 3}
    for given in (data, Event(data, key="k")):
        (job,) = run(small, [(clicked, given)])["pond/fish"]
        assert job.data == Flight("UA1", 3)
    assert asked == [Event(data, key="k")] * 2  # once each, with no id and no received_at yet


def test_a_repeated_key_is_the_same_event() -> None:
    again = Request.of([{"id": "a"}, {"id": "b"}], headers={"Idempotency-Key": "once"})
    jobs = run(app, [(departed, {"id": "UA1", "delay": 3})] * 2 + [(cancelled, again)] * 2)
    assert [job.event.id for job in jobs["lake/everything"]] == ["evt_1", "evt_2", "evt_3"]
    other = (departed, {"id": "UA1", "delay": 4})
    with pytest.raises(KeyReused, match="another body"):
        run(app, [(departed, {"id": "UA1", "delay": 3}), other])


def test_an_array_is_an_event_an_item() -> None:
    jobs = run(app, [(cancelled, [{"id": "a"}, {"id": "b"}])])
    assert [job.data for job in jobs["lake/everything"]] == ["a", "b"]


def test_what_the_pipeline_raises_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        run(app, [(departed, {"id": "UA1", "delay": 0})])
    with pytest.raises(Reject, match="no id"):
        run(app, [(departed, {"id": ""})])
    with pytest.raises(RequestError, match="does not fit"):
        run(app, [(cancelled, {"id": 1})])


def test_a_source_event_of_another_application_is_rejected() -> None:
    with pytest.raises(UsageError, match="add its source"):
        run(app, [(Source("site").accept("clicked"), {})])


def test_a_function_is_tested_by_calling_it() -> None:
    loaded: list[Any] = []

    pond = Destination("pond")

    @pond.event(receives=cancelled)
    def fish(batch: Batch[Flight]) -> None:
        loaded.extend(job.data.id for job in batch)

    small = Blacksmith(sources=[airport], destinations=[pond])
    jobs = run(small, [(cancelled, {"id": "AA2"})])["pond/fish"]
    fish(Batch("pond/fish", jobs))
    assert loaded == ["AA2"]


def test_a_poll_is_an_event_for_each_that_its_function_returns() -> None:
    tower = Source("tower")

    @tower.event(Cron())
    def seen(poll: Poll) -> list[Event[Flight]]:
        return [Event(Flight(id=str(number), delay=0)) for number in range(poll.cursor)]

    pond = Destination("pond")

    @pond.event(receives=seen)
    def fish(batch: Batch[Flight]) -> None: ...

    small = Blacksmith(sources=[tower], destinations=[pond])
    jobs = run(small, [(seen, Poll(cursor=2))])["pond/fish"]
    assert [job.data.id for job in jobs] == ["0", "1"]


# ------------------------------------------------------------------------------------ deliver


def _delivering(
    function: Callable[[Batch[Any]], None], causes: list[Any], **properties: Any
) -> Blacksmith:
    """An application whose `pond/fish` runs a function, and `pond/gone` keeps what is discarded."""
    pond = Destination("pond", retry=RetryPolicy(max_retries=2, delay="1h"))
    fish = pond.event(receives=cancelled, name="fish", **properties)(function)

    @pond.event(receives=fish.discarded)
    def gone(batch: Batch[Any]) -> None:
        for job in batch:
            assert job.cause is not None
            causes.append((job.data.id, job.cause.error, job.cause.attempts))

    return Blacksmith(sources=[airport], destinations=[pond])


def _told(attempts: list[Attempt]) -> list[tuple[Any, str, int]]:
    jobs = [attempt.job for attempt in attempts]
    ids = [job.data.id for job in jobs if job is not None]
    assert len(ids) == len(attempts)
    return [(id_, one.error, one.number) for id_, one in zip(ids, attempts, strict=True)]


def test_deliver_retries_at_once_and_discards_after_the_last_attempt() -> None:
    def fish(batch: Batch[Flight]) -> None:
        for job in batch:
            if job.data.id == "busy" and job.attempt == 1:
                batch.fail(job, "come again")
            elif job.data.id == "down":
                batch.fail(job, "no route")
            elif job.data.id == "bad":
                batch.discard(job, "no such flight")

    causes: list[Any] = []
    events = [(cancelled, {"id": id_}) for id_ in ("fine", "busy", "down", "bad")]
    result = run(_delivering(fish, causes), events, deliver=True)
    assert [job.data.id for job in result.delivered["pond/fish"]] == ["fine", "busy"]
    failed = [("busy", "come again", 1), ("down", "no route", 1), ("down", "no route", 2)]
    assert sorted(_told(result.failed["pond/fish"])) == failed
    given_up = [("bad", "no such flight", 1), ("down", "no route", 3)]
    assert sorted(_told(result.discarded["pond/fish"])) == sorted(causes) == given_up
    assert len(result.delivered["pond/gone"]) == 2


def test_deliver_isolates_the_job_that_raises() -> None:
    def fish(batch: Batch[Flight]) -> None:
        if any(job.data.id == "bad" for job in batch):
            raise ValueError("bad fish")

    events = [(cancelled, {"id": id_}) for id_ in ("a", "bad", "b")]
    result = run(_delivering(fish, []), events, deliver=True)
    assert {job.data.id for job in result.delivered["pond/fish"]} == {"a", "b"}
    assert _told(result.discarded["pond/fish"]) == [("bad", "ValueError: bad fish", 3)]


def test_deliver_fails_a_job_whose_transform_raises() -> None:
    pond = Destination("pond", retry=RetryPolicy(max_retries=1))

    @pond.event(receives=Flow(cancelled, transform=lambda event: 1 // event.data.delay))
    def fish(batch: Batch[int]) -> None: ...

    small = Blacksmith(sources=[airport], destinations=[pond])
    result = run(
        small, [(cancelled, {"id": "a"}), (cancelled, {"id": "b", "delay": 1})], deliver=True
    )
    assert [job.data for job in result.delivered["pond/fish"]] == [1]
    [failed], [discarded] = result.failed["pond/fish"], result.discarded["pond/fish"]
    assert failed.job is None
    assert failed.event_id == discarded.event_id
    assert "ZeroDivisionError" in failed.error


def test_deliver_stores_a_repeated_key_once() -> None:
    once = [(departed, {"id": "UA1", "delay": 3})]
    assert len(run(app, once * 2, deliver=True).delivered["lake/everything"]) == 1
    with pytest.raises(KeyReused, match="another body"):
        run(app, [*once, (departed, {"id": "UA1", "delay": 4})], deliver=True)
