"""A team's own scheduler serves every path that loads."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from dagster import AssetKey, DagsterInstance

from blacksmith_dagster import Batch, Blacksmith, Destination, Schedule
from blacksmith_dagster.backends import Backends
from blacksmith_dagster.cli import main
from blacksmith_dagster.composition import build_realtime, open_scheduler
from blacksmith_dagster.errors import DeclarationError
from blacksmith_dagster.orchestration import build_definitions
from blacksmith_dagster.scheduler import StandardScheduler, Summary
from blacksmith_dagster.settings import Settings
from blacksmith_dagster.store.records import Lane
from tests.support.messages import Messages
from tests.support.pipelines.one_event import departed, ingest
from tests.support.waiting import until

APP = f"--app={__name__}:blacksmith"
FLIGHTS = "warehouse/flights"
TODAY = datetime.now(UTC).date().isoformat()


class Recording:
    """Loads as the standard scheduler does, and records the lane of each call."""

    def __init__(self) -> None:
        self._standard = StandardScheduler()
        self.lanes: list[Lane] = []

    def drain(self, app: Any, event: Any, **given: Any) -> Summary:
        assert (event.path, set(given)) == (
            FLIGHTS,
            {"store", "token", "lease", "run", "stop", "report"},
        )
        self.lanes.append(given["token"].lane)
        return self._standard.drain(app, event, **given)


class Broker:
    """A broker in this process."""

    label = "a broker in this process"

    def __init__(self) -> None:
        self.messages = Messages()

    def subscriber(self, _: str) -> Messages:
        return self.messages

    def publisher(self) -> "Broker":
        return self

    def publish(self, paths: Any) -> None:
        self.messages.say(*paths)

    def close(self) -> None: ...


scheduler = Recording()
warehouse = Destination("warehouse", schedule=Schedule(realtime=True))


@warehouse.event(receives=departed)
def flights(batch: Batch[Any]) -> None:
    for job in batch:
        if job.data["n"] < 0:
            batch.fail(job, "no such flight")


blacksmith = Blacksmith(sources=[departed.source], destinations=[warehouse], scheduler=scheduler)


@pytest.fixture
def backends(store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backends]:
    monkeypatch.setenv("BLACKSMITH_HOME", str(tmp_path))
    monkeypatch.setenv("BLACKSMITH_STORE_URL", store_url)
    with Backends(Settings.read(), upgrade=True) as backends:
        backends.store.register(blacksmith)
        yield backends


def test_own_scheduler_serves_every_path(backends: Backends, instance: DagsterInstance) -> None:
    store = backends.store
    definitions = build_definitions(blacksmith, start_date=TODAY)

    def lanes() -> set[Lane]:
        served = set(scheduler.lanes)
        scheduler.lanes.clear()
        return served

    def command(*arguments: str) -> str:
        result = CliRunner().invoke(main, [*arguments, APP])
        assert result.exit_code == 0, result.output
        return result.stdout

    lanes()
    _, failing = ingest(store, [{"n": 1}, {"n": -1}])
    job = definitions.resolve_job_def("load_warehouse")
    assert job.execute_in_process(instance=instance).success
    assert lanes() == {Lane.LOAD}
    assert (store.counts.of(FLIGHTS).succeeded, store.counts.of(FLIGHTS).retrying) == (1, 1)

    ingest(store, [{"n": 2}])
    broker = Broker()
    backends.__dict__["pubsub"] = broker
    with open_scheduler(blacksmith) as own:
        loop = build_realtime(
            blacksmith, warehouse, own, backends, holder="a test", report=lambda *_: None
        )
        loop.start()
        until(lambda: store.counts.of(FLIGHTS).succeeded == 2)
        loop.stop()
    assert lanes() == {Lane.LOAD}

    assert "2 succeeded" in command("replay", FLIGHTS, f"--from={TODAY}", "--mode=all")
    assert lanes() == {Lane.REPLAY}
    assert "1 of 1 discarded" in command("jobs", "discard", FLIGHTS, failing, "--why=not wanted")
    assert lanes() == {Lane.DISCARD}
    assert store.counts.of(FLIGHTS).discarded == 1
    replay = definitions.resolve_implicit_global_asset_job_def()
    assert (
        replay.get_subset(asset_selection={AssetKey(["warehouse", "flights"])})
        .execute_in_process(
            instance=instance,
            partition_key=TODAY,
            run_config={"ops": {"replay__warehouse__flights": {"config": {"modes": ["all"]}}}},
        )
        .success
    )
    assert lanes() == {Lane.REPLAY}


def test_a_wrong_scheduler_is_reported_when_the_definitions_are_built() -> None:
    app = Blacksmith(sources=[], destinations=[], scheduler=object())
    with pytest.raises(DeclarationError, match="object has no method drain"):
        build_definitions(app, start_date="2026-01-01")
