"""The realtime loop, on every store: what wakes it, what delays it, and what it reports."""

import inspect
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from blacksmith_dagster import (
    Batch,
    Blacksmith,
    Destination,
    DestinationEvent,
    RetryPolicy,
    Schedule,
)
from blacksmith_dagster.errors import Timeout, Unavailable
from blacksmith_dagster.pubsub import Subscriber
from blacksmith_dagster.scheduler import (
    LoadReport,
    Realtime,
    StandardScheduler,
    realtime,
    realtime_events,
)
from blacksmith_dagster.store import Store, open_store
from blacksmith_dagster.store.records import Lane
from blacksmith_dagster.supervisor import Supervisor, open_supervisor
from tests.support.messages import Messages
from tests.support.pipelines.one_event import airport, departed, ingest, numbers
from tests.support.waiting import until

FLIGHTS, SEATS, LOST = "warehouse/flights", "warehouse/seats", "warehouse/lost"
LOCK = f"load/{FLIGHTS}"
AT_ONCE = 1.5  # seconds; where this matters, the sweep comes much later
NEVER = 3600.0


class Away:
    """A store that does not respond while `away` is set."""

    def __init__(self, store: Store) -> None:
        self.away = False
        self.asked = 0
        self.loads, self.log, self.counts = map(self._part, (store.loads, store.log, store.counts))

    def _part(self, part: Any) -> Any:
        return SimpleNamespace(
            **{
                name: self._unless_away(method)
                for name, method in inspect.getmembers(part, inspect.ismethod)
            }
        )

    def _unless_away(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if self.away:
                self.asked += 1
                raise Unavailable("the store is away")
            return method(*arguments, **options)

        return call


class Warm:
    """A store with its locks, and the loops that a test starts on it."""

    def __init__(self, url: str) -> None:
        self.store: Store = open_store(url, upgrade=True)
        self.supervisor: Supervisor = open_supervisor(None, self.store.database)
        self.messages = Messages()
        self.notified: list[str] = []
        self.reports: list[tuple[str, LoadReport]] = []
        self._scheduler = StandardScheduler()
        self._loops: list[Realtime] = []

    def start(self, app: Blacksmith, store: Any = None) -> Realtime:
        """Start the loop; it is subscribed, but may not have its locks yet."""
        self.store.register(app)
        loop = Realtime(
            app,
            app.destinations["warehouse"],
            self._scheduler,
            store=store or self.store,
            supervisor=self.supervisor,
            subscriber=cast(Subscriber[Any], self.messages),
            holder="the test",
            report=self._report,
        )
        self._loops.append(loop)
        loop.start()
        until(lambda: self.messages.waits > 1)
        return loop

    def _report(self, event: DestinationEvent[Any], done: LoadReport) -> None:
        self.reports.append((event.path, done))
        self.notified.extend(done.receivers)

    def close(self) -> None:
        for loop in self._loops:
            loop.stop()
        self._scheduler.close()
        self.supervisor.close()
        self.store.close()


@pytest.fixture
def warm(store_url: str) -> Iterator[Warm]:
    warm = Warm(store_url)
    yield warm
    warm.close()


@pytest.fixture
def no_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sweep never runs, so it cannot be what finds a job."""
    monkeypatch.setattr(realtime, "SWEEP", NEVER)


class Loaded:
    """What was loaded, with the time."""

    def __init__(self) -> None:
        self.at: dict[int, list[float]] = {}

    def __call__(self, batch: Batch[Any]) -> None:
        for n in numbers(batch):
            self.at.setdefault(n, []).append(time.monotonic())

    def has(self, *wanted: int) -> Callable[[], bool]:
        return lambda: self.at.keys() >= set(wanted)


def app_of(timeout: str = "1m", **functions: Callable[[Batch[Any]], None]) -> Blacksmith:
    """An application with a realtime destination, an event of it for each function."""
    warehouse: Destination[Any] = Destination(
        "warehouse", schedule=Schedule(realtime=True), retry=RetryPolicy(3, "1s"), timeout=timeout
    )
    for name, function in functions.items():
        warehouse.event(receives=departed, name=name)(function)
    return Blacksmith(sources=[airport], destinations=[warehouse])


def test_only_realtime_events_are_loaded(warm: Warm) -> None:
    loaded, left = Loaded(), Loaded()
    warehouse: Destination[Any] = Destination("warehouse")
    warehouse.event(receives=departed, name="flights", schedule=Schedule(realtime=True))(loaded)
    warehouse.event(receives=departed, name="seats")(left)
    assert [event.path for event in realtime_events(warehouse)] == [FLIGHTS]
    loop = warm.start(Blacksmith(sources=[airport], destinations=[warehouse]))
    until(lambda: loop.holds_locks)
    ingest(warm.store, [{"n": 1}])
    ingest(warm.store, [{"n": 2}], SEATS)
    warm.messages.say(FLIGHTS, SEATS)
    until(loaded.has(1))
    assert not left.at
    assert warm.store.counts.of(SEATS).pending == 1
    assert not warm.supervisor.status(f"load/{SEATS}").held


@pytest.mark.usefixtures("no_sweep")
def test_what_waits_at_the_start_is_loaded(warm: Warm) -> None:
    loaded = Loaded()
    app = app_of(flights=loaded)
    warm.store.register(app)
    ingest(warm.store, [{"n": 1}, {"n": 2}])
    warm.start(app)
    until(loaded.has(1, 2), AT_ONCE)


@pytest.mark.usefixtures("no_sweep")
def test_a_message_wakes_at_once(warm: Warm) -> None:
    loaded = Loaded()
    loop = warm.start(app_of(flights=loaded))
    until(lambda: loop.holds_locks)
    took = []
    for n in range(20):
        began = time.monotonic()
        ingest(warm.store, [{"n": n}])
        warm.messages.say(FLIGHTS)
        until(loaded.has(n))
        took.append(loaded.at[n][0] - began)
    assert sorted(took)[5] < 0.1  # the fastest quarter: the others may wait for a core
    until(lambda: [path for path, _ in warm.reports] == [FLIGHTS] * 20)
    # Notifications without jobs, for jobs already loaded, or for unknown destinations do no harm.
    for paths in ((), (FLIGHTS,), (FLIGHTS, FLIGHTS, "elsewhere/unknown")):
        warm.messages.say(*paths)
    ingest(warm.store, [{"n": 20}])
    warm.messages.say(FLIGHTS)
    until(loaded.has(20))
    assert all(len(times) == 1 for times in loaded.at.values())


@pytest.mark.usefixtures("no_sweep")
def test_a_retry_runs_when_it_is_due_without_a_message(warm: Warm) -> None:
    tried, other = Loaded(), Loaded()

    def flights(batch: Batch[Any]) -> None:
        tried(batch)
        for job in batch:
            if job.data["n"] == 1 and job.attempt < 3:
                batch.fail(job, "not yet", retry_after="1s")

    loop = warm.start(app_of(flights=flights, seats=other))
    until(lambda: loop.holds_locks)
    ingest(warm.store, [{"n": 1}])
    warm.messages.say(FLIGHTS)
    until(tried.has(1))
    # Events that arrive meanwhile do not make it forget the retry.
    time.sleep(0.3)
    ingest(warm.store, [{"n": 2}])
    warm.messages.say(FLIGHTS)
    until(lambda: len(tried.at[1]) == 3)
    first, second, third = tried.at[1]
    assert 0.9 < second - first < 1.6
    assert 0.9 < third - second < 1.6


def test_what_no_message_reported_is_swept(warm: Warm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(realtime, "SWEEP", 0.4)
    loaded = Loaded()
    loop = warm.start(app_of(flights=loaded))
    until(lambda: loop.holds_locks)
    for n in range(3):
        began = time.monotonic()
        ingest(warm.store, [{"n": n}])
        until(loaded.has(n))
        assert loaded.at[n][0] - began < 0.4 + AT_ONCE


@pytest.mark.usefixtures("no_sweep")
def test_a_broker_that_is_away_is_reported_once_and_looked_around(
    warm: Warm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(realtime, "SWEEP_ALONE", 0.2)
    loaded = Loaded()
    warm.messages.fail(Unavailable("no broker at broker:4222"))  # from the start
    loop = warm.start(app_of(flights=loaded))
    until(lambda: loop.holds_locks)
    for n in range(3):
        began = time.monotonic()
        ingest(warm.store, [{"n": n}])
        until(loaded.has(n))
        assert loaded.at[n][0] - began < 0.2 + AT_ONCE
    warm.messages.heal()
    until(lambda: warm.messages.connected)
    ingest(warm.store, [{"n": 3}])
    warm.messages.say(FLIGHTS)
    until(loaded.has(3), AT_ONCE)
    assert [
        message for message in caplog.messages if "no broker at broker:4222" in message
    ] == caplog.messages
    assert len(caplog.messages) == 1
    warm.messages.fail(Unavailable("gone again"))
    until(lambda: "gone again" in caplog.text)
    waits = warm.messages.waits
    until(lambda: warm.messages.waits > waits + 2)
    assert len(caplog.messages) == 2


@pytest.mark.usefixtures("no_sweep")
def test_what_was_missed_in_a_cut_is_looked_for_at_once(warm: Warm) -> None:
    loaded = Loaded()
    loop = warm.start(app_of(flights=loaded))
    until(lambda: loop.holds_locks)
    ingest(warm.store, [{"n": 1}])
    warm.messages.cut()
    until(loaded.has(1), AT_ONCE)


@pytest.mark.usefixtures("no_sweep")
def test_an_event_that_takes_its_time_holds_up_no_other(warm: Warm) -> None:
    loaded, go_on = Loaded(), threading.Event()

    def flights(batch: Batch[Any]) -> None:
        assert go_on.wait(30)
        loaded(batch)

    seats = Loaded()
    loop = warm.start(app_of(flights=flights, seats=seats))
    until(lambda: loop.holds_locks)
    ingest(warm.store, [{"n": 0}])
    warm.messages.say(FLIGHTS)
    until(lambda: warm.store.counts.of(FLIGHTS).executing == 1)
    for n in range(3):
        ingest(warm.store, [{"n": n}], SEATS)
        warm.messages.say(SEATS)
        until(seats.has(n), AT_ONCE)
    assert not loaded.at
    go_on.set()
    until(loaded.has(0))


@pytest.mark.usefixtures("no_sweep")
def test_where_another_holds_the_lock_it_stands_by(warm: Warm) -> None:
    loaded, seats = Loaded(), Loaded()
    other = warm.supervisor.acquire(LOCK, "another")
    assert other is not None
    loop = warm.start(app_of(flights=loaded, seats=seats))
    ingest(warm.store, [{"n": 1}])
    ingest(warm.store, [{"n": 1}], SEATS)
    warm.messages.say(FLIGHTS, SEATS)
    until(seats.has(1))
    assert not loaded.at
    assert warm.supervisor.status(LOCK).holder == "another"
    other.release()
    until(loaded.has(1))
    assert warm.supervisor.status(LOCK).holder == "the test"
    assert loop.failure is None


@pytest.mark.usefixtures("no_sweep")
def test_fenced_out_it_takes_over_anew(warm: Warm, caplog: pytest.LogCaptureFixture) -> None:
    loaded = Loaded()
    loop = warm.start(app_of(flights=loaded))
    until(lambda: loop.holds_locks)
    warm.store.loads.take_over(FLIGHTS, Lane.LOAD, "another", lambda: True)
    ingest(warm.store, [{"n": 1}])
    warm.messages.say(FLIGHTS)
    until(loaded.has(1))
    assert loop.failure is None
    assert loop.holds_locks
    (warning,) = caplog.messages
    assert FLIGHTS in warning
    assert len(loaded.at[1]) == 1


def test_a_store_that_is_away_is_reported_once_and_waited_for(
    warm: Warm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(realtime, "SWEEP", 0.1)
    monkeypatch.setattr(realtime, "SWEEP_ALONE", 0.1)
    monkeypatch.setattr(realtime._RealtimeLoader, "first_pause", 0.1)
    monkeypatch.setattr(realtime._RealtimeLoader, "longest_pause", 0.1)
    loaded = Loaded()
    store = Away(warm.store)
    loop = warm.start(app_of(flights=loaded), store)
    until(lambda: loop.holds_locks)
    since = warm.supervisor.status(LOCK).since
    for outage in (1, 2):
        ingest(warm.store, [{"n": 10 * outage}])
        until(loaded.has(10 * outage))
        until(lambda: warm.store.counts.of(FLIGHTS).pending == 0)  # recorded: no outage meets it
        store.away, store.asked = True, 0
        ingest(warm.store, [{"n": 10 * outage + 1}])
        warm.messages.say(FLIGHTS)
        until(lambda: store.asked > 10)
        store.away = False
        until(loaded.has(10 * outage + 1))
        until(lambda: loop.holds_locks)
        assert loop.failure is None
        reported = [message for message in caplog.messages if "the store is away" in message]
        assert len(reported) <= 2 * outage  # the sweep and the loader, once per outage each
        assert sum(FLIGHTS in message for message in reported) == outage
        assert warm.supervisor.status(LOCK).since == since  # it need not expire for anyone


def test_who_cannot_reach_the_store_gives_its_lock_to_another(
    warm: Warm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(realtime._RealtimeLoader, "first_pause", 0.1)
    monkeypatch.setattr(realtime._RealtimeLoader, "longest_pause", 0.1)
    monkeypatch.setattr(realtime._RealtimeLoader, "give_back_after", 0.5)
    store = Away(warm.store)
    loop = warm.start(app_of(flights=Loaded()), store)
    until(lambda: loop.holds_locks)
    assert warm.supervisor.acquire(LOCK, "the test", wait=1.0) is None
    store.away = True
    ingest(warm.store, [{"n": 1}])
    warm.messages.say(FLIGHTS)
    other = warm.supervisor.acquire(LOCK, "the test", wait=30)
    assert other
    other.release()
    store.away = False
    until(lambda: loop.holds_locks)


@pytest.mark.usefixtures("no_sweep")
def test_an_event_past_its_time_out_is_left_and_the_others_go_on(
    warm: Warm, caplog: pytest.LogCaptureFixture
) -> None:
    go_on, seats = threading.Event(), Loaded()

    def flights(batch: Batch[Any]) -> None:
        go_on.wait()

    loop = warm.start(app_of("500ms", flights=flights, seats=seats))
    until(lambda: loop.holds_locks)
    [late] = ingest(warm.store, [{"n": 0}])
    warm.messages.say(FLIGHTS)
    until(lambda: loop.failure)
    assert isinstance(loop.failure, Timeout)
    assert "end this process" in str(loop.failure)
    assert any(FLIGHTS in message and "has stopped" in message for message in caplog.messages)
    assert warm.store.history.transitions(late)[-1].state == "unknown"
    ingest(warm.store, [{"n": 1}], SEATS)
    warm.messages.say(SEATS)
    until(seats.has(1), AT_ONCE)
    # The lock of the abandoned event is free, and stopping does not wait for the call that hangs.
    assert not warm.supervisor.status(LOCK).held
    began = time.monotonic()
    loop.stop()
    assert time.monotonic() - began < 2
    go_on.set()


@pytest.mark.parametrize("where", ["subscriber", "report"])
def test_a_bug_is_reported_as_the_failure(
    warm: Warm, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    bug = RuntimeError("a bug")
    loop = warm.start(app_of(flights=lambda _: None))
    until(lambda: loop.holds_locks)
    assert loop.failure is None
    if where == "subscriber":
        warm.messages.fail(bug)
    else:
        warm.reports = None  # type: ignore[assignment]
        ingest(warm.store, [{"n": 1}])
        warm.messages.say(FLIGHTS)
    until(lambda: loop.failure)
    assert loop.failure is bug or where == "report"
    until(lambda: caplog.messages)
    loop.stop()
    assert len(caplog.messages) == 1


@pytest.mark.usefixtures("no_sweep")
def test_stop_finishes_the_batch_and_releases_the_locks(warm: Warm) -> None:
    loaded, began, go_on = Loaded(), threading.Event(), threading.Event()

    def flights(batch: Batch[Any]) -> None:
        began.set()
        assert go_on.wait(30)
        loaded(batch)

    loop = warm.start(app_of(flights=flights))
    until(lambda: loop.holds_locks)
    ingest(warm.store, [{"n": 1}])
    warm.messages.say(FLIGHTS)
    assert began.wait(10)
    ingest(warm.store, [{"n": 2}])
    stopping = threading.Thread(target=loop.stop)
    stopping.start()
    until(lambda: warm.messages.closed)
    assert stopping.is_alive()
    go_on.set()
    stopping.join(10)
    assert not stopping.is_alive()
    assert list(loaded.at) == [1]
    counts = warm.store.counts.of(FLIGHTS)
    assert (counts.succeeded, counts.executing, counts.awaiting) == (1, 0, 1)
    assert not warm.supervisor.status(LOCK).held
    assert not loop.holds_locks
    assert loop.failure is None


@pytest.mark.usefixtures("no_sweep")
def test_the_jobs_that_outcomes_make_are_published(warm: Warm) -> None:
    lost = Loaded()
    warehouse: Destination[Any] = Destination("warehouse", schedule=Schedule(realtime=True))

    @warehouse.event(receives=departed)
    def flights(batch: Batch[Any]) -> None:
        for job in batch:
            if job.data["n"] == 1:
                batch.discard(job, "no such airport")

    warehouse.event(receives=flights.discarded, name="lost")(lost)
    loop = warm.start(Blacksmith(sources=[airport], destinations=[warehouse]))
    until(lambda: loop.holds_locks)
    ingest(warm.store, [{"n": 0}])
    warm.messages.say(FLIGHTS)
    until(lambda: warm.reports)
    assert warm.notified == []
    ingest(warm.store, [{"n": 1}])
    warm.messages.say(FLIGHTS)
    until(lambda: warm.notified)
    assert warm.notified == [LOST]
    warm.messages.say(*warm.notified)
    until(lost.has(1), AT_ONCE)


@pytest.mark.usefixtures("no_sweep")
def test_idle_and_holds_locks_tell_the_truth(warm: Warm) -> None:
    go_on, began = threading.Event(), threading.Event()

    def flights(batch: Batch[Any]) -> None:
        began.set()
        assert go_on.wait(30)

    other = warm.supervisor.acquire(LOCK, "another")
    assert other is not None
    loop = warm.start(app_of(flights=flights))
    until(lambda: loop.idle > 0.2)  # since the start
    assert not loop.holds_locks
    other.release()
    until(lambda: loop.holds_locks)
    until(lambda: loop.idle > 0.4)  # looking and finding nothing counts as idle
    ingest(warm.store, [{"n": 1}])
    warm.messages.say(FLIGHTS)
    assert began.wait(10)
    assert loop.idle == 0
    go_on.set()
    until(lambda: loop.idle > 0)
    assert loop.idle < 0.4
    until(lambda: loop.idle > 0.2)
    loop.stop()
    assert not loop.holds_locks
