"""The asset of a destination event is its replay: days are loaded again as partitions."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import pytest
from dagster import (
    AssetCheckEvaluation,
    AssetKey,
    BackfillPolicy,
    DagsterInstance,
    DefaultScheduleStatus,
    Definitions,
    ExecuteInProcessResult,
    ScheduleDefinition,
    build_schedule_context,
)

from blacksmith_dagster import Batch, Blacksmith, Destination, Source
from blacksmith_dagster.errors import DeclarationError
from blacksmith_dagster.orchestration import build_definitions
from tests.support.pipelines.orchestration import TODAY, Pipeline

FLIGHTS = AssetKey(["lake", "flights"])
DAYS = [TODAY - timedelta(days=n) for n in (3, 2, 1)]
NAMED = [day.isoformat() for day in DAYS]
START, END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"


def replay(
    pipeline: Pipeline,
    instance: DagsterInstance,
    first: date = DAYS[0],
    last: date = DAYS[-1],
    **config: Any,
) -> ExecuteInProcessResult:
    """A run as a backfill of some days launches it."""
    job = pipeline.definitions.resolve_implicit_global_asset_job_def()
    return job.get_subset(asset_selection={FLIGHTS}).execute_in_process(
        instance=instance,
        tags={START: first.isoformat(), END: last.isoformat()},
        run_config={"ops": {"replay__lake__flights": {"config": config}}} if config else None,
        raise_on_error=False,
    )


def metadata_of(result: ExecuteInProcessResult) -> Mapping[str, Mapping[str, Any]]:
    """The metadata of each materialized partition."""
    materializations = [
        event.step_materialization_data.materialization
        for event in result.get_asset_materialization_events()
    ]
    return {
        str(materialization.partition): {
            key: value.value for key, value in materialization.metadata.items()
        }
        for materialization in materializations
    }


def checks_of(result: ExecuteInProcessResult) -> Mapping[str, AssetCheckEvaluation]:
    return {
        evaluation.check_name: evaluation for evaluation in result.get_asset_check_evaluations()
    }


def receive(pipeline: Pipeline, *numbers: int, to: Sequence[str] = ()) -> None:
    for number, day in zip(numbers, DAYS, strict=True):
        if number:
            pipeline.receive(number, day, to)


def test_a_backfill_of_several_days_is_one_run_that_reports_each_day(
    store_url: str, instance: DagsterInstance
) -> None:
    pipeline = Pipeline(store_url)
    receive(pipeline, 2, 0, 3)
    pipeline.receive(4, DAYS[0] - timedelta(days=1), ())
    result = replay(pipeline, instance)
    assert result.success
    reported = metadata_of(result)
    assert {day: metadata["events_loaded"] for day, metadata in reported.items()} == dict(
        zip(NAMED, (2, 0, 3), strict=True)
    )
    assert len(pipeline.loaded["flights"]) == 5
    assert all(evaluation.passed for evaluation in checks_of(result).values())
    assert set(NAMED) == instance.get_materialized_partitions(FLIGHTS)
    asset = pipeline.definitions.resolve_assets_def(FLIGHTS)
    assert asset.backfill_policy == BackfillPolicy.single_run()


def test_a_day_with_failures_is_materialized_and_its_check_names_them(
    store_url: str, instance: DagsterInstance
) -> None:
    failing: set[str] = set()

    def judge(batch: Batch[Any]) -> None:
        for job in batch:
            if job.event.id in failing:
                batch.fail(job, "no such airport")

    pipeline = Pipeline(store_url, judge=judge)
    receive(pipeline, 2, 0, 1)
    with closing(pipeline.open()) as store:
        failing.add(store.log.newest()[0].id)
    result = replay(pipeline, instance)
    assert result.success
    reported = metadata_of(result)
    assert [reported[NAMED[-1]][name] for name in ("events_loaded", "events_failed")] == [0, 1]
    check = checks_of(result)["replay_settled"]
    assert not check.passed
    assert check.metadata["days"].value == {NAMED[-1]: {"retrying": 1}}
    assert check.metadata["jobs"].value == [f"{failing.pop()}: no such airport"]


def test_modes_filters_and_a_dry_run_by_config(store_url: str, instance: DagsterInstance) -> None:
    pipeline = Pipeline(store_url)
    receive(pipeline, 1, 1, 1, to=("lake/flights",))
    pipeline.run(instance)
    receive(pipeline, 1, 1, 1)
    result = replay(pipeline, instance, dry_run=True, modes=["all"])
    assert result.success
    assert metadata_of(result) == {}
    (observed,) = result.get_asset_observation_events()
    metadata = observed.asset_observation_data.asset_observation.metadata
    assert metadata["would_be_loaded"].value == 6
    assert metadata["days"].value == {day: {"missing": 1, "succeeded": 1} for day in NAMED}
    assert len(pipeline.loaded["flights"]) == 3
    assert replay(pipeline, instance).success
    assert len(pipeline.loaded["flights"]) == 6
    assert replay(pipeline, instance, modes=["all"], rate=1000).success
    assert len(pipeline.loaded["flights"]) == 12
    assert not replay(pipeline, instance, modes=["everything"]).success


def with_backfill(backfill: str | None, days: int = 1, start_date: date = DAYS[0]) -> Definitions:
    airport, lake = Source("airport"), Destination("lake")
    departed = airport.accept("departed")

    @lake.event(receives=departed, backfill_schedule=backfill, backfill_days=days)
    def flights(batch: Batch[Any]) -> None: ...

    app = Blacksmith(sources=[airport], destinations=[lake])
    return build_definitions(app, start_date=start_date)


def schedule_context(definitions: Definitions) -> Any:
    return build_schedule_context(
        scheduled_execution_time=datetime.combine(TODAY, time(3), UTC),
        repository_def=definitions.get_repository_def(),
    )


@pytest.mark.parametrize(("days", "first"), [(1, NAMED[-1]), (2, NAMED[1]), (7, NAMED[0])])
def test_a_scheduled_backfill_replays_the_last_days(days: int, first: str) -> None:
    definitions = with_backfill("0 3 * * *", days)
    schedule = definitions.resolve_schedule_def("backfill_lake__flights_schedule")
    assert isinstance(schedule, ScheduleDefinition)
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("0 3 * * *", "UTC")
    assert schedule.default_status is DefaultScheduleStatus.RUNNING
    (request,) = schedule.evaluate_tick(schedule_context(definitions)).run_requests or ()
    assert {key: request.tags[key] for key in (START, END)} == {START: first, END: NAMED[-1]}


def test_a_scheduled_backfill_waits_for_the_first_day_to_pass() -> None:
    definitions = with_backfill("@daily", start_date=TODAY)
    schedule = definitions.resolve_schedule_def("backfill_lake__flights_schedule")
    data = schedule.evaluate_tick(schedule_context(definitions))
    assert not data.run_requests
    assert "has not passed" in (data.skip_message or "")


def test_without_backfill_there_is_no_schedule() -> None:
    names = {schedule.name for schedule in with_backfill(None).schedules or ()}
    assert "backfill_lake__flights_schedule" not in names


@pytest.mark.parametrize(
    "options",
    [{"backfill_schedule": "every day"}, {"backfill_schedule": "@every 1h"}, {"backfill_days": 0}],
)
def test_a_wrong_backfill_fails_at_import(options: dict[str, Any]) -> None:
    departed = Source("airport").accept("departed")
    with pytest.raises(DeclarationError, match="backfill"):
        Destination("lake").event(receives=departed, **options)(flights)


def flights(batch: Batch[Any]) -> None: ...
