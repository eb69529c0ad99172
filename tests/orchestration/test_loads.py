"""A load job: what it loads, and what it reports to Dagster."""

import json
import logging
import os
import signal
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from dagster import (
    AssetCheckSeverity,
    AssetKey,
    DagsterEventType,
    DagsterInstance,
    ExecuteInProcessResult,
)

from blacksmith_dagster import Batch
from blacksmith_dagster.errors import FencedOut, Timeout, Unavailable
from blacksmith_dagster.scheduler import StandardScheduler, Summary
from blacksmith_dagster.supervisor import here, open_supervisor
from tests.support.pipelines.orchestration import TODAY, Pipeline

FLIGHTS = AssetKey(["lake", "flights"])


def reported(
    instance: DagsterInstance, result: ExecuteInProcessResult, op: str = "lake__flights"
) -> dict[str, dict[str, Any]]:
    """What was reported of a load to each partition, by day, from the run's log."""
    entries = instance.all_logs(result.run_id, of_type=DagsterEventType.ASSET_MATERIALIZATION)
    events = [entry.dagster_event for entry in entries if entry.dagster_event]
    materializations = [
        event.step_materialization_data.materialization for event in events if event.step_key == op
    ]
    assert len({materialization.partition for materialization in materializations}) == len(
        materializations
    )
    return {
        materialization.partition or "": {
            name: value.value for name, value in materialization.metadata.items()
        }
        for materialization in materializations
    }


def checks(result: ExecuteInProcessResult, op: str = "lake__flights") -> dict[str, Any]:
    return {
        evaluation.check_name: evaluation
        for evaluation in result.get_asset_check_evaluations()
        if evaluation.asset_key == AssetKey(op.split("__"))
    }


def test_each_day_is_reported_once_with_its_counts(
    store_url: str, instance: DagsterInstance
) -> None:
    pipeline = Pipeline(store_url, batch_size=4)
    days = [TODAY - timedelta(days=2), TODAY - timedelta(days=1), TODAY]
    ids = [
        event_id
        for count, day in zip((3, 5, 7), days, strict=True)
        for event_id in pipeline.receive(count, day)
    ]
    result = pipeline.run(instance)
    assert pipeline.loaded["flights"] == ids
    by_day = reported(instance, result)
    assert {day: metadata["events_loaded"] for day, metadata in by_day.items()} == {
        day.isoformat(): count for day, count in zip(days, (3, 5, 7), strict=True)
    }
    assert by_day[TODAY.isoformat()]["loads"] == 2  # of the four loads
    assert by_day[TODAY.isoformat()]["events_failed"] == 0
    assert instance.get_materialized_partitions(FLIGHTS) == {day.isoformat() for day in days}


def test_a_discarded_job_fails_the_check_and_not_the_run(
    store_url: str, instance: DagsterInstance
) -> None:
    def judge(batch: Batch[Any]) -> None:
        batch.discard(batch[0], "no such airport")

    pipeline = Pipeline(store_url, judge=judge)
    ids = pipeline.receive(3)
    result = pipeline.run(instance)
    assert result.success
    day = reported(instance, result)[TODAY.isoformat()]
    assert (day["events_loaded"], day["events_discarded"]) == (2, 1)
    assert day["first_error"] == "no such airport"
    check = checks(result)["no_discarded"]
    assert not check.passed
    assert check.severity is AssetCheckSeverity.WARN
    assert check.metadata["jobs_discarded"].value == 1
    assert checks(result)["nothing_overdue"].passed
    # The receiver of the outcome is an op of the same run.
    assert pipeline.loaded["undeliverable"] == [ids[0]]
    assert checks(result, "lake__undeliverable")["no_discarded"].passed


def test_a_failed_job_is_reported_and_waits(store_url: str, instance: DagsterInstance) -> None:
    def judge(batch: Batch[Any]) -> None:
        batch.fail(batch[0], "not now")

    pipeline = Pipeline(store_url, judge=judge)
    pipeline.receive(2)
    result = pipeline.run(instance)
    day = reported(instance, result)[TODAY.isoformat()]
    assert (day["events_loaded"], day["events_failed"]) == (1, 1)
    assert checks(result)["nothing_overdue"].metadata["jobs_retrying"].value == 1


def test_a_day_of_which_nothing_was_loaded_is_observed_and_not_materialized(
    store_url: str, instance: DagsterInstance
) -> None:
    def judge(batch: Batch[Any]) -> None:
        raise RuntimeError("the lake is frozen")

    pipeline = Pipeline(store_url, judge=judge)
    pipeline.receive(2)
    result = pipeline.run(instance)
    assert result.success
    assert reported(instance, result) == {}
    (record,) = instance.fetch_observations(FLIGHTS, limit=1).records
    observed = record.asset_observation
    assert observed is not None
    assert observed.partition == TODAY.isoformat()
    assert observed.metadata["events_failed"].value == 2
    assert "the lake is frozen" in str(observed.metadata["first_error"].value)


