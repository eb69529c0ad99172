"""The promises of every store about loads: claims, fencing tokens, lanes, retries, lost loads, halving,
fairness."""

from datetime import UTC, datetime

import pytest

from blacksmith_dagster.errors import FencedOut, NotFound, UsageError
from blacksmith_dagster.pipeline.event import JobResult
from blacksmith_dagster.store import Store
from blacksmith_dagster.store.records import (
    Deviation,
    FencingToken,
    Lane,
    Load,
    LoadVerdict,
    NewEvent,
    NewJob,
)
from tests.support.pipelines.store import (
    FLIGHTS,
    SEATS,
    claimed,
    event_ids,
    ids_of,
    ingest_events,
    take_over,
)
from tests.support.waiting import until

RAISED = LoadVerdict(raised="down")


def failed(load: Load, *numbers: int, delay: float = 0.0) -> LoadVerdict:
    """The jobs of a load at these indexes failed, the others succeeded."""
    return LoadVerdict(
        [Deviation(load.rows[n].seq, JobResult.FAILED, f"bad {n}", delay) for n in numbers]
    )


def drain(store: Store, token: FencingToken, max_attempts: int = 3) -> list[list[str]]:
    """Load everything that is due, successfully; returns the ids of each load."""
    loaded = []
    while load := store.loads.claim(token, 1000, max_attempts):
        loaded.append(ids_of(load))
        store.loads.record(load, LoadVerdict())
    return loaded


# ------------------------------------------------------------------------------------ first loads


def test_jobs_are_loaded_once_in_the_order_of_the_log(store: Store) -> None:
    ids = ingest_events(store, 25)
    ingest_events(store, 5, to=(SEATS,))
    assert drain(store, take_over(store)) == [ids]
    token = take_over(store)
    assert store.loads.claim(token, 10, 3) is None
    more = ingest_events(store, 12, to=(SEATS, FLIGHTS))
    first, second = claimed(store, token, limit=10), None
    store.loads.record(first, LoadVerdict())
    second = claimed(store, token, limit=10)
    assert ids_of(first) + ids_of(second) == more
    assert first.first_claim
    assert first.attempt == 1


def test_a_claim_says_what_a_job_needs(store: Store) -> None:
    event = NewEvent(
        "airport/departed",
        '{"n":1}',
        [NewJob(FLIGHTS, when_error="ValueError: no")],
        context="{}",
        version="v",
        key="k",
        digest=b"d",
    )
    [[event_id]] = event_ids(store.log.append([[event]]))
    load = claimed(store, take_over(store))
    [row] = load.rows
    assert (row.id, row.event_type, row.payload) == (event_id, "airport/departed", '{"n":1}')
    assert (row.key, row.context, row.version) == ("k", "{}", "v")
    assert row.when_error == "ValueError: no"
    assert row.received_at == store.log.event(event_id).received_at


def test_a_lane_has_one_open_load(store: Store) -> None:
    ingest_events(store, 2)
    token = take_over(store)
    load = claimed(store, token, limit=1)
    with pytest.raises(UsageError, match=f"load {load.id} is still open"):
        store.loads.claim(token, 1, 3)
    store.loads.record(load, LoadVerdict())
    claimed(store, token)


def test_a_released_load_counts_nothing(store: Store) -> None:
    ids = ingest_events(store, 3)
    token = take_over(store)
    load = claimed(store, token)
    store.loads.release(load)
    again = claimed(store, token)
    assert ids_of(again) == ids
    assert (again.attempt, again.lost_loads) == (1, 0)
    with pytest.raises(FencedOut):
        store.loads.record(load, LoadVerdict())
    store.loads.record(again, LoadVerdict())
    assert store.counts.of(FLIGHTS).succeeded == 3


# ------------------------------------------------------------------------------ fencing tokens


def test_a_stale_loader_is_fenced(store: Store) -> None:
    ingest_events(store, 2)
    stale = take_over(store, "one")
    load = claimed(store, stale, limit=1)
    fresh = take_over(store, "two")
    for late in (
        lambda: store.loads.claim(stale, 1, 3),
        lambda: store.loads.record(load, LoadVerdict()),
        lambda: store.loads.release(load),
        lambda: store.loads.abandon(load, "late"),
        lambda: store.loads.claim_for_discard(stale, "late", 1),
    ):
        with pytest.raises(FencedOut, match="two has taken over"):
            late()
    assert store.counts.of(FLIGHTS).succeeded == 0
    assert len(drain(store, fresh)) == 2


def test_a_stale_process_cannot_evict_the_holder(store: Store) -> None:
    """It lost its lock between reading the fencing token and raising it: its take-over is rejected."""
    take_over(store, "stale")
    holder: list[FencingToken] = []

    def lost_meanwhile() -> bool:
        if not holder:
            holder.append(take_over(store, "rightful"))
            return True
        return False

    with pytest.raises(FencedOut, match="lock was lost"):
        store.loads.take_over(FLIGHTS, Lane.LOAD, "stale", lost_meanwhile)
    ingest_events(store, 1)
    assert drain(store, holder[0])


