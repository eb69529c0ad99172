"""Real faults of destinations and of loaders, and their effect on the jobs."""

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from blacksmith_dagster import (
    Batch,
    Blacksmith,
    Destination,
    DestinationEvent,
    Event,
    Flow,
    RetryPolicy,
    Schedule,
    Source,
)
from blacksmith_dagster.errors import FencedOut
from blacksmith_dagster.scheduler import StandardScheduler, Tally
from blacksmith_dagster.scheduler import load as load_due
from blacksmith_dagster.store import Store, open_store
from blacksmith_dagster.store.records import Lane, LoadVerdict
from blacksmith_dagster.supervisor import StoreSupervisor
from tests.support import randomness
from tests.support.ingesting import accept
from tests.support.oracle import judge
from tests.support.pipelines.loading import (
    ALERTS,
    FLIGHTS,
    HURRIED,
    REPORTED,
    Recording,
)
from tests.support.processes.blacksmith import GatewayProcess
from tests.support.processes.loading_process import LoaderProcess, keep_running, opened
from tests.support.services.postgres import PostgresServer
from tests.support.waiting import until

AT_ONCE = RetryPolicy(max_retries=3, delay="1ms")


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with opened(store_url) as store:
        yield store


@pytest.fixture
def recording(tmp_path: Path) -> Iterator[Recording]:
    with contextlib.closing(Recording(tmp_path)) as recording:
        yield recording


class Pipeline:
    """One flow from `site/seen` to `lake/kept`, loaded in this process."""

    def __init__(
        self,
        store: Store,
        function: Callable[[Batch[Any]], None] = lambda batch: None,
        *,
        retry: RetryPolicy = AT_ONCE,
        batch_size: int = 1000,
        **flow: Any,
    ) -> None:
        self.store = store
        self.loaded: set[str] = set()
        self.site = Source("site")
        self.seen = self.site.accept("seen")
        lake = Destination(
            "lake", schedule=Schedule("@every 5s"), retry=retry, batch_size=batch_size
        )

        def kept(batch: Batch[Any]) -> None:
            function(batch)
            said = batch.verdicts
            self.loaded |= {str(job.event.id) for job in batch if job.key not in said}

        self.kept: DestinationEvent[Any] = lake.event(receives=Flow(self.seen, **flow))(kept)
        self.app = Blacksmith(sources=[self.site], destinations=[lake])
        store.register(self.app)
        self._supervisor = StoreSupervisor(store.database)

    def accept(self, data: Sequence[Any]) -> list[str]:
        return accept(self.store, data, self.app, self.seen)

    def load(self, stop: threading.Event | None = None) -> Tally:
        services: dict[str, Any] = {"store": self.store, "supervisor": self._supervisor}
        with contextlib.closing(StandardScheduler()) as scheduler:
            return load_due(self.app, self.kept, scheduler, stop=stop, **services).tally

    def settle(self) -> None:
        """Load until nothing is pending, for at most 60 s."""

        def settled() -> bool:
            self.load()
            return self.store.counts.of("lake/kept").pending == 0

        until(settled, 60, "nothing is pending")

    def history(self, event_id: str) -> list[tuple[str, str | None]]:
        return [(entry.state, entry.error) for entry in self.store.history.transitions(event_id)]


