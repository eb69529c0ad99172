"""`blacksmith worker`: one loads, another stands by, and both end properly."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from click.testing import CliRunner
from dagster import AssetKey, DagsterInstance

from blacksmith_dagster import (
    CDC,
    Batch,
    Blacksmith,
    Destination,
    Event,
    Listener,
    Request,
    Schedule,
    Source,
    Subscription,
)
from blacksmith_dagster.cli import main
from blacksmith_dagster.ingest import ingest
from blacksmith_dagster.pubsub import Publisher, open_pubsub
from blacksmith_dagster.store import Store, open_store
from tests.support.dagster_home import make_home
from tests.support.pipelines.realtime import (
    FULL,
    ODD,
    RECORD,
    STUCK,
    Loaded,
    accepted,
    blacksmith,
    inbox,
    loaded,
    record,
    sink,
)
from tests.support.processes.blacksmith import BlacksmithProcess
from tests.support.processes.realtime_system import APP
from tests.support.services import free_port
from tests.support.waiting import until

alerts = Destination("alerts", schedule=Schedule("@every 1h", realtime=True))
ALERTS = "alerts/late"
TRANSLATED = "tests.support.pipelines.translated_definitions"


@alerts.event(receives=accepted)
def late(batch: Batch[Any]) -> None:
    """Record every event, too."""
    record(batch)


two = Blacksmith(sources=[inbox], destinations=[sink, alerts])

LEASE = 15.0  # seconds until another worker has the lock of a killed one


class Bench:
    """A store, a publisher of notifications, and workers on the store."""

    def __init__(self, store_url: str, folder: Path) -> None:
        self.folder = folder
        self.hold = folder / "hold"
        self.store: Store = open_store(store_url, upgrade=True)
        self.store.register(blacksmith)
        pubsub = open_pubsub("postgres", store_url)
        assert pubsub is not None
        self._publisher: Publisher = pubsub.publisher()
        self._url = store_url
        self._workers: list[BlacksmithProcess] = []

    def worker(self, *arguments: str, app: str = APP, **env: str) -> BlacksmithProcess:
        """Start a worker and wait until it is ready."""
        env = {"BLACKSMITH_PUBSUB_URL": "postgres", RECORD: str(self.folder / "record"), **env}
        worker = BlacksmithProcess(["worker", f"--app={app}", *arguments], self._url, env)
        self._workers.append(worker)
        worker.start()
        until(lambda: "blacksmith worker: " in worker.log, 60, worker.log)
        return worker

    def send(self, *data: dict[str, Any], app: Blacksmith = blacksmith) -> list[str]:
        """Commit events and publish notifications; returns their ids."""
        [ids] = ingest(app, self.store, accepted, [Request.of(list(data))])
        self._publisher.publish([FULL, ODD, STUCK, ALERTS])
        return ids

    def loaded(self, path: str = FULL) -> list[Loaded]:
        return [load for load in loaded(self.folder / "record") if load.path == path]

    def has(self, ids: list[str]) -> Callable[[], bool]:
        return lambda: {load.id for load in self.loaded()} >= set(ids)

    def close(self) -> None:
        self.hold.unlink(missing_ok=True)
        for worker in self._workers:
            worker.kill()
        self._publisher.close()
        self.store.close()


@pytest.fixture
def bench(postgres_url: str, tmp_path: Path) -> Iterator[Bench]:
    with contextlib.closing(Bench(postgres_url, tmp_path)) as bench:
        yield bench


def test_one_loads_and_another_takes_over_when_it_is_killed(bench: Bench) -> None:
    first, second = bench.worker(), bench.worker()
    until(bench.has(bench.send({"n": 0}, {"n": 1})))
    for n in range(2, 6):
        until(bench.has(bench.send({"n": n})))
    (pid,) = {load.pid for load in bench.loaded()}
    holder, other = (first, second) if pid == first.pid else (second, first)
    os.kill(holder.pid, signal.SIGKILL)
    killed = time.monotonic()
    ids = bench.send({"n": 6}, {"n": 7})
    until(bench.has(ids), LEASE + 10)
    pids = {load.pid for load in bench.loaded() if load.id in ids}
    assert pids == {other.pid}
    assert time.monotonic() - killed > 1, "it did not wait for the lock"
    began = time.monotonic()
    until(bench.has(bench.send({"n": 8})))
    assert time.monotonic() - began < 1  # notifications wake it like the first one
    assert len(bench.loaded()) == 9
    assert bench.store.counts.of(FULL).succeeded == 9


def test_a_worker_that_is_stopped_hands_over_at_once(bench: Bench) -> None:
    first = bench.worker()
    until(bench.has(bench.send({"n": 0})))
    second = bench.worker()
    assert first.stop() == 0
    ids = bench.send({"n": 2})
    until(bench.has(ids), 5)
    assert bench.loaded()[-1].pid == second.pid
    assert second.stop() == 0
    for worker in (first, second):
        assert "Traceback" not in worker.log
        assert len(worker.log.splitlines()) == 1, worker.log


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_lets_it_finish_its_batch(bench: Bench, by: signal.Signals) -> None:
    bench.hold.touch()
    worker = bench.worker()
    (begun,) = bench.send({"n": 0, "waits": True})
    until(lambda: bench.store.counts.of(FULL).executing == 1)
    until((bench.folder / "waiting").exists)
    os.kill(worker.pid, by)
    (later,) = bench.send({"n": 2})
    with pytest.raises(psutil.TimeoutExpired):
        psutil.Process(worker.pid).wait(0.5)
    bench.hold.unlink()
    assert worker.wait() == 0
    assert [load.id for load in bench.loaded()] == [begun]
    assert bench.store.history.transitions(begun)[-1].state == "succeeded"
    assert bench.store.history.transitions(later)[-1].state == "awaiting"
    assert "Traceback" not in worker.log


def test_a_load_that_hangs_ends_the_process(bench: Bench) -> None:
    worker = bench.worker()
    (hanging,) = bench.send({"n": 0, "hangs": True})
    until(lambda: bench.loaded(STUCK))
    assert worker.wait(10) == 1
    assert "Traceback" not in worker.log
    (output,) = [line for line in worker.log.splitlines() if line.startswith("Error: ")]
    assert f"{STUCK}: the load ran past its time-out of 0.5 s" in output
    assert "end this process" in output
    assert [load.id for load in bench.loaded()] == [hanging]  # the other event was loaded
    states = {
        transition.destination: transition.state
        for transition in bench.store.history.transitions(hanging)
    }
    assert states[STUCK] == "unknown"


def test_worker_health_tells_a_hung_load(bench: Bench) -> None:
    bench.hold.touch()
    port = free_port()
    worker = bench.worker(f"--admin-port={port}")
    until(lambda: health(port, "ready") == (200, {"ready": True}))
    assert health(port, "live") == (200, {"live": True})
    bench.send({"n": 0, "hangs": True, "waits": True})
    # `stuck` hangs; the process ends when `full`, which is within its time-out, has returned.
    status, state = until(lambda: not_live(port))
    assert status == 503
    assert state["live"] is False
    (problem,) = state["problems"]
    assert f"loading {STUCK} has ended: {STUCK}: the load ran past its time-out" in problem
    bench.hold.unlink()
    assert worker.wait(20) == 1
    assert [load.path for load in bench.loaded(FULL)] == [FULL]


def health(port: int, name: str) -> tuple[int, dict[str, Any]]:
    response = httpx.get(f"http://127.0.0.1:{port}/health/{name}", trust_env=False)
    return response.status_code, response.json()


def not_live(port: int) -> tuple[int, dict[str, Any]] | None:
    answer = health(port, "live")
    return answer if answer[0] != 200 else None


def test_materializations_are_reported_to_dagster_home(
    bench: Bench, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = tmp_path_factory.mktemp("dagster")
    make_home(home)
    worker = bench.worker(DAGSTER_HOME=str(home))
    until(bench.has(bench.send({"n": 0}, {"n": 1})))
    until(bench.has(bench.send({"n": 2})))
    until(lambda: bench.loaded(ODD))
    assert worker.stop() == 0
    today = datetime.now(UTC).date().isoformat()
    with DagsterInstance.from_config(str(home)) as instance:
        for name, count in (("full", 3), ("odd", 1)):
            reported = instance.fetch_materializations(AssetKey(["sink", name]), limit=10).records
            assert {event.partition_key for event in reported} == {today}
            materializations = [
                event.asset_materialization for event in reported if event.asset_materialization
            ]
            assert (
                sum(int(str(event.metadata["events_loaded"].value)) for event in materializations)
                == count
            )
    assert "reported to DAGSTER_HOME" in worker.log
    assert "Traceback" not in worker.log


def test_worker_reports_under_translated_keys(
    bench: Bench, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = tmp_path_factory.mktemp("dagster")
    make_home(home)
    worker = bench.worker(f"--definitions={TRANSLATED}:defs", DAGSTER_HOME=str(home))
    until(bench.has(bench.send({"n": 0})))
    assert worker.stop() == 0
    with DagsterInstance.from_config(str(home)) as instance:
        assert instance.get_latest_materialization_event(AssetKey(["raw", "sink", "full"]))
        assert not instance.get_latest_materialization_event(AssetKey(["sink", "full"]))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            f"{TRANSLATED}:blacksmith",
            "is a Blacksmith; name the Definitions(...), or a function with",
        ),
        (f"{TRANSLATED}:others", "without inbox/accepted, sink/full, sink/odd, sink/stuck; merge"),
    ],
)
def test_wrong_definitions_are_reported(
    monkeypatch: pytest.MonkeyPatch, postgres_url: str, tmp_path: Path, name: str, says: str
) -> None:
    monkeypatch.setenv("BLACKSMITH_STORE_URL", postgres_url)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    arguments = [f"--app={APP}", f"--definitions={name}"]
    assert says in run(monkeypatch, *arguments, pubsub="postgres")


def test_only_the_named_destination_is_loaded(bench: Bench) -> None:
    bench.store.register(two)
    worker = bench.worker("alerts", app=f"{__name__}:two")
    assert f"blacksmith worker: {ALERTS}, store" in worker.log
    ids = bench.send({"n": 0}, {"n": 1}, app=two)
    until(lambda: [load.id for load in bench.loaded(ALERTS)] == ids)
    everything = bench.worker(app=f"{__name__}:two")
    until(bench.has(ids))
    assert {load.pid for load in bench.loaded(ALERTS)} == {worker.pid}
    assert {load.pid for load in bench.loaded(FULL)} == {everything.pid}


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str, pubsub: str) -> str:
    """The output of a worker that does not start."""
    monkeypatch.setenv("BLACKSMITH_PUBSUB_URL", pubsub)
    result = CliRunner().invoke(main, ["worker", *arguments])
    assert result.exit_code == 1, result.output
    (line,) = result.output.splitlines()
    return line


def test_without_a_pubsub_it_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    output = run(monkeypatch, f"--app={APP}", pubsub="")
    assert "set BLACKSMITH_PUBSUB_URL" in output


def test_an_unknown_destination_is_reported(
    monkeypatch: pytest.MonkeyPatch, postgres_url: str
) -> None:
    monkeypatch.setenv("BLACKSMITH_STORE_URL", postgres_url)
    output = run(monkeypatch, f"--app={APP}", "sink", "sinc", pubsub="postgres")
    assert "'sinc' is not a destination with realtime events" in output
    assert "has sink" in output


def test_an_application_without_realtime_events_is_reported(
    monkeypatch: pytest.MonkeyPatch, postgres_url: str
) -> None:
    monkeypatch.setenv("BLACKSMITH_STORE_URL", postgres_url)
    app = "tests.support.pipelines.loading:blacksmith"
    output = run(monkeypatch, f"--app={app}", pubsub="postgres")
    assert "no destination event is realtime" in output
    assert "schedule=Schedule(realtime=True)" in output


# ------------------------------------------------------------------------------ listening

counters = Source("counters")
COUNTED = "counters/counted"


@counters.event(CDC())
def counted(listener: Listener) -> Iterator[Event[int]]:
    """Count up to the number in the test's file."""
    while not listener.wait(0.01):
        start, end = listener.cursor or 0, int(Path(os.environ[COUNT]).read_text())
        for number in range(start + 1, end + 1):
            listener.cursor = number
            yield Event(number)