def test_lanes_do_not_disturb_each_other(store: Store) -> None:
    ingest_events(store, 2)
    loading = take_over(store, "loader")
    load = claimed(store, loading)
    take_over(store, "operator", Lane.DISCARD)
    take_over(store, "other", to=SEATS)
    store.loads.record(load, LoadVerdict())
    assert store.counts.of(FLIGHTS).succeeded == 2


def test_an_unknown_destination_event_is_reported(store: Store) -> None:
    with pytest.raises(NotFound, match="warehouse/flights"):
        take_over(store, to="warehouse/gates")


# ------------------------------------------------------------------------------------ retries


def test_a_failed_job_is_tried_again_without_the_others(store: Store) -> None:
    ids = ingest_events(store, 5)
    token = take_over(store)
    load = claimed(store, token)
    store.loads.record(load, failed(load, 1, 3))
    again = claimed(store, token)
    assert ids_of(again) == [ids[1], ids[3]]
    assert (again.attempt, again.first_claim) == (2, False)
    store.loads.record(again, failed(again, 1))
    last = claimed(store, token)
    assert ids_of(last) == [ids[3]]
    assert last.attempt == 3


def test_a_retry_waits_until_it_is_due(store: Store) -> None:
    ingest_events(store, 3)
    token = take_over(store)
    load = claimed(store, token)
    store.loads.record(load, failed(load, 0, 1, delay=3600.0))
    assert store.loads.claim(token, 10, 3) is None
    assert store.counts.of(FLIGHTS).retrying == 2


def test_jobs_of_one_load_can_be_due_at_different_times(store: Store) -> None:
    ids = ingest_events(store, 3)
    token = take_over(store)
    load = claimed(store, token)
    now, later = failed(load, 0, 2), failed(load, 1, delay=3600.0)
    store.loads.record(load, LoadVerdict([*now.deviations, *later.deviations]))
    assert ids_of(claimed(store, token)) == [ids[0], ids[2]]


def test_retries_of_many_loads_are_claimed_together(store: Store) -> None:
    ids = ingest_events(store, 6)
    token = take_over(store)
    for _ in range(3):
        load = store.loads.claim(token, 2, 3)
        assert load is not None
        store.loads.record(load, failed(load, 0, delay=0.3))
    _wait_until_all_are_due(store)
    again = claimed(store, token)
    assert ids_of(again) == [ids[0], ids[2], ids[4]]
    store.loads.record(again, LoadVerdict())
    assert store.counts.of(FLIGHTS).succeeded == 6


def test_a_smaller_batch_splits_a_job_group(store: Store) -> None:
    ids = ingest_events(store, 5)
    token = take_over(store)
    store.loads.record(claimed(store, token), RAISED)
    parts = []
    while load := store.loads.claim(token, 2, 3):
        parts.append(ids_of(load))
        store.loads.record(load, LoadVerdict())
    assert parts == [ids[:2], ids[2:4], ids[4:]]


def test_a_discarded_job_never_runs_again(store: Store) -> None:
    ingest_events(store, 3)
    token = take_over(store)
    load = claimed(store, token)
    store.loads.record(
        load, LoadVerdict([Deviation(load.rows[0].seq, JobResult.DISCARDED, "never")])
    )
    assert store.loads.claim(token, 10, 3) is None
    assert store.counts.of(FLIGHTS).discarded == 1


# ------------------------------------------------------------------------------------ whole batches


def test_an_outage_does_not_halve_the_group(store: Store) -> None:
    """Nothing has succeeded since it raised: the destination is down, the batch is not bad."""
    ids = ingest_events(store, 8)
    token = take_over(store)
    for attempt in (1, 2, 3):
        load = claimed(store, token, max_attempts=9)
        assert (ids_of(load), load.attempt) == (ids, attempt)
        store.loads.record(load, RAISED)


def test_a_job_group_that_raised_is_halved_once_others_succeed(store: Store) -> None:
    ids = ingest_events(store, 4)
    token = take_over(store)
    store.loads.record(claimed(store, token), RAISED)
    retries = []
    while store.counts.of(FLIGHTS).retrying:
        load = claimed(store, token, max_attempts=9)
        if load.first_claim:
            store.loads.record(load, LoadVerdict())
            continue
        retries.append(ids_of(load))
        poisoned = ids[2] in retries[-1]
        store.loads.record(load, RAISED if poisoned and len(load.rows) > 1 else LoadVerdict())
        ingest_events(store, 1)
    assert retries == [ids, ids[:2], ids[2:], [ids[2]], [ids[3]]]


