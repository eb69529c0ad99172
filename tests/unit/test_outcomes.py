"""What became of jobs, as events."""

import msgspec

from blacksmith_dagster import Batch, Cause, Event
from blacksmith_dagster.scheduler.decoding import Decoded
from blacksmith_dagster.scheduler.outcomes import decide, outcomes
from blacksmith_dagster.store.records import Load, NewEvent, NewJob
from tests.support.loads import (
    NOW,
    app,
    cancelled,
    decode,
    flights,
    load,
    reported,
    reported_again,
    row,
)

LAST = flights.retry.max_attempts
REPORTED = [NewJob(reported.path)]


def outcomes_of(
    claimed: Load,
    *,
    fail: dict[int, str] | None = None,
    discard: dict[int, str] | None = None,
    raised: Exception | None = None,
) -> list[NewEvent]:
    decoded = decode(claimed) if claimed.discard_reason is None else Decoded((), {})
    batch = Batch(flights.path, decoded.jobs)
    for index, reason in (fail or {}).items():
        batch.fail(batch[index], reason)
    for index, reason in (discard or {}).items():
        batch.discard(batch[index], reason)
    decision = decide(claimed, decoded, batch.verdicts, raised, flights, NOW)
    return outcomes(app, flights, claimed, decoded, decision, NOW)


def cause(event: NewEvent) -> Cause:
    return msgspec.json.decode(event.payload, type=Cause)


def names_and_parents(events: list[NewEvent]) -> list[tuple[str, str | int | None]]:
    return [(event.event_type.rpartition(".")[2], event.parent) for event in events]


def test_each_jobs_end_is_an_event_whose_parent_is_the_jobs() -> None:
    events = outcomes_of(load([row(1), row(2), row(3)]), fail={1: "later"}, discard={2: "never"})
    assert names_and_parents(events) == [
        ("succeeded", "evt_1"),
        ("failed", "evt_2"),
        ("discarded", "evt_3"),
    ]
    assert [list(event.jobs) for event in events] == [REPORTED, REPORTED, REPORTED]
    assert [cause(event) for event in events] == [
        Cause("succeeded", None, 1, 9, NOW),
        Cause("failed", "later", 1, 9, NOW),
        Cause("discarded", "never", 1, 9, NOW),
    ]


def test_a_whole_failed_attempt_is_an_event_per_job() -> None:
    events = outcomes_of(load([row(1), row(2)], attempt=2), raised=OSError("down"))
    assert names_and_parents(events) == [("failed", "evt_1"), ("failed", "evt_2")]
    assert cause(events[0]) == Cause("failed", "OSError: down", 2, 9, NOW)


def test_the_last_failed_attempt_is_both_failed_and_discarded() -> None:
    events = outcomes_of(
        load([row(1), row(3)], attempt=LAST), fail={0: "again"}, discard={1: "never"}
    )
    assert names_and_parents(events) == [
        ("failed", "evt_1"),
        ("discarded", "evt_1"),
        ("discarded", "evt_3"),
    ]


def test_when_is_asked_with_what_the_job_was_given() -> None:
    events = outcomes_of(load([row(1), row(2)]), discard={0: "odd", 1: "even"})
    assert names_and_parents(events) == [("discarded", "evt_1")]  # its delay is odd


def test_when_that_raises_makes_the_job() -> None:
    # The transform returned a str, which has no delay.
    (event,) = outcomes_of(load([row(1, event_type=cancelled.path)]), discard={0: "never"})
    (job,) = event.jobs
    assert job.when_error == "AttributeError: 'str' object has no attribute 'delay'"


def test_a_job_whose_data_cannot_be_made_is_reported_too() -> None:
    broken = row(1, '{"no":"id"}', event_type=cancelled.path)
    failed, discarded = outcomes_of(load([broken], attempt=LAST))
    assert list(failed.jobs) == REPORTED
    skipped = "`when` was skipped, as the job's data is not available: KeyError: 'id'"
    assert discarded.jobs[0].when_error == skipped


def test_a_load_to_discard_runs_no_users_code() -> None:
    claimed = load([row(1)], discard_reason="lost 3 times", lost_loads=3)
    (event,) = outcomes_of(claimed)
    assert event.jobs[0].when_error is not None
    assert cause(event) == Cause("discarded", "lost 3 times", 3, 9, NOW)


def test_what_nobody_receives_is_not_made() -> None:
    claimed = load([row(1)])
    decoded = decode(claimed)
    decision = decide(claimed, decoded, {}, OSError(), flights, NOW)
    assert outcomes(app, reported_again, claimed, decoded, decision, NOW) == []
    # Only the .discarded of `reported` is received.
    assert outcomes(app, reported, claimed, decoded, decision, NOW) == []


def test_the_outcomes_event_has_no_id_of_its_own_yet() -> None:
    asked: list[Event[object]] = []

    def when(event: Event[object]) -> bool:
        asked.append(event)
        return False

    flow = reported.flows[flights.discarded.path]
    before, flow.when = flow.when, when
    try:
        assert outcomes_of(load([row(1)]), discard={0: "never"}) == []
    finally:
        flow.when = before
    assert (asked[0].id, asked[0].received_at, asked[0].parent) == (None, None, "evt_1")
    assert asked[0].key == "k1"