def test_a_held_lock_ends_the_run_well_and_says_who_holds_it(
    store_url: str, instance: DagsterInstance
) -> None:
    pipeline = Pipeline(store_url)
    pipeline.receive(1)
    store = pipeline.open()
    supervisor = open_supervisor(None, store.database)
    try:
        lease = supervisor.acquire("load/lake/flights", "run-of-another")
        assert lease is not None
        with lease:
            result = pipeline.run(instance)
    finally:
        supervisor.close()
        store.close()
    assert result.success
    assert pipeline.loaded["flights"] == []
    assert outputs(result)["lake__flights"]["skipped"] == f"held by run-of-another at {here()}"
    assert reported(instance, result) == {}


def outputs(result: ExecuteInProcessResult) -> dict[str, dict[str, Any]]:
    """The metadata of each op's output."""
    return {
        event.step_key or "": {
            name: value.value for name, value in event.step_output_data.metadata.items()
        }
        for event in result.all_node_events
        if event.event_type is DagsterEventType.STEP_OUTPUT
    }


def test_a_signal_ends_the_run_after_the_batch_under_way(
    store_url: str, instance: DagsterInstance
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    pipeline = Pipeline(
        store_url, batch_size=1, judge=lambda _: os.kill(os.getpid(), signal.SIGTERM)
    )
    pipeline.receive(3)
    pipeline.receive(1, to=["lake/undeliverable"])
    result = pipeline.run(instance)
    assert result.success
    assert len(pipeline.loaded["flights"]) == 1
    assert reported(instance, result)[TODAY.isoformat()]["events_loaded"] == 1
    assert pipeline.loaded["undeliverable"] == []  # an op that has not begun does not begin
    for metadata in outputs(result).values():
        assert metadata["stop_reason"] == "stopped before all that is due was loaded"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_of_many_loads_writes_few_rows(instance: DagsterInstance, tmp_path: Any) -> None:
    pipeline = Pipeline(f"sqlite:///{tmp_path}/store.db", batch_size=10)
    pipeline.receive(3000)
    result = pipeline.run(instance)
    assert reported(instance, result)[TODAY.isoformat()]["loads"] == 300
    assert len(instance.all_logs(result.run_id)) < 100


def test_the_log_of_a_run_names_it(
    instance: DagsterInstance,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    package = logging.getLogger("blacksmith_dagster")
    monkeypatch.setattr(package, "handlers", [])
    monkeypatch.setattr(package, "propagate", True)
    monkeypatch.setattr(package, "level", package.level)
    monkeypatch.setenv("BLACKSMITH_LOG", "json")
    pipeline = Pipeline(f"sqlite:///{tmp_path}/store.db")
    pipeline.receive(2, TODAY)
    result = pipeline.run(instance)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    about = {"event": "lake/flights", "destination": "lake", "run": result.run_id}
    assert about.items() <= json.loads(lines[0]).items()


def test_the_history_names_the_dagster_run(store_url: str, instance: DagsterInstance) -> None:
    pipeline = Pipeline(store_url)
    (event_id,) = pipeline.receive(1)
    result = pipeline.run(instance)
    store = pipeline.open()
    try:
        assert store.history.transitions(event_id)[-1].run == result.run_id
    finally:
        store.close()


class Broken(StandardScheduler):
    """Loads, then raises each of its errors once."""

    def __init__(self, *errors: Exception) -> None:
        super().__init__()
        self.errors = list(errors)
        self.calls: list[str] = []

    def drain(self, app: Any, event: Any, **options: Any) -> Summary:
        self.calls.append(event.path)
        summary = super().drain(app, event, **options)
        if self.errors:
            raise self.errors.pop(0)
        return summary


def test_what_was_loaded_before_an_error_is_reported(
    store_url: str, instance: DagsterInstance
) -> None:
    pipeline = Pipeline(store_url, scheduler=Broken(FencedOut("another has taken over")))
    pipeline.receive(4)
    result = pipeline.run(instance, raise_on_error=False)
    assert not result.success
    assert reported(instance, result)[TODAY.isoformat()]["events_loaded"] == 4


def test_a_service_that_does_not_respond_is_asked_again(
    instance: DagsterInstance, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blacksmith_dagster.orchestration.loads.RETRY_SECONDS", 0.1)
    scheduler = Broken(Unavailable("the store does not respond"))
    pipeline = Pipeline(f"sqlite:///{tmp_path}/store.db", scheduler=scheduler)
    pipeline.receive(1)
    assert pipeline.run(instance).success
    assert scheduler.calls == ["lake/flights", "lake/undeliverable", "lake/flights"]


def test_nothing_more_is_loaded_beside_a_call_that_hangs(
    instance: DagsterInstance, tmp_path: Any
) -> None:
    released = threading.Event()

    def judge(batch: Batch[Any]) -> None:
        released.wait(60)

    pipeline = Pipeline(f"sqlite:///{tmp_path}/store.db", judge=judge, timeout="200ms")
    pipeline.receive(1)
    pipeline.receive(1, to=["lake/undeliverable"])
    try:
        result = pipeline.run(instance, raise_on_error=False)
    finally:
        released.set()
    assert not result.success
    (failure,) = [event for event in result.all_node_events if event.is_step_failure]
    assert failure.step_failure_data.error is not None
    assert Timeout.__name__ in failure.step_failure_data.error.to_string()
    assert pipeline.loaded["undeliverable"] == []
