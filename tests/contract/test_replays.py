"""The promises of every store about replays: their lane, windows, modes, histories, what they leave."""

from datetime import UTC, datetime, timedelta

import pytest

from blacksmith_dagster.errors import FencedOut, UsageError
from blacksmith_dagster.pipeline.event import JobResult
from blacksmith_dagster.store import Store
from blacksmith_dagster.store.records import (
    Deviation,
    FencingToken,
    Lane,
    LoadVerdict,
    ReplayMode,
    ReplayRequest,
    SelectedJob,
)
from tests.support.pipelines.store import (
    FLIGHTS,
    SEATS,
    claimed,
    departed,
    event_ids,
    ids_of,
    ingest_events,
    new_event,
    take_over,
)
from tests.support.replays import ALL, EVER, MISSING, NOW, candidates, drain, plan, replaying

FAILED = ReplayRequest(**EVER, modes=(ReplayMode.FAILED,))


def states(store: Store, request: ReplayRequest, to: str = FLIGHTS) -> dict[str, str]:
    return {event.id: event.state for event in candidates(store, request, to)}


def discard(store: Store, token: FencingToken) -> list[str]:
    """Claim everything that is due, and discard it."""
    load = claimed(store, token)
    discards = [Deviation(row.seq, JobResult.DISCARDED, f"bad {row.payload}") for row in load.rows]
    store.loads.record(load, LoadVerdict(discards))
    return ids_of(load)


def test_missing_jobs_are_made_and_never_move_the_load_lane(store: Store) -> None:
    old = ingest_events(store, 5, to=())
    new = ingest_events(store, 3, to=(SEATS,), start=5)
    token = replaying(store, SEATS)
    assert states(store, MISSING, SEATS) == dict.fromkeys(old, "missing")
    replay = plan(store, token, MISSING, batch=2)
    assert (replay.jobs, replay.created_jobs, replay.waiting) == (5, 5, 5)
    counts = store.counts.of(SEATS)
    assert (counts.awaiting, counts.retrying) == (3, 5)
    loads = drain(store, token)
    assert [ids_of(load) for load in loads] == [old]  # small job groups run together
    assert [row.payload for row in loads[0].rows] == [f'{{"n":{n}}}' for n in range(5)]
    assert store.replays.end(token, replay)
    assert store.counts.of(SEATS).succeeded == 5
    assert store.log.event(old[0]).destinations == [SEATS]
    # The load lane's position is unchanged: it loads the awaiting jobs, in log order, and no others.
    loading = take_over(store, "loader", to=SEATS)
    assert ids_of(claimed(store, loading)) == new
    assert states(store, MISSING, SEATS) == {}


def test_the_counts_are_right_after_maintenance(store: Store) -> None:
    ingest_events(store, 4, to=())
    token = replaying(store)
    plan(store, token, MISSING)
    store.maintain()
    counts = store.counts.of(FLIGHTS)
    assert (counts.awaiting, counts.retrying, counts.succeeded) == (0, 4, 0)
    drain(store, token)
    store.maintain()
    counts = store.counts.of(FLIGHTS)
    assert (counts.pending, counts.succeeded, counts.discarded) == (0, 4, 0)


def test_what_is_pending_or_executing_is_left_alone(store: Store) -> None:
    loading = take_over(store)
    done = ingest_events(store, 2)
    store.loads.record(claimed(store, loading), LoadVerdict())
    waits = ingest_events(store, 1)
    load = claimed(store, loading)
    store.loads.record(
        load, LoadVerdict([Deviation(load.rows[0].seq, JobResult.FAILED, "later", 3600.0)])
    )
    runs = ingest_events(store, 2)
    load = claimed(store, loading)
    awaits = ingest_events(store, 2)
    expected = dict.fromkeys(done, "succeeded") | dict.fromkeys(waits + runs + awaits, "pending")
    assert states(store, ALL) == expected
    token = replaying(store)
    plan(store, token, ALL)
    [replayed] = drain(store, token)
    assert ids_of(replayed) == done
    store.loads.record(load, LoadVerdict())  # the loader was not disturbed
    assert store.counts.of(FLIGHTS).succeeded == 4


def test_discarded_jobs_are_replayed(store: Store) -> None:
    ids = ingest_events(store, 3)
    discard(store, take_over(store))
    assert states(store, FAILED) == dict.fromkeys(ids, "discarded")
    assert {event.error for event in candidates(store, FAILED)} == {
        f'bad {{"n":{n}}}' for n in range(3)
    }
    token = replaying(store)
    plan(store, token, FAILED)
    counts = store.counts.of(FLIGHTS)
    assert (counts.discarded, counts.retrying) == (0, 3)
    assert store.history.jobs("discarded", FLIGHTS) == []
    assert {job.event_id for job in store.history.jobs("retrying", FLIGHTS)} == set(ids)
    [load] = drain(store, token)
    assert (ids_of(load), load.attempt) == (ids, 1)
    counts = store.counts.of(FLIGHTS)
    assert (counts.discarded, counts.succeeded) == (0, 3)
    assert [step.state for step in store.history.transitions(ids[0])] == [
        "acknowledged", "awaiting", "executing", "discarded", "awaiting", "executing", "succeeded",
    ]  # fmt: skip


