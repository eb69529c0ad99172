"""A run that listens: what launches it, what it reports to Dagster, and how it ends and is followed."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from dagster import (
    AssetKey,
    DagsterExecutionInterruptedError,
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    SensorDefinition,
    build_sensor_context,
)

from blacksmith_dagster import CDC, Blacksmith, Event, Listener, Secret, Source, Subscription
from blacksmith_dagster.orchestration import (
    BlacksmithResource,
    WarmRuns,
    build_definitions,
    warm_runs,
)
from blacksmith_dagster.orchestration.warm_runs import ENDING_TAG
from blacksmith_dagster.store import open_store
from blacksmith_dagster.supervisor import open_supervisor
from tests.support.waiting import until

CHANGED = "shop/changed"
KEY = AssetKey(["shop", "changed"])
LOCK = f"listen/{CHANGED}"


class Shop:
    """Source `shop` with the CDC event `changed`, a log that the test writes, and short runs."""

    def __init__(self, store_url: str) -> None:
        self.resource = BlacksmithResource(store_url=store_url)
        self.store = open_store(store_url, upgrade=True)
        self.supervisor = open_supervisor(None, self.store.database)
        self.lines = 0
        self.on_line: Callable[[int], None] = lambda number: None
        shop = Source("shop")

        @shop.event(CDC())
        def changed(listener: Listener) -> Iterator[Event[int]]:
            at = listener.cursor or 0
            while not listener.wait(0.01):
                listener.lag = max(self.lines - at, 0) or 7
                while at < self.lines:
                    at += 1
                    self.on_line(at)
                    listener.cursor = at
                    yield Event(at)

        self.app = Blacksmith(sources=[shop], destinations=[])
        self.build(WarmRuns(age="3s", notice="1s"))
        self.cursor: str | None = None
        self.store.register(self.app)

    def build(self, warm: WarmRuns) -> None:
        self.definitions = build_definitions(
            self.app, start_date="2026-01-01", resource=self.resource, warm=warm
        )

    def run(self, instance: DagsterInstance, **options: Any) -> Any:
        """A listening run in this process."""
        job = self.definitions.resolve_job_def("listen_shop")
        return job.execute_in_process(instance=instance, **options)

    def look(self, instance: DagsterInstance) -> Any:
        """A tick of the sensor; the next gets its cursor."""
        tick, self.cursor = look(self.definitions, self.resource, instance, self.cursor)
        return tick

    @property
    def stored(self) -> list[int]:
        return [int(event.payload) for event in reversed(self.store.log.newest(CHANGED, 10_000))]

    def close(self) -> None:
        self.supervisor.close()
        self.store.close()


def look(
    definitions: Any, resource: BlacksmithResource, instance: DagsterInstance, cursor: Any = None
) -> tuple[Any, str | None]:
    (sensor,) = [sensor for sensor in definitions.sensors if sensor.name == "listen_shop_sensor"]
    assert isinstance(sensor, SensorDefinition)
    resources = {"blacksmith": resource}
    with build_sensor_context(instance, cursor, resources=resources) as context:
        tick = sensor.evaluate_tick(context)
    return tick, tick.cursor


@pytest.fixture
def shop(store_url: str) -> Iterator[Shop]:
    shop = Shop(store_url)
    try:
        yield shop
    finally:
        shop.close()


def outputs(result: Any) -> dict[str, Any]:
    (output,) = [event for event in result.all_events if event.is_successful_output]
    return {name: value.value for name, value in output.step_output_data.metadata.items()}


def observations(instance: DagsterInstance) -> list[dict[str, Any]]:
    records = instance.fetch_observations(KEY, limit=100).records
    observed = [record.asset_observation for record in reversed(records)]
    return [
        {name: value.value for name, value in observation.metadata.items()}
        for observation in observed
        if observation
    ]


def test_the_job_is_tagged_for_limits_and_ends_at_the_latest(shop: Shop) -> None:
    job = shop.definitions.resolve_job_def("listen_shop")
    assert job.tags["blacksmith/listen"] == "shop"
    assert job.tags["dagster/max_runtime"] == "67"  # 3 s of age twice, 1 s of notice, 1 m to end
    assert not shop.definitions.resolve_job_def("listen_shop").asset_layer.executable_asset_keys


def test_a_source_that_is_only_sent_to_has_no_listening_run(store_url: str) -> None:
    airport = Source("airport")
    airport.accept("departed")
    app = Blacksmith(sources=[airport], destinations=[])
    definitions = build_definitions(
        app, start_date="2026-01-01", resource=BlacksmithResource(store_url=store_url)
    )
    assert [job.name for job in definitions.jobs or ()] == []
    assert [sensor.name for sensor in definitions.sensors or ()] == ["blacksmith_report"]


def test_a_run_keeps_events_reports_them_and_ends_when_it_is_old(
    shop: Shop, instance: DagsterInstance
) -> None:
    shop.lines = 300
    result = shop.run(instance)
    assert shop.stored == list(range(1, 301))
    metadata = outputs(result)
    assert metadata["stop_reason"] == "3s old, and another takes over"
    assert metadata["events_received"] == 300
    assert metadata["by_event"] == {CHANGED: 300}
    (reported,) = observations(instance)
    assert (reported["events_received"], reported["lag_unit"], reported["held_by"]) == (
        300,
        "bytes",
        result.run_id,
    )
    (run,) = instance.get_runs()
    assert ENDING_TAG in run.tags
    assert not shop.supervisor.status(LOCK).held


def test_lag_is_reported_while_it_stays(
    shop: Shop, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only at its end; and each event is reported once."""
    monkeypatch.setattr(warm_runs, "_REPORT_SECONDS", 0.5)
    monkeypatch.setattr("blacksmith_dagster.ingest.listeners.NOTE_INTERVAL", 0.1)
    shop.lines = 5
    shop.run(instance)
    reported = observations(instance)
    assert len(reported) > 2
    assert sum(metadata["events_received"] for metadata in reported) == 5
    assert reported[-1]["lag"] == 7


