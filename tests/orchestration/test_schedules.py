"""What launches a load job, and when it does not."""

import contextlib
import time
from datetime import timedelta
from typing import Any

import pytest
from dagster import (
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    RunsFilter,
    ScheduleDefinition,
    SensorDefinition,
    build_schedule_context,
    build_sensor_context,
)
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)

from blacksmith_dagster import Batch
from blacksmith_dagster.orchestration import loads, schedules
from blacksmith_dagster.orchestration.schedules import look_seconds, too_early, why_not_due
from blacksmith_dagster.supervisor import open_supervisor
from tests.support.pipelines.orchestration import Pipeline

ORIGIN = RemoteJobOrigin(
    RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("here"), "__repository__"), "load_lake"
)


class Tick:
    """What a sensor or a schedule has returned."""

    def __init__(self, data: Any) -> None:
        self.launched = len(data.run_requests)
        self.skipped = data.skip_message
        self.cursor = getattr(data, "cursor", None)
        assert all(request.run_key is None for request in data.run_requests)


def look(pipeline: Pipeline, instance: DagsterInstance, cursor: str | None = None) -> Tick:
    """A tick of the sensor of `load_lake`."""
    (sensor,) = [
        sensor for sensor in pipeline.definitions.sensors or () if sensor.name == "load_lake_sensor"
    ]
    assert isinstance(sensor, SensorDefinition)
    resources = {"blacksmith": pipeline.resource}
    with build_sensor_context(instance, cursor, resources=resources) as context:
        return Tick(sensor.evaluate_tick(context))


def tick(pipeline: Pipeline, instance: DagsterInstance) -> Tick:
    """A tick of the schedule of `load_lake__movements`."""
    (schedule,) = pipeline.definitions.schedules or ()
    assert isinstance(schedule, ScheduleDefinition)
    resources = {"blacksmith": pipeline.resource}
    with build_schedule_context(instance, resources=resources) as context:
        return Tick(schedule.evaluate_tick(context))


def test_a_look_launches_when_something_is_due(store_url: str, instance: DagsterInstance) -> None:
    pipeline = Pipeline(store_url)
    pipeline.open().close()
    assert look(pipeline, instance).skipped == "nothing waits for lake/flights, lake/undeliverable"
    pipeline.receive(1)
    before = time.time()
    result = look(pipeline, instance)
    assert result.launched == 1
    assert result.cursor is not None
    assert before <= float(result.cursor) <= time.time()


def test_a_schedule_launches_when_something_is_due(
    store_url: str, instance: DagsterInstance
) -> None:
    pipeline = Pipeline(store_url)
    pipeline.open().close()
    assert tick(pipeline, instance).skipped == "nothing waits for lake/movements"
    pipeline.receive(1, to=["lake/movements"])
    assert tick(pipeline, instance).launched == 1


def test_the_interval_is_kept_and_a_retry_waits_for_its_time(
    store_url: str, instance: DagsterInstance
) -> None:
    def judge(batch: Batch[Any]) -> None:
        batch.fail(batch[0], "not now")

    pipeline = Pipeline(store_url, judge=judge)
    pipeline.receive(1)
    pipeline.run(instance)
    early = look(pipeline, instance, str(time.time() - 60)).skipped
    assert early == "the next run is in 0:09:00"
    skipped = look(pipeline, instance).skipped
    reason, _, left = skipped.rpartition(" in ")
    assert reason == "nothing is due: lake/flights is the next,"
    assert left in ("0:10:00", "0:09:59", "0:09:58")