def test_the_history_shows_the_replay(store: Store) -> None:
    [missing] = ingest_events(store, 1, to=())
    token = replaying(store)
    replay = plan(store, token, MISSING)
    *_, last = store.history.transitions(missing)
    assert (last.state, last.replay, last.due_at is None) == ("awaiting", replay.id, False)
    load = claimed(store, token)
    assert store.history.transitions(missing)[-1].state == "executing"
    assert [job.event_id for job in store.history.jobs("executing", FLIGHTS)] == [missing]
    store.loads.record(load, LoadVerdict())
    history = store.history.transitions(missing)
    assert [(step.state, step.replay, step.run) for step in history] == [
        ("acknowledged", replay.id, None),
        ("awaiting", replay.id, None),
        ("executing", replay.id, None),
        ("succeeded", replay.id, None),
    ]


def test_failed_jobs_are_retried_by_the_load_lane(store: Store) -> None:
    ids = ingest_events(store, 2, to=())
    token = replaying(store)
    replay = plan(store, token, MISSING)
    load = claimed(store, token)
    store.loads.record(
        load, LoadVerdict([Deviation(load.rows[1].seq, JobResult.FAILED, "not ready", 0.0)])
    )
    assert store.loads.claim(token, 100, 3) is None
    assert store.replays.end(token, replay)
    assert store.counts.next_due(FLIGHTS) == 0
    again = claimed(store, take_over(store))
    assert (ids_of(again), again.attempt, again.replay) == ([ids[1]], 2, replay.id)
    assert again.job_key == load.job_key
    assert store.history.transitions(ids[1])[-1].state == "executing"


def test_what_raised_as_a_whole_is_retried_by_the_load_lane(store: Store) -> None:
    ids = ingest_events(store, 3, to=())
    token = replaying(store)
    plan(store, token, MISSING)
    store.loads.record(claimed(store, token), LoadVerdict(raised="down"))
    assert store.loads.claim(token, 100, 3) is None
    again = claimed(store, take_over(store))
    assert (ids_of(again), again.attempt) == (ids, 2)


def test_what_a_killed_replay_had_begun_stays_in_its_lane(store: Store) -> None:
    ids = ingest_events(store, 3, to=())
    killed = replaying(store)
    plan(store, killed, MISSING)
    claimed(store, killed)
    assert store.loads.claim(take_over(store), 100, 3) is None
    token = replaying(store, holder="next")
    with pytest.raises(FencedOut):
        store.loads.claim(killed, 100, 3)
    replay = store.replays.begin(token, MISSING, [departed.path], "next run")
    assert (replay.run, replay.waiting, replay.planned_upto) == ("next run", 3, replay.upto)
    assert not store.replays.end(token, replay)
    [load] = drain(store, token)
    assert (ids_of(load), load.lost_loads) == (ids, 1)
    assert store.replays.end(token, replay)
    assert (
        store.replays.begin(token, MISSING, [departed.path], None).id != replay.id
    )  # that one has ended


def test_another_replay_leaves_what_waits_to_the_load_lane(store: Store) -> None:
    ids = ingest_events(store, 3, to=())
    token = replaying(store)
    cancelled = plan(store, token, MISSING)
    other = store.replays.begin(token, ALL, [departed.path], "other")
    assert store.loads.claim(token, 100, 3) is None
    load = claimed(store, take_over(store))
    assert ids_of(load) == ids
    assert {replay.id for replay in store.replays.newest(FLIGHTS)} == {cancelled.id, other.id}


def test_a_replay_keeps_the_keys_unless_new_ones_are_asked_for(store: Store) -> None:
    ingest_events(store, 2)
    first = claimed(store, loading := take_over(store))
    store.loads.record(first, LoadVerdict())
    token = replaying(store)
    plan(store, token, ALL)
    [again] = drain(store, token)
    assert again.job_key == first.job_key
    replay = plan(store, token, ReplayRequest(**EVER, modes=(ReplayMode.ALL,), new_key=True))
    load = claimed(store, token)
    assert load.job_key == f"{first.job_key}-{replay.id}"
    store.loads.record(
        load, LoadVerdict([Deviation(load.rows[0].seq, JobResult.FAILED, "no", 0.0)])
    )
    assert claimed(store, loading).job_key == load.job_key


def test_an_edited_job_keeps_its_new_data(store: Store) -> None:
    one, _ = ingest_events(store, 2)
    discard(store, loading := take_over(store))
    token = replaying(store)
    plan(store, token, FAILED, changed={one: '{"n":"fixed"}'})
    load = claimed(store, token)
    assert [row.payload for row in load.rows] == ['{"n":"fixed"}', '{"n":1}']
    store.loads.record(
        load, LoadVerdict([Deviation(load.rows[0].seq, JobResult.FAILED, "no", 0.0)])
    )
    again = claimed(store, loading)
    assert again.rows[0].payload == '{"n":"fixed"}'
    store.loads.record(
        again, LoadVerdict([Deviation(again.rows[0].seq, JobResult.DISCARDED, "no")])
    )
    with_new_key = ReplayRequest(**EVER, modes=(ReplayMode.FAILED,), new_key=True)
    plan(store, token, with_new_key, changed={one: '{"n":"fixed twice"}'})
    assert claimed(store, token).rows[0].payload == '{"n":"fixed twice"}'
    assert store.log.event(one).payload == '{"n":0}'