def test_sigterm_ends_it_well_and_keeps_what_was_read(
    shop: Shop, instance: DagsterInstance
) -> None:
    def terminate(number: int) -> None:
        if number == 50:
            os.kill(os.getpid(), signal.SIGTERM)

    shop.build(WarmRuns())
    shop.on_line, shop.lines = terminate, 10_000
    result = shop.run(instance)
    assert outputs(result)["stop_reason"] == "asked to stop"
    assert shop.stored[0] == 1
    assert shop.store.log.cursor(f"cdc/{CHANGED}") == str(len(shop.stored))
    assert not shop.supervisor.status(LOCK).held


def test_a_terminated_run_commits_what_was_read_and_ends_canceled(
    shop: Shop, instance: DagsterInstance
) -> None:
    def terminate(number: int) -> None:
        if number == 50:
            (run,) = instance.get_runs()
            instance.report_run_canceling(run)
            os.kill(os.getpid(), signal.SIGTERM)

    shop.build(WarmRuns())
    shop.on_line, shop.lines = terminate, 10_000
    with pytest.raises(DagsterExecutionInterruptedError):
        shop.run(instance)
    (run,) = instance.get_runs()
    assert run.status is DagsterRunStatus.CANCELED
    assert shop.stored == list(range(1, len(shop.stored) + 1))
    assert shop.store.log.cursor(f"cdc/{CHANGED}") == str(len(shop.stored))
    (reported,) = observations(instance)
    assert reported["events_received"] == len(shop.stored)


def test_a_run_that_follows_continues_without_a_gap(
    shop: Shop, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second waits for the locks of the first, which ends when it is there."""
    monkeypatch.setattr(warm_runs, "_READY_SECONDS", 0.5)
    ended: list[str] = []

    def run() -> None:
        result = shop.run(instance)
        ended.append(result.run_id)

    shop.lines = 10
    first = threading.Thread(target=run)
    first.start()
    until(lambda: shop.supervisor.status(LOCK).held)
    holder = shop.supervisor.status(LOCK).holder
    until(lambda: ENDING_TAG in instance.get_runs()[-1].tags)
    assert "follows" not in str(shop.look(instance).skip_message)
    second = threading.Thread(target=run)
    second.start()
    until(lambda: shop.supervisor.status(LOCK).holder not in (holder, None))
    shop.lines = 20
    until(lambda: len(shop.stored) == 20)
    first.join(60)
    second.join(60)
    assert shop.stored == list(range(1, 21))
    assert ended[0] == holder


def test_a_run_that_has_a_bug_fails(shop: Shop, instance: DagsterInstance) -> None:
    def report(*_: Any) -> None:
        raise SystemError("a bug")

    shop.lines = 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("blacksmith_dagster.ingest.listeners._ListenLoop.work", report)
        with pytest.raises(SystemError, match="a bug"):
            shop.run(instance)
    (run,) = instance.get_runs()
    assert run.status is DagsterRunStatus.FAILURE


# ------------------------------------------------------------------------------ the sensor


def test_a_run_is_kept_alive_always(shop: Shop, instance: DagsterInstance) -> None:
    assert shop.look(instance).run_requests[0].run_key == "after-none"
    run = instance.add_run(DagsterRun(job_name="listen_shop", status=DagsterRunStatus.STARTED))
    lease = shop.supervisor.acquire(LOCK, run.run_id)
    assert lease
    assert shop.look(instance).skip_message == f"run {run.run_id} is under way"
    instance.add_run_tags(run.run_id, {ENDING_TAG: "true"})
    assert shop.look(instance).run_requests[0].run_key == f"after-{run.run_id}"
    lease.release()


def test_no_run_is_launched_where_a_worker_listens(shop: Shop, instance: DagsterInstance) -> None:
    lease = shop.supervisor.acquire(LOCK, "host:42")
    assert lease
    assert shop.look(instance).skip_message == f"{CHANGED} is listened for by host:42"
    lease.release()
    assert shop.look(instance).run_requests


def test_a_subscription_without_a_broker_is_reported(
    store_url: str, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BLACKSMITH_PUBSUB_URL", raising=False)
    open_store(store_url, upgrade=True).close()

    def look_at(*subscriptions: Subscription, also: bool = False) -> Any:
        shop = Source("shop")
        for number, subscription in enumerate(subscriptions):
            shop.accept(f"ordered_{number}", on=subscription)
        if also:
            shop.event(CDC(), name="changed")(lambda listener: iter(()))
        app = Blacksmith(sources=[shop], destinations=[])
        resource = BlacksmithResource(store_url=store_url)
        definitions = build_definitions(app, start_date="2026-01-01", resource=resource)
        return look(definitions, resource, instance)[0]

    skipped = look_at(Subscription("orders")).skip_message
    assert "no broker is configured for shop/ordered_0: set BLACKSMITH_PUBSUB_URL" in skipped
    assert look_at(Subscription("orders", url=Secret("ORDERS_URL"))).run_requests
    assert look_at(Subscription("orders"), also=True).run_requests
    monkeypatch.setenv("BLACKSMITH_PUBSUB_URL", "nats://127.0.0.1:1")
    assert look_at(Subscription("orders")).run_requests
