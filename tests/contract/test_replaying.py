"""Replaying a window of a destination event, on every store."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from blacksmith_dagster import Batch, Blacksmith, Destination, DestinationEvent, Event, Flow
from blacksmith_dagster.errors import SettingsError, UsageError
from blacksmith_dagster.scheduler import StandardScheduler, Tally, load
from blacksmith_dagster.scheduler import replay as replays
from blacksmith_dagster.scheduler.replay import ReplayProgress, ReplaySummary, forecast, replay
from blacksmith_dagster.store import Store, open_store
from blacksmith_dagster.store.records import (
    FencingToken,
    Lane,
    LoadVerdict,
    NewEvent,
    ReplayMode,
    ReplayRequest,
)
from blacksmith_dagster.supervisor import Supervisor, open_supervisor
from tests.support.pipelines.one_event import SOON, airport, departed, ingest, numbers, pipeline
from tests.support.waiting import until

NOW = datetime.now(UTC)
EVER: dict[str, Any] = {"start": NOW - timedelta(days=1), "end": NOW + timedelta(days=1)}
HERE = "tests.contract.test_replaying"


def is_even(event: Event[Any]) -> bool:
    return bool(event.data["n"] % 2 == 0)


def fixed(event: Event[Any]) -> Any:
    return event.data | {"fixed": True}


def refuses_two(event: Event[Any]) -> bool:
    if event.data["n"] == 2:
        raise ValueError("two")
    return True


class Replaying:
    def __init__(self, url: str) -> None:
        self.store: Store = open_store(url, upgrade=True)
        self.supervisor: Supervisor = open_supervisor(None, self.store.database)

    def replay(
        self, app: Blacksmith, event: DestinationEvent[Any], *, stop: Any = None, **asked: Any
    ) -> ReplaySummary:
        how = {key: asked.pop(key) for key in ("rate", "report", "run") if key in asked}
        services: dict[str, Any] = {"store": self.store, "supervisor": self.supervisor}
        request = ReplayRequest(**{**EVER, **asked})
        with closing(StandardScheduler()) as scheduler:
            return replay(app, event, request, scheduler, stop=stop, **services, **how)

    def load(self, app: Blacksmith, event: DestinationEvent[Any]) -> None:
        with closing(StandardScheduler()) as scheduler:
            load(app, event, scheduler, store=self.store, supervisor=self.supervisor)

    def ingest(self, *data: Any) -> list[str]:
        """Events without a job."""
        new = [NewEvent(departed.path, f'{{"n":{n}}}') for n in data]
        (event_ids,) = self.store.log.append([new])
        assert isinstance(event_ids, list)
        return event_ids

    def load_elsewhere(self, event: DestinationEvent[Any]) -> FencingToken:
        """Another process's right to load new jobs, and a job that it can claim."""
        lease = self.supervisor.acquire(f"load/{event.path}", "another process")
        assert lease
        token = self.store.loads.take_over(event.path, Lane.LOAD, lease.id, lease.confirm)
        ingest(self.store, [{"n": 99}])
        return token

    def close(self) -> None:
        self.supervisor.close()
        self.store.close()


@pytest.fixture
def replaying(store_url: str) -> Iterator[Replaying]:
    replaying = Replaying(store_url)
    yield replaying
    replaying.close()


def test_a_new_destination_event_is_filled_from_history(replaying: Replaying) -> None:
    loaded: list[list[int]] = []
    app, flights = pipeline(lambda batch: loaded.append(numbers(batch)), batch_size=4)
    replaying.store.register(app)
    ids = replaying.ingest(*range(10))
    reports: list[ReplayProgress] = []
    summary = replaying.replay(
        app, flights, run="run 7", report=lambda _, progress: reports.append(progress)
    )
    assert loaded == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert (summary.tally, summary.loads, summary.stopped) == (Tally(succeeded=10), 3, False)
    assert [(progress.done, progress.left) for progress in reports] == [(4, 6), (8, 2), (10, 0)]
    assert {
        transition.run
        for transition in replaying.store.history.transitions(ids[0])
        if transition.load_id
    } == {"run 7"}
    again = replaying.replay(app, flights)
    assert (again.loads, again.replay > summary.replay) == (0, True)