def test_the_last_attempt_is_isolated(store: Store) -> None:
    ids = ingest_events(store, 4)
    token = take_over(store)
    store.loads.record(claimed(store, token), LoadVerdict(raised="down", isolated=True))
    seen = []
    while load := store.loads.claim(token, 1000, 2):
        seen.append((ids_of(load), load.attempt, load.isolated))
        bad = load.rows[0].id == ids[1]
        poison = [Deviation(load.rows[0].seq, JobResult.DISCARDED, "poison")] if bad else []
        store.loads.record(load, LoadVerdict(poison))
    assert seen == [([event_id], 2, True) for event_id in ids]
    counts = store.counts.of(FLIGHTS)
    assert (counts.succeeded, counts.discarded) == (3, 1)


def test_jobs_that_were_not_decided_when_a_load_raised_are_isolated(store: Store) -> None:
    ids = ingest_events(store, 4)
    token = take_over(store)
    load = claimed(store, token)
    undecided = [
        Deviation(load.rows[n].seq, JobResult.FAILED, "down", 0.0, isolated=True) for n in (1, 3)
    ]
    store.loads.record(
        load, LoadVerdict([Deviation(load.rows[0].seq, JobResult.DISCARDED, "no"), *undecided])
    )
    seen = []
    while retry := store.loads.claim(token, 1000, 2):
        seen.append((ids_of(retry), retry.attempt, retry.isolated))
        store.loads.record(retry, LoadVerdict())
    assert seen == [([ids[1]], 2, True), ([ids[3]], 2, True)]


def test_ten_consecutive_failures_discard_the_rest(store: Store) -> None:
    ingest_events(store, 15)
    token = take_over(store)
    store.loads.record(claimed(store, token), LoadVerdict(raised="down", isolated=True))
    isolated = 0
    while load := store.loads.claim(token, 1000, 2):
        gone = [Deviation(row.seq, JobResult.DISCARDED, "down") for row in load.rows]
        store.loads.record(load, LoadVerdict(gone))
        if load.discard_reason is None:
            isolated += 1
        else:
            assert "10 isolated jobs of its group failed in a row" in load.discard_reason
            assert len(load.rows) == 5
    assert isolated == 10
    assert store.counts.of(FLIGHTS).discarded == 15


# ------------------------------------------------------------------------------------ lost loads


def test_a_lost_load_is_due_again_at_once_and_counts_no_attempt(store: Store) -> None:
    ids = ingest_events(store, 3)
    claimed(store, take_over(store, "one"))
    again = claimed(store, take_over(store, "two"))
    assert ids_of(again) == ids
    assert (again.attempt, again.lost_loads) == (1, 1)


def test_an_abandoned_load_rejects_its_late_result(store: Store) -> None:
    ingest_events(store, 3)
    token = take_over(store)
    load = claimed(store, token)
    store.loads.abandon(load, "ran past its time-out")
    with pytest.raises(FencedOut, match="no longer open"):
        store.loads.record(load, LoadVerdict())
    assert claimed(store, token).lost_loads == 1


def test_what_kills_its_loader_is_found_and_discarded(store: Store) -> None:
    """Halved after three lost loads, and after each further one; only the killer is discarded."""
    ids = ingest_events(store, 100)
    killer = ids[37]
    lost = 0
    discarded: list[str] = []
    for _ in range(60):
        token = take_over(store)
        while load := store.loads.claim(token, 1000, 3):
            if load.discard_reason is not None:
                discarded += ids_of(load)
                gone = [
                    Deviation(row.seq, JobResult.DISCARDED, load.discard_reason)
                    for row in load.rows
                ]
                store.loads.record(load, LoadVerdict(gone))
            elif killer in ids_of(load):
                lost += 1
                break
            else:
                store.loads.record(load, LoadVerdict())
        else:
            break
    assert discarded == [killer]
    assert store.counts.of(FLIGHTS).succeeded == 99
    assert lost <= 3 + 7 + 3, "three for the batch, one for each halving, three for the job"


def test_lost_loads_do_not_use_up_attempts(store: Store) -> None:
    ingest_events(store, 1)
    token = take_over(store)
    store.loads.record(claimed(store, token), RAISED)
    claimed(store, token)
    load = claimed(store, take_over(store))
    assert (load.attempt, load.lost_loads) == (2, 1)


# ------------------------------------------------------------------------------------ fairness


def test_new_jobs_are_not_starved_by_retries(store: Store) -> None:
    """With twenty job groups due at once, every second claim takes new jobs."""
    token = take_over(store)
    for _ in range(20):
        ingest_events(store, 2)
        store.loads.record(claimed(store, token), LoadVerdict(raised="down", delay=0.5))
    _wait_until_all_are_due(store)
    ingest_events(store, 6)
    claims = []
    for _ in range(12):
        load = claimed(store, token, limit=2)
        claims.append("new" if load.first_claim else "due")
        store.loads.record(load, LoadVerdict())
    assert claims[:6] in (["due", "new"] * 3, ["new", "due"] * 3)