COUNT = "BLACKSMITH_TEST_COUNT"
both = Blacksmith(sources=[inbox, counters], destinations=[sink])
BOTH = f"{__name__}:both"


def counts(bench: Bench) -> list[int]:
    return [int(event.payload) for event in reversed(bench.store.log.newest(COUNTED, 100_000))]


def test_a_worker_of_only_sources_needs_no_broker(bench: Bench) -> None:
    bench.store.register(both)
    count = bench.folder / "count"
    count.write_text("100")
    env = {"BLACKSMITH_PUBSUB_URL": "", COUNT: str(count)}
    first, second = (bench.worker("counters", app=BOTH, **env) for _ in range(2))
    until(lambda: counts(bench) == list(range(1, 101)))
    assert "notifications" not in first.log
    assert first.stop() == 0
    count.write_text("200")
    until(lambda: counts(bench) == list(range(1, 201)))
    assert second.stop() == 0
    assert len(first.log.splitlines()) == 1, first.log


def test_a_worker_without_names_loads_and_listens(bench: Bench) -> None:
    bench.store.register(both)
    count = bench.folder / "count"
    count.write_text("10")
    worker = bench.worker(app=BOTH, **{COUNT: str(count)})
    assert f"{STUCK}, {COUNTED}, store" in worker.log
    until(lambda: len(counts(bench)) == 10)
    until(bench.has(bench.send({"n": 0}, app=both)))
    assert worker.stop() == 0


def test_a_subscription_without_a_broker_is_reported(
    monkeypatch: pytest.MonkeyPatch, postgres_url: str
) -> None:
    monkeypatch.setenv("BLACKSMITH_STORE_URL", postgres_url)
    output = run(monkeypatch, f"--app={__name__}:subscribing", "orders", pubsub="")
    assert "orders/placed subscribes to a broker, but none is configured" in output


orders = Source("orders")
orders.accept("placed", on=Subscription("orders"))
subscribing = Blacksmith(sources=[orders], destinations=[])
