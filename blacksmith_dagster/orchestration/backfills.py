"""The asset of a destination event, whose materialization is its replay, and scheduled backfills."""

# Dagster reads the annotation of `context` as it stands: no `from __future__ import annotations`.

from collections.abc import Iterator
from datetime import UTC, timedelta
from typing import Any

from dagster import (
    AssetExecutionContext,
    AssetsDefinition,
    AssetSelection,
    AssetSpec,
    BackfillPolicy,
    DefaultScheduleStatus,
    RunRequest,
    ScheduleDefinition,
    ScheduleEvaluationContext,
    SkipReason,
    define_asset_job,
    in_process_executor,
    multi_asset,
    schedule,
)

from blacksmith_dagster.orchestration.assets import BlacksmithTranslator
from blacksmith_dagster.orchestration.replays import ReplayConfig
from blacksmith_dagster.orchestration.resource import BlacksmithResource
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.destination import DestinationEvent

_RANGE = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")


def build_replay(
    app: Blacksmith,
    event: DestinationEvent[Any],
    spec: AssetSpec,
    translator: BlacksmithTranslator,
) -> AssetsDefinition:
    """The asset of a destination event. Days that are materialized together are one run."""

    # What is materialized is reported day by day, not by the op's output: that is skippable, and a
    # generator that yields nothing leaves it out.
    @multi_asset(
        name=f"replay__{event.path.replace('/', '__')}",
        specs=[spec.replace_attributes(skippable=True)],
        backfill_policy=BackfillPolicy.single_run(),
    )
    def replay_days(
        context: AssetExecutionContext, config: ReplayConfig, blacksmith: BlacksmithResource
    ) -> Iterator[Any]:
        blacksmith.replay(context, app, event, config, translator=translator)
        yield from ()

    return replay_days


def build_backfill(
    app: Blacksmith, event: DestinationEvent[Any], spec: AssetSpec
) -> ScheduleDefinition | None:
    """What replays the last days of a destination event, if it says when; running by default."""
    if event.backfill is None:
        return None
    name = f"backfill_{event.path.replace('/', '__')}"
    target: Any = define_asset_job(
        name,
        AssetSelection.assets(spec.key),
        description=f"Replays days of {event.path}.",
        executor_def=in_process_executor,
    )

    @schedule(
        name=f"{name}_schedule",
        job=target,
        cron_schedule=event.backfill,
        execution_timezone="UTC",
        default_status=DefaultScheduleStatus.RUNNING,
    )
    def backfill(context: ScheduleEvaluationContext) -> RunRequest | SkipReason:
        today = context.scheduled_execution_time.astimezone(UTC).date()
        last = today - timedelta(days=1)
        first = max(today - timedelta(days=event.backfill_days), app.since)
        if first > last:
            return SkipReason(f"the first day, {app.since}, has not passed")
        days = (first.isoformat(), last.isoformat())
        return RunRequest(tags=dict(zip(_RANGE, days, strict=True)))

    return backfill
