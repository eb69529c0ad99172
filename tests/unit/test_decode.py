"""From the rows of the log to jobs."""

from collections.abc import Sequence
from typing import Any

from blacksmith_dagster import Batch, Blacksmith, Cause, Destination, Event, Flow, Job, Source
from blacksmith_dagster.pipeline.event import JobResult
from blacksmith_dagster.scheduler.decoding import JobDecoder
from blacksmith_dagster.store.records import JobRow
from tests.support.loads import (
    NOW,
    Flight,
    app,
    cancelled,
    caused,
    decode,
    flights,
    load,
    reported,
    reported_again,
    row,
)


def test_a_job_holds_the_event_as_it_was_kept() -> None:
    decoded = decode(load([row(7, context='{"agent":"x"}', parent="evt_3")], attempt=2))
    flight = Flight("f7", 7)
    event = Event(flight, "k7", NOW, {"agent": "x"}, "v1", "evt_7", NOW, "evt_3")
    assert decoded.jobs == [Job(flight, event, "evt_7-2", 2)]
    assert not decoded.failures


def test_transform_makes_the_data_and_leaves_the_event() -> None:
    (job,) = decode(load([row(1, event_type=cancelled.path)])).jobs
    assert job.data == "F1"
    assert job.event.data == {"id": "f1", "delay": 1}


def test_transform_that_raises_fails_its_job() -> None:
    rows = [
        row(1, event_type=cancelled.path),
        row(2, '{"no":"id"}', event_type=cancelled.path),
        row(3),
    ]
    decoded = decode(load(rows))
    assert [job.key for job in decoded.jobs] == ["evt_1-2", "evt_3-2"]
    assert decoded.failures == {2: (JobResult.FAILED, "KeyError: 'id'")}


def test_data_that_does_not_fit_the_model_fails_its_job() -> None:
    decoded = decode(load([row(1, '{"id":1}'), row(2)]))
    assert [job.key for job in decoded.jobs] == ["evt_2-2"]
    assert "Expected `str`, got `int`" in decoded.failures[1].error


def test_an_event_type_that_is_no_longer_received_fails_with_the_fix() -> None:
    decoded = decode(load([row(1, event_type="airport/moved")]))
    assert decoded.failures[1].result is JobResult.FAILED
    assert "warehouse/flights does not receive airport/moved" in decoded.failures[1].error


def test_when_that_raises_keeps_the_job_and_is_asked_again() -> None:
    late, early = row(200, when_error="ZeroDivisionError"), row(100, when_error="ZeroDivisionError")
    assert decode(load([late])).failures == {200: (JobResult.FAILED, "ZeroDivisionError")}
    again = decode(load([late, early], attempt=2))
    assert [job.key for job in again.jobs] == ["evt_200-2"]
    assert again.failures == {
        100: (JobResult.DISCARDED, "the flow's when no longer wants this event")
    }

    broken = row(3, '{"id":"x","delay":null}', when_error="ZeroDivisionError")
    assert decode(load([broken], attempt=2)).failures[3].result is JobResult.FAILED


def originals(event: Any, rows: Sequence[JobRow], stored: dict[str, JobRow]) -> dict[str, JobRow]:
    def fetch(ids: Sequence[str]) -> dict[str, JobRow]:
        return {event_id: stored[event_id] for event_id in ids if event_id in stored}

    return dict(JobDecoder(app, event).originals(rows, fetch))


def test_an_outcomes_job_has_what_the_original_was_given_and_its_cause() -> None:
    stored = {"evt_1": row(1, event_type=cancelled.path), "evt_2": row(2)}
    rows = [
        row(5, caused(), event_type=flights.discarded.path, parent="evt_1"),
        row(6, caused("failed"), event_type=flights.failed.path, parent="evt_2"),
    ]
    parents = originals(reported, rows, stored)
    assert parents == stored
    first, second = JobDecoder(app, reported).decode(load(rows), parents).jobs
    assert first.data == "F1"
    assert (first.event.id, first.event.parent, first.event.key) == ("evt_5", "evt_1", "k1")
    assert first.cause == Cause("discarded", "no such airport", 4, 7, NOW)
    assert second.data == Flight("f2", 2)
    assert second.cause is not None
    assert second.cause.outcome == "failed"


def test_an_outcome_of_an_outcome_is_followed_to_its_beginning() -> None:
    stored = {
        "evt_1": row(1, event_type=cancelled.path),
        "evt_2": row(2, caused(), event_type=flights.discarded.path, parent="evt_1"),
    }
    rows = [row(9, caused(), event_type=reported.discarded.path, parent="evt_2")]
    parents = originals(reported_again, rows, stored)
    assert parents == stored
    (job,) = JobDecoder(app, reported_again).decode(load(rows), parents).jobs
    assert job.data == "F1"


def test_an_outcome_whose_event_is_gone_fails_with_the_fix() -> None:
    rows = [row(5, caused(), event_type=flights.discarded.path, parent="evt_1")]
    parents = originals(reported, rows, {})
    assert parents == {}
    decoded = JobDecoder(app, reported).decode(load(rows), parents)
    assert "evt_1" in decoded.failures[5].error
    assert "discard the job" in decoded.failures[5].error


def test_the_parent_of_a_source_event_is_not_fetched() -> None:
    assert originals(flights, [row(5, parent="evt_1")], {"evt_1": row(1)}) == {}


def test_an_error_is_kept_in_a_form_that_every_database_accepts() -> None:
    source = Source("site")
    clicked = source.accept("clicked")
    lake = Destination("lake")

    def broken(event: Event[Any]) -> str:
        raise ValueError("nul \0, surrogate \ud800, and " + "long " * 10_000)

    @lake.event(receives=Flow(clicked, transform=broken))
    def clicks(batch: Batch[str]) -> None: ...

    site = Blacksmith(sources=[source], destinations=[lake])
    decoded = JobDecoder(site, clicks).decode(load([row(1, event_type=clicked.path)]), {})
    error = decoded.failures[1].error
    assert error.startswith("ValueError: nul \\0, surrogate \\ud800, and long")
    assert len(error.encode()) < 4100