def test_the_flows_of_today_are_asked(replaying: Replaying) -> None:
    loaded: list[int] = []
    warehouse = Destination("warehouse", retry=SOON)

    @warehouse.event(receives=Flow(departed, when=is_even, transform=lambda event: event.data["n"]))
    def flights(batch: Batch[int]) -> None:
        loaded.extend(job.data for job in batch)

    app = Blacksmith(sources=[airport], destinations=[warehouse])
    replaying.store.register(app)
    replaying.ingest(*range(6))
    expected = forecast(app, flights, ReplayRequest(**EVER), store=replaying.store)
    assert expected.jobs == 3
    replaying.replay(app, flights)
    assert loaded == [0, 2, 4]


def test_a_when_that_raises_makes_a_job_that_fails(replaying: Replaying) -> None:
    warehouse = Destination("warehouse", retry=SOON)

    @warehouse.event(receives=Flow(departed, when=refuses_two))
    def flights(batch: Batch[int]) -> None: ...

    app = Blacksmith(sources=[airport], destinations=[warehouse])
    replaying.store.register(app)
    replaying.ingest(*range(4))
    assert replaying.replay(app, flights).tally == Tally(succeeded=3, failed=1)
    [job] = replaying.store.history.jobs("retrying", flights.path)
    assert job.error == "ValueError: two"


def test_discarded_jobs_are_edited_and_loaded_again(replaying: Replaying) -> None:
    loaded: list[Any] = []

    def load(batch: Batch[Any]) -> None:
        for job in batch:
            if "fixed" in job.data:
                loaded.append(job.data)
            else:
                batch.discard(job, f"bad {job.data['n']}")

    app, flights = pipeline(load)
    replaying.store.register(app)
    ingest(replaying.store, [{"n": n} for n in range(3)])
    replaying.load(app, flights)
    assert replaying.store.counts.of(flights.path).discarded == 3
    asked: dict[str, Any] = {"modes": (ReplayMode.FAILED,), "edit": f"{HERE}:fixed"}
    assert replaying.replay(app, flights, error="bad 1", **asked).tally == Tally(succeeded=1)
    assert replaying.replay(app, flights, when=f"{HERE}:is_even", **asked).tally.succeeded == 2
    assert sorted(data["n"] for data in loaded) == [0, 1, 2]
    counts = replaying.store.counts.of(flights.path)
    assert (counts.succeeded, counts.discarded, counts.pending) == (3, 0, 0)


def test_a_function_of_the_request_that_raises_stops_the_replay(replaying: Replaying) -> None:
    app, flights = pipeline(lambda batch: None)
    replaying.store.register(app)
    ids = replaying.ingest(*range(4))
    with pytest.raises(UsageError, match=ids[2]):
        replaying.replay(app, flights, when=f"{HERE}:refuses_two")
    assert replaying.store.counts.of(flights.path).pending == 0
    for wrong in ("nowhere:x", f"{HERE}:nothing", HERE):
        with pytest.raises(SettingsError, match="no function"):
            replaying.replay(app, flights, when=wrong)
    with pytest.raises(UsageError, match="does not receive"):
        replaying.replay(app, flights, event_types=("airport/other",))


def test_it_goes_on_where_it_stopped(replaying: Replaying) -> None:
    loaded: list[int] = []
    stop = threading.Event()

    def load(batch: Batch[Any]) -> None:
        loaded.extend(numbers(batch))
        if len(loaded) == 4:
            stop.set()

    app, flights = pipeline(load, batch_size=2)
    replaying.store.register(app)
    replaying.ingest(*range(10))
    first = replaying.replay(app, flights, stop=stop)
    assert (first.stopped, loaded) == (True, [0, 1, 2, 3])
    second = replaying.replay(app, flights)
    assert (second.replay, second.tally) == (first.replay, Tally(succeeded=6))
    assert loaded == list(range(10))