def test_what_a_replay_has_left_is_reported_by_its_last_error(store: Store) -> None:
    ingest_events(store, 1, to=())
    token = replaying(store)
    plan(store, token, MISSING)
    load = claimed(store, token)
    store.loads.record(
        load, LoadVerdict([Deviation(load.rows[0].seq, JobResult.FAILED, "first", 0.0)])
    )
    store.loads.record(claimed(store, take_over(store)), LoadVerdict(raised="second"))
    assert [job.error for job in store.replays.unsettled(FLIGHTS)] == ["second"]
    assert [job.error for job in store.history.jobs("retrying")] == ["second"]


def test_a_batch_splits_what_was_planned(store: Store) -> None:
    ids = ingest_events(store, 10, to=())
    token = replaying(store)
    plan(store, token, MISSING, batch=10)
    parts = []
    while load := store.loads.claim(token, 4, 3):
        parts.append(ids_of(load))
        store.loads.record(load, LoadVerdict())
    assert parts == [ids[:4], ids[4:8], ids[8:]]


def test_discarding_by_hand_reaches_what_a_replay_has_planned(store: Store) -> None:
    ids = ingest_events(store, 3, to=())
    token = replaying(store)
    replay = plan(store, token, MISSING)
    by_hand = take_over(store, "operator", Lane.DISCARD)
    assert store.loads.mark_for_discard(by_hand, [ids[1]], "not wanted") == 1
    load = store.loads.claim(by_hand, 10, 3)
    assert load is not None
    assert ids_of(load) == [ids[1]]
    store.loads.record(
        load, LoadVerdict([Deviation(load.rows[0].seq, JobResult.DISCARDED, "not wanted")])
    )
    assert sorted(event for load in drain(store, token) for event in ids_of(load)) == [
        ids[0],
        ids[2],
    ]
    assert store.replays.end(token, replay)
    counts = store.counts.of(FLIGHTS)
    assert (counts.succeeded, counts.discarded, counts.pending) == (2, 1, 0)


def test_filters_by_time_version_and_error(store: Store) -> None:
    ingest_events(store, 2)
    discard(store, take_over(store))
    assert len(states(store, ReplayRequest(**EVER, error='{"n":1}'))) == 1
    assert states(store, ReplayRequest(**EVER, error="%")) == {}
    assert states(store, ReplayRequest(**EVER, version="2")) == {}
    past = ReplayRequest(NOW - timedelta(days=9), NOW - timedelta(days=1), (ReplayMode.ALL,))
    assert states(store, past) == {}


def test_a_plan_of_a_fenced_replay_changes_nothing(store: Store) -> None:
    ingest_events(store, 2, to=())
    stale = replaying(store)
    replay = store.replays.begin(stale, MISSING, [departed.path], None)
    token = replaying(store, holder="next")
    seqs = [event.seq for event in candidates(store, MISSING)]
    selected = [SelectedJob(seq, "missing") for seq in seqs]
    with pytest.raises(FencedOut):
        store.replays.plan(stale, replay, replay.upto, selected, 10)
    store.replays.plan(token, replay, replay.upto, selected, 10)
    with pytest.raises(FencedOut, match="another process is planning"):
        store.replays.plan(token, replay, replay.upto, selected, 10)
    assert store.counts.of(FLIGHTS).pending == 2


def test_history_is_imported_with_the_time_when_it_was_received(store: Store) -> None:
    days = [datetime(2026, 1, day, 12, tzinfo=UTC) for day in (1, 2, 2, 3)]
    ids = []
    for at in days:
        [stored] = event_ids(
            store.log.append([[new_event(at.day), new_event(at.day)]], received_at=at)
        )
        ids.append(stored)
    recent = ingest_events(store, 1)
    assert store.log.event(ids[0][0]).received_at == days[0]
    second = ReplayRequest(days[1].replace(hour=0), days[3].replace(hour=0), (ReplayMode.ALL,))
    assert sorted(states(store, second)) == sorted([*ids[1], *ids[2]])
    window = store.log.window(second.start, second.end)
    assert window.upto - window.after <= 8
    assert set(recent) <= set(states(store, ALL))
    store.maintain()
    with pytest.raises(UsageError, match="in order of time"):
        store.log.append([[new_event()]], received_at=days[0])


def test_the_pace_of_the_last_loads(store: Store) -> None:
    assert store.counts.pace(FLIGHTS) is None
    ingest_events(store, 10)
    store.loads.record(claimed(store, take_over(store)), LoadVerdict())
    assert (store.counts.pace(FLIGHTS) or 0) > 0
