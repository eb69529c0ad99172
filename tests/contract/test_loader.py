"""Loading a destination event, on every store."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from blacksmith_dagster import Batch, Blacksmith, Destination, DestinationEvent, RetryPolicy
from blacksmith_dagster.errors import FencedOut, OutcomeUnknown, Timeout, Unavailable
from blacksmith_dagster.scheduler import LoadReport, StandardScheduler, Summary, Tally, load
from blacksmith_dagster.store import Store, open_store
from blacksmith_dagster.store.records import Lane, Load, LoadVerdict
from blacksmith_dagster.supervisor import Supervisor, here, open_supervisor
from tests.support.pipelines.one_event import SOON, departed, ingest, numbers, pipeline
from tests.support.waiting import until

KEY = "load/warehouse/flights"


class Loading:
    """A store with its locks, and a scheduler to load with."""

    def __init__(self, url: str) -> None:
        self.store: Store = open_store(url, upgrade=True)
        self.supervisor: Supervisor = open_supervisor(None, self.store.database)
        self.scheduler = StandardScheduler()

    def load(self, app: Blacksmith, event: DestinationEvent[Any], **options: Any) -> Summary:
        with_store: dict[str, Any] = {"store": self.store, "supervisor": self.supervisor}
        return load(app, event, self.scheduler, **(with_store | options))

    def close(self) -> None:
        self.scheduler.close()
        self.supervisor.close()
        self.store.close()


@pytest.fixture
def loading(store_url: str) -> Iterator[Loading]:
    loading = Loading(store_url)
    yield loading
    loading.close()


def due(loading: Loading) -> None:
    """Wait until a failed job's retry is due."""
    until(lambda: loading.store.counts.next_due("warehouse/flights") == 0)


def test_everything_due_is_loaded_in_order_and_reported(loading: Loading) -> None:
    loaded: list[list[int]] = []
    app, flights = pipeline(lambda batch: loaded.append(numbers(batch)), batch_size=2)
    loading.store.register(app)
    ids = ingest(loading.store, [{"n": n} for n in range(5)])
    reports: list[LoadReport] = []
    summary = loading.load(app, flights, run="run 7", report=reports.append)
    assert loaded == [[0, 1], [2, 3], [4]]
    assert summary == Summary(3, Tally(succeeded=5))
    assert [sum(report.days.values(), start=Tally()) for report in reports] == [
        Tally(succeeded=2),
        Tally(succeeded=2),
        Tally(succeeded=1),
    ]
    counts = loading.store.counts.of(flights.path)
    assert (counts.succeeded, counts.pending) == (5, 0)
    history = loading.store.history.transitions(ids[0])
    assert [transition.state for transition in history][-1] == "succeeded"
    assert {transition.run for transition in history if transition.load_id is not None} == {"run 7"}
    assert loading.load(app, flights) == Summary()


def test_a_function_learns_the_version_it_is_written_for(loading: Loading) -> None:
    reports: list[str | None] = []
    app, flights = pipeline(lambda batch: reports.append(batch.version), version="2020-10-01")
    loading.store.register(app)
    ingest(loading.store, [{"n": 1}])
    loading.load(app, flights)
    assert reports == ["2020-10-01"]


def test_a_failed_job_is_tried_again_until_it_is_discarded(loading: Loading) -> None:
    attempts: list[tuple[int, int]] = []

    def load(batch: Batch[Any]) -> None:
        for job in batch:
            attempts.append((job.data["n"], job.attempt))
            if job.data["n"] == 1:
                batch.fail(job, "no such airport")

    app, flights = pipeline(load)
    loading.store.register(app)
    ingest(loading.store, [{"n": 0}, {"n": 1}])
    assert loading.load(app, flights).tally == Tally(succeeded=1, failed=1)
    due(loading)
    assert loading.load(app, flights).tally == Tally(failed=1)
    due(loading)
    assert loading.load(app, flights).tally == Tally(discarded=1)
    assert attempts == [(0, 1), (1, 1), (1, 2), (1, 3)]
    (job,) = loading.store.history.jobs("discarded", flights.path)
    assert (job.error, job.attempts) == ("no such airport", 3)


def test_a_job_keeps_its_key_from_attempt_to_attempt(loading: Loading) -> None:
    keys: list[str] = []

    def load(batch: Batch[Any]) -> None:
        keys.extend(job.key for job in batch)
        if len(keys) < 3:
            raise ConnectionError("refused")

    app, flights = pipeline(load)
    loading.store.register(app)
    ingest(loading.store, [{"n": 0}])
    for _ in range(3):
        due(loading)
        loading.load(app, flights)
    assert len(keys) == 3
    assert len(set(keys)) == 1