def test_a_rate_limits_it(replaying: Replaying) -> None:
    app, flights = pipeline(lambda batch: None, batch_size=10)
    replaying.store.register(app)
    replaying.ingest(*range(40))
    began = time.monotonic()
    replaying.replay(app, flights, rate=50)
    assert 0.5 < time.monotonic() - began < 5


def test_progress_reports_the_rate_and_the_seconds_left(replaying: Replaying) -> None:
    """It counts what this call has run; jobs that ran before the stop only count as done."""
    app, flights = pipeline(lambda batch: None, batch_size=10)
    replaying.store.register(app)
    replaying.ingest(*range(40))
    stop = threading.Event()
    replaying.replay(app, flights, stop=stop, report=lambda *_: stop.set())
    reports: list[tuple[ReplayProgress, float]] = []
    began = time.monotonic()

    def report(_: object, progress: ReplayProgress) -> None:
        reports.append((progress, time.monotonic() - began))

    replaying.replay(app, flights, rate=50, report=report)
    assert [(progress.done, progress.left) for progress, _ in reports] == [
        (20, 20),
        (30, 10),
        (40, 0),
    ]
    for number, (progress, elapsed) in enumerate(reports):
        assert (
            0.19 * number <= (progress.done - 10) / progress.rate <= elapsed
        )  # ten jobs each 0.2 s
        assert progress.seconds_left == pytest.approx(progress.left / progress.rate)