# ------------------------------------------------------------------------------------ outcomes


def test_received_outcomes_are_kept_in_the_transaction_that_decides_them(store: Store) -> None:
    [event] = ingest_events(store, 1)
    token = take_over(store)
    load = claimed(store, token)
    outcome = NewEvent(
        "warehouse/flights.discarded",
        '{"error":"x"}',
        [NewJob("warehouse/undeliverable")],
        parent=event,
    )
    verdict = LoadVerdict(
        [Deviation(load.rows[0].seq, JobResult.DISCARDED, "x")], outcomes=[outcome]
    )
    take_over(store, "another")
    with pytest.raises(FencedOut):
        store.loads.record(load, verdict)
    assert store.counts.of("warehouse/undeliverable").awaiting == 0
    token = take_over(store)
    load = claimed(store, token)
    store.loads.record(load, verdict)
    received = claimed(store, take_over(store, to="warehouse/undeliverable"))
    [row] = received.rows
    assert (row.parent, row.payload) == (event, '{"error":"x"}')
    assert store.log.originals([event])[event].payload == '{"n":0}'


# ------------------------------------------------------------------------------------ discarding


def test_chosen_jobs_are_claimed_for_discard_out_of_their_group(store: Store) -> None:
    ids = ingest_events(store, 5)
    token = take_over(store)
    store.loads.record(claimed(store, token), LoadVerdict(raised="down", delay=0.0))
    operator = take_over(store, "operator", Lane.DISCARD)
    assert store.loads.mark_for_discard(operator, [ids[1], ids[4], ids[1]], "not wanted") == 2
    load = store.loads.claim(operator, 10, 3)
    assert load is not None
    assert (ids_of(load), load.discard_reason) == ([ids[1], ids[4]], "not wanted")
    store.loads.record(
        load,
        LoadVerdict([Deviation(row.seq, JobResult.DISCARDED, "not wanted") for row in load.rows]),
    )
    assert store.loads.mark_for_discard(operator, ids[1:2], "again") == 0
    assert store.loads.claim(operator, 10, 3) is None
    assert [event_id for part in drain(store, token) for event_id in part] == [
        ids[0],
        ids[2],
        ids[3],
    ]
    states = [step.state for step in store.history.transitions(ids[4])]
    assert states == ["acknowledged", "awaiting", "executing", "failed", "executing", "discarded"]


def test_a_listing_is_claimed_for_discard_as_a_range_is(store: Store) -> None:
    ids = ingest_events(store, 6)
    token = take_over(store)
    load = claimed(store, token)
    store.loads.record(load, failed(load, 1, 3, 5, delay=3600.0))
    operator = take_over(store, "operator", Lane.DISCARD)
    assert store.loads.mark_for_discard(operator, [ids[3], ids[2]], "not wanted") == 1
    gone = store.loads.claim(operator, 10, 3)
    assert gone is not None
    assert ids_of(gone) == [ids[3]]
    assert store.counts.of(FLIGHTS).retrying == 2


def test_what_an_operator_has_marked_is_discarded_whoever_claims_it(store: Store) -> None:
    """The operator may die after marking, or while a load of the marked jobs is open."""
    ids = ingest_events(store, 4)
    token = take_over(store)
    store.loads.record(claimed(store, token), LoadVerdict(raised="down", delay=3600.0))
    operator = take_over(store, "operator", Lane.DISCARD)
    assert store.loads.mark_for_discard(operator, ids[:3], "not wanted") == 3
    assert store.loads.claim(operator, 2, 3) is not None
    take_over(store, "another operator", Lane.DISCARD)  # the load was lost
    assert store.counts.next_due(FLIGHTS) == 0
    gone: set[str] = set()
    while load := store.loads.claim(token, 10, 3):
        assert load.discard_reason == "not wanted"
        gone |= set(ids_of(load))
        verdict = [Deviation(row.seq, JobResult.DISCARDED, "not wanted") for row in load.rows]
        store.loads.record(load, LoadVerdict(verdict))
    assert gone == set(ids[:3])
    counts = store.counts.of(FLIGHTS)
    assert (counts.retrying, counts.discarded) == (1, 3)


def test_only_the_load_lane_claims_for_discard_all_that_waits(store: Store) -> None:
    ingest_events(store, 1)
    with pytest.raises(UsageError, match="load lane"):
        store.loads.claim_for_discard(take_over(store, lane=Lane.DISCARD), "all", 10)


def _wait_until_all_are_due(store: Store) -> None:
    until(
        lambda: all(
            job.due_at <= datetime.now(UTC) for job in store.history.jobs("retrying") if job.due_at
        )
    )
