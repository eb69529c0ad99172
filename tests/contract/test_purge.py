"""Purges: expired events go, needed ones stay, and every query stays right."""

import itertools
import threading
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import update

from blacksmith_dagster.errors import Gone, NotFound, SequenceWentBack, SettingsError, Unavailable
from blacksmith_dagster.pipeline.event import JobResult
from blacksmith_dagster.pipeline.retention import Retention
from blacksmith_dagster.store import Store, purge, tables
from blacksmith_dagster.store.archive import FolderArchive
from blacksmith_dagster.store.records import (
    ArchivedEvent,
    ArchivedJob,
    Deviation,
    FencingToken,
    LoadVerdict,
    NewEvent,
    NewJob,
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
from tests.support.purging import (
    DAY,
    NOTHING,
    NOW,
    OUTCOME,
    UNDELIVERABLE,
    gone,
    index_time,
    kept,
    load_all,
    purged,
    read,
    rows,
)

LATER = 86_400.0  # a delay in seconds that no test outlives


# ------------------------------------------------------------------------------------ what goes


def test_what_is_past_its_time_goes_with_its_jobs_and_their_loads(store: Store) -> None:
    old = ingest_events(store, 7)
    token = take_over(store)
    while load := store.loads.claim(token, 2, 3):
        store.loads.record(load, LoadVerdict())
    index_time(store, 31 * DAY)
    young = ingest_events(store, 3)
    load_all(store, token)
    counts, totals = store.counts.of(FLIGHTS), store.counts.days(date(2026, 1, 1))
    assert purged(store, kept(30 * DAY)) == 7
    assert all(gone(store, old))
    assert not any(gone(store, young))
    assert [event.id for event in store.log.newest()] == young[::-1]
    assert rows(store) == {"events": 3, "jobs": 3, "loads": 1, "job_groups": 0, "outcomes": 0}
    assert store.counts.of(FLIGHTS) == counts
    assert counts.succeeded == 10
    store.maintain()
    later = store.counts.days(date(2026, 1, 1))
    assert sum(day.events for day in later) == 10 >= sum(day.events for day in totals)
    assert [step.state for step in store.history.transitions(young[0])][-1] == "succeeded"


def test_events_without_a_retention_stay(store: Store) -> None:
    ids = ingest_events(store, 3)
    load_all(store, take_over(store))
    index_time(store, 1000 * DAY)
    for retention in (kept(None), {}, {"airport/unheard_of": Retention(NOTHING, NOTHING)}):
        assert purged(store, retention) == 0
        assert store.log.purgeable(retention) == []
    assert not any(gone(store, ids))
    store.log.check_not_purged([departed.path], datetime(2020, 1, 1, tzinfo=UTC))


def test_an_event_without_a_job_goes(store: Store) -> None:
    ids = ingest_events(store, 3, to=())
    index_time(store)
    assert purged(store) == 3
    assert all(gone(store, ids))


def test_nothing_goes_before_the_time_index_shows_its_age(store: Store) -> None:
    ingest_events(store, 3, to=())
    index_time(store, 29 * DAY)
    assert purged(store, kept(30 * DAY)) == 0
    assert purged(store, kept(29 * DAY)) == 3


def test_one_event_type_may_go_before_another(store: Store) -> None:
    [parent] = ingest_events(store, 1)
    [outcomes] = store.log.append([[NewEvent(OUTCOME, "{}", parent=parent)] * 3])
    ids = ingest_events(store, 3, to=())
    assert isinstance(outcomes, list)
    load_all(store, take_over(store))
    index_time(store)
    assert purged(store, {departed.path: Retention(NOTHING, NOTHING)}) == 4
    assert all(gone(store, [parent, *ids]))
    assert not any(gone(store, outcomes))
    assert purged(store) == 3
    assert all(gone(store, outcomes))


# ------------------------------------------------------------------------------------ what stays


def _awaiting(store: Store, token: FencingToken) -> None: ...


def _executing(store: Store, token: FencingToken) -> None:
    claimed(store, token)


def _failed(store: Store, token: FencingToken) -> None:
    load = claimed(store, token)
    store.loads.record(
        load, LoadVerdict([Deviation(row.seq, JobResult.FAILED, "no", LATER) for row in load.rows])
    )


def _raised(store: Store, token: FencingToken) -> None:
    store.loads.record(claimed(store, token), LoadVerdict(raised="down", delay=LATER))


def _lost(store: Store, token: FencingToken) -> None:
    claimed(store, token)
    take_over(store, "another")


def _executing_again(store: Store, token: FencingToken) -> None:
    store.loads.record(claimed(store, token), LoadVerdict(raised="down"))
    claimed(store, token)


def _executing_a_list_again(store: Store, token: FencingToken) -> None:
    load = claimed(store, token)
    store.loads.record(
        load, LoadVerdict([Deviation(row.seq, JobResult.FAILED, "no", 0.0) for row in load.rows])
    )
    claimed(store, token)


@pytest.mark.parametrize(
    "pend",
    [_awaiting, _executing, _failed, _raised, _lost, _executing_again, _executing_a_list_again],
)
def test_what_is_pending_stays(store: Store, pend: Callable[[Store, FencingToken], None]) -> None:
    settled = ingest_events(store, 5)
    token = take_over(store)
    load_all(store, token)
    pending = ingest_events(store, 4)
    without_jobs = ingest_events(store, 3, to=())
    index_time(store)
    pend(store, token)
    before = [store.history.transitions(event_id) for event_id in pending]
    counts = store.counts.of(FLIGHTS)
    assert next(row[2:] for row in store.log.purgeable(NOW)) == (8, 4)
    assert purged(store) == 8
    assert all(gone(store, [*settled, *without_jobs]))
    assert not any(gone(store, pending))
    assert store.counts.of(FLIGHTS) == counts
    assert [store.history.transitions(event_id) for event_id in pending] == before
    assert purged(store) == 0
    # Once they are settled they go too.
    token = take_over(store, "the last")
    while load := store.loads.claim_for_discard(token, "not wanted", 100):
        store.loads.record(load, LoadVerdict())
    assert purged(store) == 4
    assert all(gone(store, pending))
    assert rows(store)["events"] == rows(store)["jobs"] == rows(store)["outcomes"] == 0
    assert rows(store)["loads"] <= 2


def test_what_goes_is_found_among_many_that_stay(store: Store) -> None:
    first, waiting, last = (
        ingest_events(store, 1, to=()),
        ingest_events(store, 5),
        ingest_events(store, 1, to=()),
    )
    index_time(store)
    assert purged(store) == 2
    assert gone(store, [*first, *waiting, *last]) == [True, *[False] * 5, True]
    assert {job.event_id for job in store.history.jobs("awaiting", FLIGHTS)} == set(waiting)


def test_a_job_that_waits_for_one_destination_event_keeps_the_event(store: Store) -> None:
    ids = ingest_events(store, 3, to=[FLIGHTS, SEATS])
    load_all(store, take_over(store))
    index_time(store)
    assert purged(store) == 0
    load_all(store, take_over(store, to=SEATS))
    assert purged(store) == 3
    assert all(gone(store, ids))


def test_parents_stay_while_an_outcome_waits(store: Store) -> None:
    """Also the parents of an outcome's outcome, whose own jobs are all settled."""
    ids = ingest_events(store, 3)
    index_time(store)
    load = claimed(store, take_over(store))
    of_discarded = NewEvent(OUTCOME, "{}", [NewJob(SEATS)], parent=ids[1])
    discarded = [Deviation(load.rows[1].seq, JobResult.DISCARDED, "no")]
    store.loads.record(load, LoadVerdict(discarded, outcomes=[of_discarded]))
    token = take_over(store, to=SEATS)
    of_outcome = claimed(store, token)
    [outcome] = ids_of(of_outcome)
    again = NewEvent(OUTCOME, "{}", [NewJob(UNDELIVERABLE)], parent=outcome)
    store.loads.record(of_outcome, LoadVerdict(outcomes=[again]))
    assert purged(store) == 2, "only events before that time; the outcomes came later"
    young = ingest_events(store, 1)
    index_time(store)
    assert purged(store) == 0
    assert gone(store, ids) == [True, False, True]
    assert not any(gone(store, [outcome, *young]))
    assert set(store.log.originals([outcome, ids[1]])) == {outcome, ids[1]}
    load_all(store, take_over(store, to=UNDELIVERABLE))
    assert purged(store) == 3
    assert gone(store, [*ids, outcome]) == [True] * 4


def test_the_parent_of_an_outcome_whose_job_was_discarded_lately_stays(store: Store) -> None:
    """Its data is the parent's: it may be fixed, and loaded again."""
    ids = ingest_events(store, 2)
    load_all(store, take_over(store))
    index_time(store)
    store.log.append([[NewEvent(OUTCOME, "{}", [NewJob(SEATS)], parent=ids[0])]])
    load = claimed(store, take_over(store, to=SEATS))
    store.loads.record(load, LoadVerdict([Deviation(load.rows[0].seq, JobResult.DISCARDED, "no")]))
    assert purged(store, kept(NOTHING, DAY)) == 1
    assert gone(store, ids) == [False, True]
    assert purged(store) == 1
    assert gone(store, ids) == [True, True]


def test_discarded_jobs_stay_longer(store: Store) -> None:
    ids = ingest_events(store, 4)
    load = claimed(store, take_over(store))
    discarded = [Deviation(row.seq, JobResult.DISCARDED, "no") for row in load.rows[:2]]
    store.loads.record(load, LoadVerdict(discarded))
    index_time(store)
    assert purged(store, kept(NOTHING, DAY)) == 2
    assert purged(store, kept(NOTHING, None)) == 0
    assert gone(store, ids) == [False, False, True, True]
    assert {job.event_id for job in store.history.jobs("discarded", FLIGHTS)} == set(ids[:2])
    assert [step.state for step in store.history.transitions(ids[0])][-1] == "discarded"
    counts = store.counts.of(FLIGHTS)
    assert (counts.succeeded, counts.discarded) == (2, 2)
    assert purged(store) == 2
    assert all(gone(store, ids))
    assert store.history.jobs("discarded", FLIGHTS) == []
    counts = store.counts.of(FLIGHTS)
    assert (counts.succeeded, counts.discarded, counts.pending) == (2, 0, 0)


# ---------------------------------------------------------------------------- what is reported


def test_the_error_for_a_purged_event_says_from_when_on_events_are_kept(store: Store) -> None:
    [event] = ingest_events(store, 1, to=())
    index_time(store, DAY)
    purged(store, kept(DAY))
    day = (datetime.now(UTC) - DAY).date().isoformat()
    for ask in (store.log.event, store.history.transitions):
        with pytest.raises(Gone, match=rf"{event} has been purged.*departed.* since {day}"):
            ask(event)
    for unknown in (f"{event[:12]}{99:012x}", "nonsense"):
        with pytest.raises(NotFound) as raised:
            store.log.event(unknown)
        assert not isinstance(raised.value, Gone)


def test_a_purged_window_is_reported(store: Store) -> None:
    ingest_events(store, 1, to=())
    index_time(store, 2 * DAY)
    now = datetime.now(UTC)
    store.log.check_not_purged([departed.path], now - 9 * DAY)
    purged(store, kept(DAY))
    store.log.check_not_purged([departed.path], now - DAY)
    day = (now - 2 * DAY).date().isoformat()
    with pytest.raises(Gone, match=rf"{departed.path}.* since {day}.*begin with {day}"):
        store.log.check_not_purged([departed.path, OUTCOME], now - 3 * DAY)


def test_a_sequence_below_what_was_purged_is_rejected(store: Store) -> None:
    ids = ingest_events(store, 5, to=())
    index_time(store)
    purged(store)
    store.ready()
    with store.database.writing() as conn:
        conn.execute(update(tables.counter).values(upto=0))
        store.database.set_sequence(conn, 2)
    with pytest.raises(SequenceWentBack):
        store.ready()
    store.repair()
    assert not set(ingest_events(store, 1)) & set(ids)


# ---------------------------------------------------------------------------- interrupted purges


def test_the_next_purge_continues_one_that_ended_early(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After every step: the queries stay right, and the next purge removes the rest."""
    monkeypatch.setattr(purge, "_DELETED_EVENTS", 2)
    monkeypatch.setattr(purge, "_PAGE", 5)
    ids = ingest_events(store, 12)
    token = take_over(store)
    for result in (JobResult.DISCARDED, JobResult.FAILED, JobResult.DISCARDED):
        load = claimed(store, token, 4)
        store.loads.record(load, LoadVerdict([Deviation(load.rows[0].seq, result, "no", LATER)]))
    waiting = {job.event_id for job in store.history.jobs("retrying", FLIGHTS)}
    index_time(store)
    for most in itertools.count(1):
        steps = list(itertools.islice(store.log.purge(NOW), most))
        counts = store.counts.of(FLIGHTS)
        assert (counts.succeeded, counts.retrying) == (9, 1)
        assert counts.discarded == len(store.history.jobs("discarded", FLIGHTS))
        assert {job.event_id for job in store.history.jobs("retrying", FLIGHTS)} == waiting
        for event in store.log.newest():
            assert store.history.transitions(event.id)[-1].state in (
                "succeeded",
                "failed",
                "discarded",
            )
        if len(steps) < most:
            break
    assert [event.id for event in store.log.newest()] == list(waiting)
    assert gone(store, ids).count(True) == 11
    assert rows(store)["loads"] == 2, "the load of the waiting job, and the last one"


def test_two_purges_at_once_do_each_others_work(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purge, "_DELETED_EVENTS", 3)
    ingest_events(store, 40)
    load = claimed(store, take_over(store))
    store.loads.record(
        load, LoadVerdict([Deviation(row.seq, JobResult.DISCARDED, "no") for row in load.rows])
    )
    index_time(store)
    failures: list[Exception] = []

    def run() -> None:
        try:
            purged(store)
        except Exception as error:  # noqa: BLE001 - reported by the assertion below
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert rows(store) == {"events": 0, "jobs": 0, "loads": 1, "job_groups": 0, "outcomes": 0}
    counts = store.counts.of(FLIGHTS)
    assert (counts.succeeded, counts.discarded, counts.pending) == (0, 0, 0)


# ------------------------------------------------------------------------------------ archive


def test_an_archive_has_the_purged_events_unchanged(store: Store, tmp_path: Path) -> None:
    sent = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    payload = '{"n":1.0, "big":123456789012345678901234567890, "s":"\\u0000 é"}'
    pretty = '{\r\n  "a": [1,\n 2]\n}'
    [[parent]] = event_ids(store.log.append([[new_event(to=())]]))
    jobs = [NewJob(FLIGHTS), NewJob(SEATS)]
    [[full, lines]] = event_ids(
        store.log.append(
            [
                [
                    NewEvent(
                        departed.path,
                        payload,
                        jobs,
                        key="k",
                        digest=b"d",
                        context='{"ip":"::1"}',
                        version="2",
                        sent_at=sent,
                        parent=parent,
                    ),
                    NewEvent(departed.path, pretty),
                ]
            ]
        )
    )
    load_all(store, take_over(store))
    load = claimed(store, take_over(store, to=SEATS))
    store.loads.record(
        load, LoadVerdict([Deviation(load.rows[0].seq, JobResult.DISCARDED, "no seat")])
    )
    received = [store.log.event(event_id).received_at for event_id in (parent, full, lines)]
    index_time(store)
    folder = tmp_path / "new" / "archive"
    files = [step.file for step in store.log.purge(NOW, FolderArchive(str(folder))) if step.file]
    assert files == [str(folder / f"{parent}-{lines}.jsonl.gz")]
    first, second, third = read(folder)
    assert first == ArchivedEvent(parent, departed.path, received[0], msgspec.Raw(b'{"n":0}'))
    assert second == ArchivedEvent(
        full,
        departed.path,
        received[1],
        msgspec.Raw(payload.encode()),
        "k",
        msgspec.Raw(b'{"ip":"::1"}'),
        "2",
        sent,
        parent,
        [ArchivedJob(FLIGHTS, "succeeded"), ArchivedJob(SEATS, "discarded", "no seat")],
    )
    assert bytes(third.data) == b'{"a":[1,2]}'


def test_whatever_goes_is_in_the_archive_even_if_purges_are_killed(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purge, "_DELETED_EVENTS", 2)
    monkeypatch.setattr(purge, "_PAGE", 5)
    folder = tmp_path / "archive"
    folder.mkdir()
    ids = ingest_events(store, 23)
    load_all(store, take_over(store))
    index_time(store)
    for most in itertools.count(1):
        steps = list(itertools.islice(store.log.purge(NOW, FolderArchive(str(folder))), most))
        archived = {event.id for event in read(folder)}
        left = {event.id for event in store.log.newest()}
        assert archived | left == set(ids)
        if len(steps) < most:
            break
    assert archived == set(ids)


def test_what_cannot_be_archived_is_not_purged(store: Store, tmp_path: Path) -> None:
    ids = ingest_events(store, 3, to=())
    index_time(store)
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match="events are purged only once they are archived"):
        list(store.log.purge(NOW, FolderArchive(str(tmp_path / "file"))))
    assert not any(gone(store, ids))
    list(store.log.purge(NOW, FolderArchive("memory://archive")))
    assert all(gone(store, ids))


@pytest.mark.parametrize("url", ["nonsense://user:hunter2@host/folder", "s3://bucket/folder"])
def test_a_wrong_archive_is_reported_without_its_password(url: str) -> None:
    with pytest.raises(SettingsError) as raised:
        FolderArchive(url)
    assert "hunter2" not in str(raised.value)