@pytest.mark.parametrize(
    "status",
    [
        DagsterRunStatus.QUEUED,
        DagsterRunStatus.NOT_STARTED,
        DagsterRunStatus.STARTING,
        DagsterRunStatus.STARTED,
        DagsterRunStatus.CANCELING,
    ],
)
def test_two_runs_of_a_job_are_never_active(
    status: DagsterRunStatus, instance: DagsterInstance, tmp_path: Any
) -> None:
    pipeline = Pipeline(f"sqlite:///{tmp_path}/store.db")
    pipeline.receive(1, to=["lake/flights", "lake/movements"])
    run = instance.add_run(
        DagsterRun(job_name="load_lake", status=status, remote_job_origin=ORIGIN)
    )
    result = look(pipeline, instance)
    assert result.launched == 0
    assert run.run_id in result.skipped
    assert tick(pipeline, instance).launched == 1  # another job is not hindered


def test_a_finished_run_does_not_hinder_the_next(instance: DagsterInstance, tmp_path: Any) -> None:
    pipeline = Pipeline(f"sqlite:///{tmp_path}/store.db")
    pipeline.receive(1)
    for status in (DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED):
        instance.add_run(DagsterRun(job_name="load_lake", status=status))
    assert look(pipeline, instance).launched == 1


def test_a_run_whose_process_is_gone_is_failed_and_replaced(
    store_url: str, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        schedules, "_GRACE_BY_UNDER_WAY", dict.fromkeys((True, False), timedelta(0))
    )
    pipeline = Pipeline(store_url)
    pipeline.receive(1)
    run = instance.add_run(DagsterRun(job_name="load_lake", status=DagsterRunStatus.STARTED))
    with contextlib.ExitStack() as opened:
        store = opened.enter_context(contextlib.closing(pipeline.open()))
        supervisor = open_supervisor(None, store.database)
        opened.enter_context(contextlib.closing(supervisor))

        def failed(lockless_since: float) -> bool:
            """Whether the run is marked as failed, which held no lock since `lockless_since`."""
            lockless = {run.run_id: lockless_since}
            schedules.fail_gone_runs(instance, {"load_lake"}, supervisor, lockless)
            (now,) = instance.get_runs(RunsFilter(run_ids=[run.run_id]))
            return now.status is DagsterRunStatus.FAILURE

        lease = supervisor.acquire("load/lake/undeliverable", run.run_id)
        assert lease is not None
        with lease:
            assert look(pipeline, instance).skipped == f"run {run.run_id} is still under way"
            assert not failed(0.0)
        assert look(pipeline, instance).launched == 1
        assert not failed(time.time())
        assert failed(time.time() - schedules.LOCK_GAP_SECONDS)


def test_a_run_between_two_tries_of_an_op_is_not_gone() -> None:
    """It holds no lock while it waits to try again, and then for what is due soon."""
    assert loads.RETRY_SECONDS + loads.DUE_SOON < schedules.LOCK_GAP_SECONDS


def test_nothing_is_launched_while_no_lock_can_be_had(
    instance: DagsterInstance, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BLACKSMITH_SUPERVISOR_URL", "consul://127.0.0.1:1")
    pipeline = Pipeline(f"sqlite:///{tmp_path}/store.db")
    pipeline.receive(1, to=["lake/flights", "lake/movements"])
    for result in (look(pipeline, instance), tick(pipeline, instance)):
        assert result.launched == 0
        assert result.skipped.startswith("nothing is loaded without a lock: consul://127.0.0.1:1")


def test_the_soonest_decides() -> None:
    assert why_not_due({"a/b": None, "c/d": 3.0}) is None
    assert why_not_due({"a/b": 90.0, "c/d": 60.4}) == "nothing is due: c/d is the next, in 0:01:00"


def test_an_interval_starts_with_the_launch() -> None:
    minute = timedelta(minutes=1)
    assert too_early(None, minute, 0.0) is None
    assert too_early("100.0", minute, 159.9) is not None
    assert too_early("100.0", minute, 160.0) is None


def test_short_intervals_are_looked_at_as_often_as_dagster_can() -> None:
    assert look_seconds(timedelta(seconds=5)) == 5
    assert look_seconds(timedelta(hours=1)) == 30