def test_an_outage_fails_all_and_costs_no_job_its_life(loading: Loading) -> None:
    down = True
    loaded: list[int] = []

    def load(batch: Batch[Any]) -> None:
        if down:
            raise ConnectionError("refused")
        loaded.extend(numbers(batch))

    app, flights = pipeline(load)
    loading.store.register(app)
    ingest(loading.store, [{"n": n} for n in range(20)])
    summary = loading.load(app, flights)
    assert (summary.loads, summary.tally) == (1, Tally(failed=20))
    down = False
    due(loading)
    loading.load(app, flights)
    assert loaded == list(range(20))


def test_a_connection_that_cannot_be_opened_fails_the_load(loading: Loading) -> None:
    def connect() -> None:
        raise ConnectionError("refused")

    app, flights = pipeline(lambda batch, connection: None, connect=connect)
    loading.store.register(app)
    ingest(loading.store, [{"n": 0}])
    reports: list[LoadReport] = []
    assert loading.load(app, flights, report=reports.append).tally == Tally(failed=1)
    assert reports[0].error == "ConnectionError: refused"


def test_a_load_that_finds_the_lock_held_ends_well(loading: Loading) -> None:
    app, flights = pipeline(lambda batch: None)
    loading.store.register(app)
    ingest(loading.store, [{"n": 0}])
    lease = loading.supervisor.acquire(KEY, "run 7")
    assert lease is not None
    with lease:
        assert loading.load(app, flights) == Summary(skipped=f"held by run 7 at {here()}")
    assert loading.load(app, flights).tally == Tally(succeeded=1)
    assert not loading.supervisor.status(KEY).held


def test_who_is_asked_to_stop_finishes_the_load_under_way(loading: Loading) -> None:
    stop = threading.Event()
    app, flights = pipeline(lambda batch: stop.set(), batch_size=1)
    loading.store.register(app)
    ingest(loading.store, [{"n": n} for n in range(3)])
    summary = loading.load(app, flights, stop=stop)
    assert summary == Summary(1, Tally(succeeded=1), stopped=True)
    assert loading.store.counts.of(flights.path).awaiting == 2
    assert not loading.supervisor.status(KEY).held
    assert loading.load(app, flights).tally == Tally(succeeded=2)