def test_live_loads_go_first(replaying: Replaying, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the process that loads new jobs has something to claim, a replay's next load waits."""
    monkeypatch.setattr(f"{replay.__module__}._LONGEST_YIELD", 120.0)
    first, second = threading.Event(), threading.Event()
    app, flights = pipeline(lambda _: (second if first.is_set() else first).set(), batch_size=1)
    replaying.store.register(app)
    replaying.ingest(1, 2)
    token = replaying.load_elsewhere(flights)
    running = threading.Thread(target=lambda: replaying.replay(app, flights), daemon=True)
    running.start()
    assert first.wait(30)
    assert not second.wait(0.7)
    load = replaying.store.loads.claim(token, 10, 3)
    assert load
    assert second.wait(30)
    running.join(30)
    replaying.store.loads.record(load, LoadVerdict())
    assert replaying.store.counts.of(flights.path).succeeded == 3


def test_a_replay_waits_for_live_loads_so_long_at_most(
    replaying: Replaying, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{replay.__module__}._LONGEST_YIELD", 0.5)
    times: list[float] = []
    app, flights = pipeline(lambda _: times.append(time.monotonic()), batch_size=1)
    replaying.store.register(app)
    replaying.ingest(1, 2)
    replaying.load_elsewhere(flights)  # and it never claims
    assert replaying.replay(app, flights).tally == Tally(succeeded=2)
    first, second = times
    assert second - first >= 0.5
    assert replaying.store.counts.of(flights.path).pending == 1


def test_a_replay_does_not_wait_where_nobody_loads_what_is_new(
    replaying: Replaying, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{replay.__module__}._LONGEST_YIELD", 120.0)
    app, flights = pipeline(lambda batch: None, batch_size=1)
    replaying.store.register(app)
    replaying.ingest(1, 2)
    ingest(replaying.store, [{"n": 99}])
    began = time.monotonic()
    assert replaying.replay(app, flights).tally == Tally(succeeded=2)
    assert time.monotonic() - began < 60


def test_a_dry_run_changes_nothing(replaying: Replaying) -> None:
    def load(batch: Batch[Any]) -> None:
        for job in batch:
            if job.data["n"] == 1:
                batch.discard(job, "bad")

    app, flights = pipeline(load)
    replaying.store.register(app)
    ids = ingest(replaying.store, [{"n": n} for n in range(3)])
    replaying.load(app, flights)
    missing = replaying.ingest(3, 4, 5, 6, 7, 8)
    expected = forecast(app, flights, ReplayRequest(**EVER), store=replaying.store)
    (counts,) = expected.days.values()
    assert counts == {"succeeded": 2, "discarded": 1, "missing": 6}
    assert expected.jobs == 7
    assert (expected.seconds or 0) > 0
    assert [(job.event_id, job.state, job.error) for job in expected.sample] == [
        (ids[1], "discarded", "bad"),
        *((event_id, "missing", None) for event_id in missing[:4]),
    ]
    assert replaying.store.replays.newest(flights.path) == []


def test_overlapping_replays_refused(replaying: Replaying, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second replay of the same window while one runs is refused, naming the run; one of another
    window waits for its turn."""
    monkeypatch.setattr(replays, "WAIT", 0.2)
    begun, go_on = threading.Event(), threading.Event()

    def load(batch: Batch[Any]) -> None:
        begun.set()
        assert go_on.wait(30)

    app, flights = pipeline(load)
    replaying.store.register(app)
    replaying.ingest(1)
    running = threading.Thread(
        target=lambda: replaying.replay(app, flights, run="run 7"), daemon=True
    )
    running.start()
    assert begun.wait(30)
    with pytest.raises(UsageError, match="run 7 is already replaying"):
        replaying.replay(app, flights, run="run 8")
    done = threading.Event()

    def elsewhere() -> None:
        past = {"start": NOW - timedelta(days=3), "end": NOW - timedelta(days=2)}
        replaying.replay(app, flights, run="run 9", **past)
        done.set()

    other = threading.Thread(target=elsewhere, daemon=True)
    other.start()
    assert not done.wait(0.6)
    go_on.set()
    assert done.wait(30)
    running.join(30)
    other.join(30)


def test_transform_raises_for_one_event(replaying: Replaying) -> None:
    loaded: list[int] = []
    warehouse = Destination("warehouse", retry=SOON)

    def transform(event: Event[Any]) -> int:
        return int(10 / (event.data["n"] - 2))

    @warehouse.event(receives=Flow(departed, transform=transform))
    def flights(batch: Batch[int]) -> None:
        loaded.extend(job.event.data["n"] for job in batch)

    app = Blacksmith(sources=[airport], destinations=[warehouse])
    replaying.store.register(app)
    ids = replaying.ingest(*range(5))
    assert replaying.replay(app, flights).tally == Tally(succeeded=4, failed=1)

    def settled() -> bool:
        replaying.load(app, flights)
        return replaying.store.counts.of(flights.path).pending == 0

    until(settled)
    assert sorted(loaded) == [0, 1, 3, 4]
    [job] = replaying.store.history.jobs("discarded", flights.path)
    assert (job.event_id, job.error) == (ids[2], "ZeroDivisionError: division by zero")


def test_new_events_flow_beside_a_replay(replaying: Replaying) -> None:
    """The load lane loads new jobs while a replay waits within its batch."""
    begun, go_on = threading.Event(), threading.Event()

    def load(batch: Batch[Any]) -> None:
        if numbers(batch) == [1]:
            begun.set()
            assert go_on.wait(30)

    app, flights = pipeline(load)
    replaying.store.register(app)
    replaying.ingest(1)
    running = threading.Thread(target=lambda: replaying.replay(app, flights), daemon=True)
    running.start()
    assert begun.wait(30)
    ingest(replaying.store, [{"n": 2}])
    replaying.load(app, flights)
    assert replaying.store.counts.of(flights.path).succeeded == 1
    go_on.set()
    running.join(30)
    assert replaying.store.counts.of(flights.path).succeeded == 2