def test_when_that_raises_keeps_the_job(store: Store) -> None:
    def when(event: Event[Any]) -> bool:
        return bool(10 // event.data["n"] > by.get("least", 0) // by.get("divisor", 0))

    by: dict[str, int] = {}
    pipeline = Pipeline(store, when=when, retry=RetryPolicy(max_retries=3, delay="2s"))
    ids = pipeline.accept([{"n": 1}, {"n": 5}])
    assert pipeline.load() == Tally(failed=2)  # no job was dropped or loaded
    judge(store, "lake/kept", ids, pipeline.loaded)
    by |= {
        "least": 3,
        "divisor": 1,
    }  # after the fix, `when` accepts the first event and rejects the second
    pipeline.settle()
    result = judge(store, "lake/kept", ids, pipeline.loaded)
    assert pipeline.loaded == result.succeeded == {ids[0]}
    errors = [error for state, error in pipeline.history(ids[1]) if error]
    assert "ZeroDivisionError" in errors[0]
    assert errors[-1] == "the flow's when no longer wants this event"


def test_transform_that_raises_fails_its_job(store: Store) -> None:
    def transform(event: Event[Any]) -> float:
        return float(100 / event.data["n"])

    pipeline = Pipeline(store, transform=transform)
    ids = pipeline.accept([{"n": n} for n in range(100)])
    pipeline.settle()
    result = judge(store, "lake/kept", ids, pipeline.loaded)
    assert result.discarded == {ids[0]}
    assert pipeline.loaded == set(ids[1:])
    failures = [
        error for state, error in pipeline.history(ids[0]) if state != "executing" and error
    ]
    assert failures == ["ZeroDivisionError: division by zero"] * 4


@pytest.mark.slow
@pytest.mark.parametrize("others", [True, False], ids=["others_succeed", "nothing_else_comes"])
def test_poison_among_thousand(store: Store, others: bool) -> None:
    def load(batch: Batch[Any]) -> None:
        if any(job.data["n"] == 500 for job in batch):
            raise ValueError("poison")

    retry = RetryPolicy(max_retries=12 if others else 3, delay="1ms")
    pipeline = Pipeline(store, load, retry=retry)
    ids = pipeline.accept([{"n": n} for n in range(1000)])
    late: list[str] = []
    while store.counts.of("lake/kept").pending:
        if others and len(late) < 12:
            late += pipeline.accept([{"n": -1}])
        pipeline.load()
        until(lambda: store.counts.next_due("lake/kept") in (0, None), 30)
    result = judge(store, "lake/kept", ids + late, pipeline.loaded)
    assert result.discarded == {ids[500]}
    assert len(pipeline.loaded & set(ids)) == 999


def test_new_jobs_are_not_starved_by_retries(store: Store) -> None:
    handed: list[list[int]] = []
    failing = True

    def load(batch: Batch[Any]) -> None:
        handed.append([job.data["n"] for job in batch])
        for job in batch:
            if failing and job.data["n"] < 1000:
                batch.fail(job, "not yet", retry_after="0s")

    pipeline = Pipeline(store, load, retry=RetryPolicy(max_retries=10_000), batch_size=5)
    ids = pipeline.accept([{"n": n} for n in range(100)])
    stop, news = threading.Event(), [1000]

    def report(_: object) -> None:
        nonlocal failing
        if len(handed) == 60:  # twenty job groups fail repeatedly and are due at once
            ids.extend(pipeline.accept([{"n": 1000}]))
            news.append(len(handed))
        if len(handed) >= 70:
            failing = False

    with (
        contextlib.closing(StoreSupervisor(store.database)) as supervisor,
        contextlib.closing(StandardScheduler()) as scheduler,
    ):
        load_due(
            pipeline.app,
            pipeline.kept,
            scheduler,
            store=store,
            supervisor=supervisor,
            stop=stop,
            report=report,
        )
    turn = next(turn for turn, jobs in enumerate(handed) if 1000 in jobs)
    assert turn - news[1] <= 1, "every second claim is for new jobs"
    assert judge(store, "lake/kept", ids, pipeline.loaded).succeeded == set(ids)


@pytest.mark.slow
def test_hundred_thousand_retries_due_at_once(store: Store) -> None:
    failed: set[str] = set()
    all_failed = threading.Event()

    calls: list[int] = []

    def load(batch: Batch[Any]) -> None:
        calls.append(len(batch))
        if not all_failed.is_set():
            failed.update(job.key for job in batch)
            for job in batch:
                batch.fail(job, "not yet", retry_after="1s")
            if len(failed) == 100_000:
                all_failed.set()

    pipeline = Pipeline(store, load, retry=RetryPolicy(max_retries=1000), batch_size=10_000)
    ids: list[str] = []
    for start in range(0, 100_000, 10_000):
        ids += pipeline.accept([{"n": start + n} for n in range(10_000)])
    pipeline.load(stop=all_failed)
    assert store.counts.of("lake/kept").retrying == 100_000
    time.sleep(1.0)  # all of them are due now
    new = pipeline.accept([{"n": -1}])
    calls.clear()
    pipeline.settle()
    result = judge(store, "lake/kept", ids + new, pipeline.loaded, histories=5)
    assert result.succeeded == set(ids + new)
    # Full batches, and one for the new job: the retries are not loaded group by group.
    assert len(calls) <= 2 * 11, calls


def test_stale_process_cannot_evict_the_holder(store: Store) -> None:
    """A process is paused after its lock is confirmed and before it uses it."""
    pipeline = Pipeline(store)
    ids = pipeline.accept([{"n": 1}])
    with (
        contextlib.closing(StoreSupervisor(store.database, ttl=0.3)) as stale,
        contextlib.closing(StoreSupervisor(store.database)) as other,
    ):
        lease = stale.acquire("load/lake/kept", "stale")
        assert lease is not None
        stale._renewals.stop()  # paused: it no longer renews
        confirmations: list[bool] = []

        def confirm() -> bool:
            confirmations.append(lease.confirm())
            if len(confirmations) == 1:
                theirs = other.acquire("load/lake/kept", "holder", wait=30)
                assert theirs is not None
                tokens.append(
                    store.loads.take_over("lake/kept", Lane.LOAD, theirs.id, theirs.confirm)
                )
                load = store.loads.claim(tokens[0], 10, 3)
                assert load is not None
                loads.append(load)
            return confirmations[-1]

        tokens: list[Any] = []
        loads: list[Any] = []
        with pytest.raises(FencedOut):
            store.loads.take_over("lake/kept", Lane.LOAD, lease.id, confirm)
        assert confirmations == [True, False]
        store.loads.record(loads[0], LoadVerdict())  # the holder's record counts
    assert store.counts.of("lake/kept").succeeded == len(ids)


def test_loader_killed_in_load(store: Store, store_url: str, recording: Recording) -> None:
    ids = accept(store, [{"n": n, "do": "hang", "times": 1} for n in range(10)])
    with (
        LoaderProcess(store_url, recording.folder) as killed,
        LoaderProcess(store_url, recording.folder) as other,
    ):
        killed.until(lambda: recording.calls(ids[-1]) == 1, 30)
        at_work = _pid_of_call(recording, ids[0])
        first, second = (killed, other) if killed.process.pid == at_work else (other, killed)
        first.kill()
        second.until(lambda: store.counts.of(FLIGHTS).pending == 0, 60)
    result = judge(store, FLIGHTS, ids, recording.loaded())
    assert result.succeeded == set(ids)
    states = [
        entry.state for entry in store.history.transitions(ids[0]) if entry.destination == FLIGHTS
    ]
    assert states[-4:] == ["executing", "unknown", "executing", "succeeded"]
    assert recording.pids()[ids[0]] == [second.process.pid]


def _pid_of_call(recording: Recording, event_id: str) -> int:
    with contextlib.closing(sqlite3.connect(recording.folder / "recording.db")) as connection:
        query = "select pid from calls where id = ?"
        (pid,) = connection.execute(query, (event_id,)).fetchone()
    return int(pid)


def test_stale_loader_is_fenced(store: Store, store_url: str, recording: Recording) -> None:
    recording.hold.touch()
    ids = accept(store, [{"n": n, "do": "wait"} for n in range(10)])
    with LoaderProcess(store_url, recording.folder) as stale:
        stale.until(lambda: recording.calls(ids[-1]) == 1, 30)
        stale.pause(store)  # in the middle of a load, for longer than its lock's time to live
        recording.hold.unlink()
        with LoaderProcess(store_url, recording.folder) as other:
            other.until(lambda: store.counts.of(FLIGHTS).pending == 0, 60)
            after = [store.history.transitions(event_id) for event_id in ids]
            stale.resume()
            stale.until(lambda: "fenced:" in stale.log, 30)
            assert "no longer" in stale.log or "taken over" in stale.log
            assert "fenced" not in other.log
            # It finished its load, but its record was rejected.
            until(lambda: len(recording.loaded()) == 20, 30)
            assert [store.history.transitions(event_id) for event_id in ids] == after
            more = accept(store, [{"n": 1}])
            until(lambda: store.counts.of(FLIGHTS).succeeded == 11, 30)
    assert judge(store, FLIGHTS, ids + more, recording.loaded()).succeeded == {*ids, *more}


@pytest.mark.slow
def test_destination_hangs_past_timeout(store: Store, store_url: str, recording: Recording) -> None:
    jobs = [{"n": n, "hurry": True, "late": True} for n in range(3)]
    ids = accept(store, [*jobs, {**jobs[0], "do": "hang"}])
    with (
        LoaderProcess(store_url, recording.folder, HURRIED) as hurried,
        LoaderProcess(store_url, recording.folder, ALERTS) as alerts,
    ):
        # A slow destination does not slow the others.
        alerts.until(lambda: store.counts.of(ALERTS).pending == 0, 20)
        keep_running([hurried, alerts], store, [HURRIED, ALERTS])
        assert "timed out: warehouse/hurried: the load ran past its time-out" in hurried.log
        assert alerts.starts == 1
    result = judge(store, HURRIED, ids, recording.loaded(HURRIED))
    assert result.discarded == {ids[-1]}
    assert judge(store, ALERTS, ids, recording.loaded(ALERTS)).succeeded == set(ids)


@pytest.mark.slow
def test_job_that_kills_its_process(store: Store, store_url: str, recording: Recording) -> None:
    jobs: list[dict[str, Any]] = [{"n": n} for n in range(8)]
    jobs[5]["do"] = "kill"
    ids = accept(store, jobs)
    with LoaderProcess(store_url, recording.folder) as loader:
        keep_running([loader], store, [FLIGHTS])
        deaths = loader.starts - 1
    result = judge(store, FLIGHTS, ids, recording.loaded())
    assert result.discarded == {ids[5]}
    # Three lost loads, one per halving except the last, and three of the isolated job.
    assert deaths <= 9
    (job,) = store.history.jobs("discarded", FLIGHTS)
    assert job.error is not None
    assert "without a result" in job.error


@pytest.mark.slow
def test_received_outcomes_exactly_once(store: Store, store_url: str, recording: Recording) -> None:
    dice = randomness.seeded()
    ids: list[str] = []
    with LoaderProcess(store_url, recording.folder, FLIGHTS, REPORTED) as loader:
        for _ in range(6):
            do = ("load", "fail", "discard")
            ids += accept(store, [{"n": n, "do": dice.choice(do)} for n in range(50)])
            time.sleep(dice.uniform(0.0, 0.6))  # any moment of the kill
            loader.kill()
            loader.start_again_if_ended()
        keep_running([loader], store, [FLIGHTS, REPORTED])

    ends: dict[str, list[str]] = {}
    for event_id in ids:
        entries = [
            entry for entry in store.history.transitions(event_id) if entry.destination == FLIGHTS
        ]
        ends[event_id] = [entry.state for entry in entries]
    by_parent = _outcomes_by_parent(store)
    for event_id, states in ends.items():
        last_failed = states[-1] == "discarded" and "failed" in states
        failed = states.count("failed") + last_failed
        assert by_parent.get(event_id, []).count("failed") == failed, (event_id, states, by_parent)
        assert by_parent.get(event_id, []).count("discarded") == states.count("discarded")
    result = judge(store, FLIGHTS, ids, recording.loaded())
    assert result.pending == set()
    outcomes = [event.id for event in _outcomes(store)]
    judge(store, REPORTED, outcomes, recording.loaded(REPORTED))


def _outcomes(store: Store) -> list[Any]:
    return [
        event
        for kind in ("failed", "discarded")
        for event in store.log.newest(f"{FLIGHTS}.{kind}", 100_000)
    ]


def _outcomes_by_parent(store: Store) -> dict[str, list[str]]:
    by_parent: dict[str, list[str]] = {}
    for event in _outcomes(store):
        assert event.parent is not None
        by_parent.setdefault(event.parent, []).append(event.event_type.rpartition(".")[2])
    return by_parent


def test_sqlite_gateway_and_loader_share_turns(tmp_path: Path, recording: Recording) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    accepted: dict[str, float] = {}
    over = threading.Event()

    def send(gateway: GatewayProcess) -> None:
        with gateway.client() as client:
            while not over.is_set():
                response = client.post("/v1/airport/departed", json={"n": 1})
                assert response.status_code == 202, response.text
                accepted[response.json()["ids"][0]] = time.time()

    app = "tests.support.pipelines.loading:blacksmith"
    with (
        GatewayProcess(url, app) as gateway,
        LoaderProcess(url, recording.folder) as loader,
        opened(url) as store,
    ):
        loader.until(lambda: "ready" in loader.log)
        senders = [threading.Thread(target=send, args=(gateway,)) for _ in range(8)]
        for sender in senders:
            sender.start()
        time.sleep(6)  # under load for so long
        over.set()
        for sender in senders:
            sender.join()
        loader.until(lambda: store.counts.of(FLIGHTS).pending == 0, 60)
        result = judge(store, FLIGHTS, accepted, recording.loaded())
        assert result.succeeded == set(accepted)
        loaded = recording.times()
        waits = sorted(loaded[event_id] - accepted_at for event_id, accepted_at in accepted.items())
        p99 = waits[len(waits) * 99 // 100]
        print(f"{len(accepted)} events, p99 {p99:.3f} s until loaded")
        assert len(accepted) > 300
        assert p99 < 1.0, "the gateway's commits starve the loader"
        assert loader.stop() == 0


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_postgres_restarted_under_load(
    durable_postgres: PostgresServer, recording: Recording, mode: Any
) -> None:
    url = durable_postgres.create_database()
    with opened(url) as store, LoaderProcess(url, recording.folder) as loader:
        ids = accept(store, [{"n": n} for n in range(100)])
        for seconds in (0.0, 1.0, 5.0):  # the last is longer than the lock's time to live
            ids += _restart_in_a_load(durable_postgres, mode, seconds, store, loader, recording)
            ids += accept(store, [{"n": n} for n in range(100)])
        keep_running([loader], store, [FLIGHTS])
        assert loader.starts == 1
    with contextlib.closing(open_store(url)) as store:
        result = judge(store, FLIGHTS, ids, recording.loaded())
        assert result.succeeded == set(ids)


def _restart_in_a_load(
    server: PostgresServer,
    mode: Any,
    seconds: float,
    store: Store,
    loader: LoaderProcess,
    recording: Recording,
) -> list[str]:
    before = len(recording.loaded())
    recording.hold.touch()
    ids = accept(store, [{"n": n, "do": "wait"} for n in range(10)])
    loader.until(lambda: recording.calls(ids[-1]) == 1)
    server.stop(mode)
    recording.hold.unlink()
    loader.until(lambda: len(recording.loaded()) >= before + 10)
    time.sleep(seconds)  # meanwhile it fails to record
    server.start()
    keep_running([loader], store, [FLIGHTS])
    return ids