def test_what_was_claimed_and_not_begun_is_given_back(
    loading: Loading, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stop comes while the store claims."""
    stop, claim = threading.Event(), loading.store.loads.claim

    def claim_and_stop(*arguments: Any) -> Any:
        load = claim(*arguments)
        stop.set()
        return load

    monkeypatch.setattr(loading.store.loads, "claim", claim_and_stop)
    loaded: list[tuple[int, int]] = []
    app, flights = pipeline(
        lambda batch: loaded.extend((job.data["n"], job.attempt) for job in batch)
    )
    loading.store.register(app)
    ingest(loading.store, [{"n": 0}])
    summary = loading.load(app, flights, stop=stop)
    assert summary == Summary(stopped=True)
    assert loaded == []
    assert loading.load(app, flights).tally == Tally(succeeded=1)
    assert loaded == [(0, 1)]


def test_a_load_past_its_time_out_counts_for_nothing(loading: Loading) -> None:
    calls: list[list[int]] = []

    def load(batch: Batch[Any]) -> None:
        calls.append(numbers(batch))
        if len(calls) == 1:
            time.sleep(0.5)

    app, flights = pipeline(load, timeout="200ms")
    loading.store.register(app)
    (first,) = ingest(loading.store, [{"n": 0}])
    summary = loading.load(app, flights)
    while not summary.loads:  # the jobs of an abandoned load may be due at once, or a little later
        summary = loading.load(app, flights)
    assert calls == [[0], [0]]
    states = [transition.state for transition in loading.store.history.transitions(first)]
    assert states[-4:] == ["executing", "unknown", "executing", "succeeded"]


def test_a_call_that_does_not_return_ends_the_load(loading: Loading) -> None:
    release = threading.Event()

    def load(batch: Batch[Any]) -> None:
        release.wait(30)

    app, flights = pipeline(load, timeout="200ms")
    loading.store.register(app)
    ingest(loading.store, [{"n": 0}])
    try:
        with pytest.raises(Timeout, match=r"past its time-out of 0\.2 s.*end this process"):
            loading.load(app, flights)
        counts = loading.store.counts.of(flights.path)
        assert (counts.retrying, counts.executing) == (1, 0)
        assert not loading.supervisor.status(KEY).held
    finally:
        release.set()


def test_a_load_that_waits_for_another_event_of_its_destination_loses_nothing(
    loading: Loading,
) -> None:
    """A call that hangs keeps its thread's connection; a load that cannot begin is given back."""
    release = threading.Event()
    warehouse = Destination("warehouse", retry=SOON, timeout="50ms")

    @warehouse.event(receives=departed)
    def slow(batch: Batch[Any]) -> None:
        assert release.wait(30)

    @warehouse.event(receives=departed)
    def quick(batch: Batch[Any]) -> None: ...

    app = Blacksmith(sources=[departed.source], destinations=[warehouse])
    loading.store.register(app)
    ingest(loading.store, [{"n": 0}], slow.path)
    (waiting,) = ingest(loading.store, [{"n": 1}], quick.path)
    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(loading.load, app, slow)
        second = thread.submit(loading.load, app, quick)
        assert isinstance(first.exception(30), Timeout)
        until(lambda: len(loading.store.history.transitions(waiting)) > 6)
        release.set()
        assert second.result(30).tally == Tally(succeeded=1)
    states = {transition.state for transition in loading.store.history.transitions(waiting)}
    assert "unknown" not in states
    assert "succeeded" in states


def test_who_was_taken_over_stops(loading: Loading) -> None:
    taken = False

    def load(batch: Batch[Any]) -> None:
        nonlocal taken
        taken = True
        loading.store.loads.take_over(flights.path, Lane.LOAD, "another", lambda: True)

    app, flights = pipeline(load)
    loading.store.register(app)
    ingest(loading.store, [{"n": 0}])
    with pytest.raises(FencedOut):
        loading.load(app, flights)
    assert taken
    assert loading.store.counts.of(flights.path).succeeded == 0


def test_who_has_lost_the_lock_records_and_claims_no_more(loading: Loading) -> None:
    held: list[Any] = []

    class Remembering:
        def __getattr__(self, name: str) -> Any:
            return getattr(loading.supervisor, name)

        def acquire(self, key: str, holder: str, *, wait: float) -> Any:
            held.append(loading.supervisor.acquire(key, holder, wait=wait))
            return held[-1]

    app, flights = pipeline(lambda batch: held[-1].lost.set(), batch_size=1)
    loading.store.register(app)
    ingest(loading.store, [{"n": 0}, {"n": 1}])
    with pytest.raises(FencedOut, match="could not be renewed"):
        loading.load(app, flights, supervisor=Remembering())
    counts = loading.store.counts.of(flights.path)
    assert (counts.succeeded, counts.awaiting) == (1, 1)


@pytest.mark.parametrize("committed", [False, True])
def test_what_is_loaded_is_recorded_once_the_store_responds(
    loading: Loading, committed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store breaks when a load is to be recorded, and responds a little later."""
    raised: list[Unavailable] = [OutcomeUnknown("broken"), Unavailable("starting up")]
    record = loading.store.loads.record

    def restarting(load: Load, verdict: LoadVerdict) -> None:
        if committed and len(raised) == 1:
            record(load, verdict)
        if raised:
            raise raised.pop()
        record(load, verdict)

    monkeypatch.setattr(loading.store.loads, "record", restarting)
    loaded: list[int] = []
    app, flights = pipeline(lambda batch: loaded.extend(numbers(batch)))
    loading.store.register(app)
    ingest(loading.store, [{"n": 0}])
    if committed:  # whether this record closed the load cannot be known
        with pytest.raises(OutcomeUnknown):
            loading.load(app, flights)
    else:
        assert loading.load(app, flights).tally == Tally(succeeded=1)
    assert loading.load(app, flights) == Summary()
    assert loaded == [0]


def test_received_outcomes_are_loaded_with_their_cause(loading: Loading) -> None:
    reports: list[tuple[Any, str, str | None, int]] = []
    mail = Destination("mail", retry=SOON)

    def load(batch: Batch[Any]) -> None:
        for job in batch:
            if job.data["n"] % 2:
                batch.discard(job, "odd")

    warehouse: Destination[None] = Destination("warehouse")
    flights = warehouse.event(receives=departed, name="flights")(load)

    @mail.event(receives=flights.discarded)
    def undeliverable(batch: Batch[Any]) -> None:
        for job in batch:
            assert job.cause is not None
            reports.append((job.data, job.cause.outcome, job.cause.error, job.cause.attempts))

    app = Blacksmith(sources=[departed.source], destinations=[warehouse, mail])
    loading.store.register(app)
    ingest(loading.store, [{"n": n} for n in range(4)])
    loading.load(app, flights)
    loading.load(app, undeliverable)
    assert reports == [({"n": n}, "discarded", "odd", 1) for n in (1, 3)]


def test_poison_among_many_is_found_without_discarding_the_others(loading: Loading) -> None:
    loaded: set[int] = set()

    def load(batch: Batch[Any]) -> None:
        if 13 in numbers(batch):
            raise ValueError("unlucky")
        loaded.update(numbers(batch))

    app, flights = pipeline(load, retry=RetryPolicy(1, "1ms"))
    loading.store.register(app)
    ingest(loading.store, [{"n": n} for n in range(20)])
    while loading.store.counts.of(flights.path).pending:
        due(loading)
        loading.load(app, flights)
    assert loaded == set(range(20)) - {13}
    (job,) = loading.store.history.jobs("discarded", flights.path)
    assert job.error == "ValueError: unlucky"
