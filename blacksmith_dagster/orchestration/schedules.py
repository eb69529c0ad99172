"""When load jobs run: a Dagster schedule for a cron expression, a sensor for `@every`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any, TypeAlias

from dagster import (
    AssetSelection,
    AssetSpec,
    DagsterInstance,
    DagsterRunStatus,
    DefaultScheduleStatus,
    DefaultSensorStatus,
    JobDefinition,
    RunRequest,
    RunsFilter,
    ScheduleDefinition,
    ScheduleEvaluationContext,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    define_asset_job,
    in_process_executor,
    schedule,
    sensor,
)

from blacksmith_dagster.errors import SettingsError, Unavailable
from blacksmith_dagster.orchestration.jobs import LoadJob
from blacksmith_dagster.orchestration.loads import DUE_SOON, RETRY_SECONDS
from blacksmith_dagster.orchestration.resource import BlacksmithResource
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.destination import DestinationEvent
from blacksmith_dagster.supervisor import Supervisor

FINAL = {DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED}
ACTIVE = [status for status in DagsterRunStatus if status not in FINAL]
UNDER_WAY = {DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING}

# A run that is under way holds one of its locks but for moments; one that is not takes as long to
# start as Dagster grants by default.
_YOUNG = {True: timedelta(seconds=15), False: timedelta(seconds=180)}
_MOMENT_SECONDS = RETRY_SECONDS + DUE_SOON + 5.0
_LOOK_SECONDS = 30

_RANGE = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")

Holds: TypeAlias = Callable[[str], bool]
"""Whether the run of this id holds any of its locks now."""


def why_not(
    due: Mapping[str, float | None], loaded_by: Mapping[str, str] = MappingProxyType({})
) -> str | None:
    """Why a load job need not run now, or `None` if it must.

    `due` says of each destination event in how many seconds something is due (`None`: nothing
    waits); `loaded_by` who loads those that are loaded at once.

    >>> why_not({"lake/movements": 0.0}), why_not({"lake/movements": None})
    (None, 'nothing waits for lake/movements')
    """
    waits = {path: seconds for path, seconds in due.items() if seconds is not None}
    if not waits:
        return f"nothing waits for {', '.join(due)}"
    left = {path: seconds for path, seconds in waits.items() if path not in loaded_by}
    if not left:
        return ", ".join(f"{path} is loaded by {loaded_by[path]}" for path in waits)
    path, seconds = min(left.items(), key=lambda each: each[1])
    if seconds <= DUE_SOON:
        return None
    return f"nothing is due: {path} is the next, in {timedelta(seconds=round(seconds))}"


def too_early(cursor: str | None, interval: timedelta, now: float) -> str | None:
    """Why an interval forbids a run now, or `None`. `cursor` holds the time of the last launch.

    >>> too_early("1000.0", timedelta(seconds=60), 1015.0)
    'the next run is in 0:00:45'
    """
    left = float(cursor) + interval.total_seconds() - now if cursor else 0.0
    return f"the next run is in {timedelta(seconds=round(left))}" if left > 0 else None


def look_seconds(interval: timedelta) -> int:
    """How often a sensor looks: retries fall due between the ticks of an interval.

    Dagster looks every 5 seconds at best.
    """
    return 5 if interval.total_seconds() < 2 * _LOOK_SECONDS else _LOOK_SECONDS


def build_trigger(
    app: Blacksmith, load_job: LoadJob, target: JobDefinition
) -> ScheduleDefinition | SensorDefinition:
    """What launches a load job: running by default, and silent while nothing is due."""
    every = load_job.schedule.every
    if every is None:
        return _build_schedule(app, load_job, target, load_job.schedule.interval)
    return _build_sensor(app, load_job, target, every)


def _build_schedule(
    app: Blacksmith, load_job: LoadJob, target: JobDefinition, cron: str | None
) -> ScheduleDefinition:
    @schedule(
        name=f"{load_job.name}_schedule",
        job=target,
        cron_schedule=cron or "@hourly",
        execution_timezone="UTC",
        default_status=DefaultScheduleStatus.RUNNING,
    )
    def scheduled(
        context: ScheduleEvaluationContext, blacksmith: BlacksmithResource
    ) -> RunRequest | SkipReason:
        reason = _why_not_now(app, load_job, context.instance, blacksmith)
        return SkipReason(reason) if reason else RunRequest()

    return scheduled


def _build_sensor(
    app: Blacksmith, load_job: LoadJob, target: JobDefinition, every: timedelta
) -> SensorDefinition:
    @sensor(
        name=f"{load_job.name}_sensor",
        job=target,
        description=f"Launches {load_job.name} when something is due, {load_job.schedule.interval} "
        "at most.",
        minimum_interval_seconds=look_seconds(every),
        default_status=DefaultSensorStatus.RUNNING,
    )
    def looked(
        context: SensorEvaluationContext, blacksmith: BlacksmithResource
    ) -> SensorResult | SkipReason:
        now = time.time()
        reason = too_early(context.cursor, every, now) or _why_not_now(
            app, load_job, context.instance, blacksmith
        )
        # No run key: Dagster would never launch the same one again.
        return (
            SkipReason(reason)
            if reason
            else SensorResult(run_requests=[RunRequest()], cursor=str(now))
        )

    return looked


def _why_not_now(
    app: Blacksmith, load_job: LoadJob, instance: DagsterInstance, blacksmith: BlacksmithResource
) -> str | None:
    store, supervisor = blacksmith.store(app), blacksmith.supervisor
    due = {event.path: store.next_due(event.path) for event in load_job.events}
    reason = why_not(due)
    if reason:
        return reason
    try:
        supervisor.ready()
        reason = already_active(instance, load_job.name, _holds(load_job, supervisor))
        return reason or why_not(due, _loaded_by(load_job, supervisor))
    except (Unavailable, SettingsError) as error:
        return f"nothing is loaded without a lock: {error}"


def _loaded_by(load_job: LoadJob, supervisor: Supervisor) -> Mapping[str, str]:
    """Who loads each realtime event now: a warm run or a worker."""
    found = {event.path: supervisor.status(f"load/{event.path}") for event in load_job.realtime}
    return {path: held.holder or "another process" for path, held in found.items() if held.held}


def already_active(instance: DagsterInstance, job: str, holds: Holds) -> str | None:
    """The run of a job that is active, in words. Runs whose process is gone are marked as failed.

    Dagster's default launcher doesn't notice when the machine goes down with its runs: they stay
    'started' for ever, and would forbid every further one. The lock is the truth: `holds` says
    whether a run has one of its locks now.
    """
    runs = instance.get_run_records(RunsFilter(job_name=job, statuses=ACTIVE), ascending=True)
    for record in runs:
        run = record.dagster_run
        if run.status is DagsterRunStatus.QUEUED:
            return f"run {run.run_id} is queued"
        age = datetime.now(UTC) - record.update_timestamp
        under_way = run.status in UNDER_WAY
        if age < _YOUNG[under_way] or (under_way and _is_alive(run.run_id, holds)):
            return f"run {run.run_id} is still under way"
        fail_gone(instance, run.run_id)
    return None


def fail_gone(instance: DagsterInstance, run_id: str) -> None:
    """Mark a run whose process is gone as failed, unless it has ended meanwhile."""
    run = instance.get_run_by_id(run_id)
    if run and run.status in ACTIVE:
        instance.report_run_failed(
            run, "The process of this run is gone: it holds none of its locks."
        )


def _is_alive(run_id: str, holds: Holds) -> bool:
    """Whether a run holds any of its locks; asked for a while, as it changes from one to the next,
    and holds none while it waits to try again."""
    ends = time.monotonic() + _MOMENT_SECONDS
    while not holds(run_id):
        if time.monotonic() > ends:
            return False
        time.sleep(0.5)
    return True


def _holds(load_job: LoadJob, supervisor: Supervisor) -> Holds:
    """Whether a run holds any of a load job's locks. That of a realtime event may be a warm run's."""
    realtime = {event.path for event in load_job.realtime}

    def holds(run_id: str) -> bool:
        for event in load_job.events:
            status = supervisor.status(f"load/{event.path}")
            if status.held and (event.path not in realtime or status.holder == run_id):
                return True
        return False

    return holds


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
