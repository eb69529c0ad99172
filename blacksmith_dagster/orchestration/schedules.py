"""What launches jobs at an interval: a Dagster schedule for a cron expression, a sensor for `@every`.

No run is launched beside another of its job, unless the process of that one seems to be gone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, date, datetime, timedelta
from types import MappingProxyType
from typing import Any, TypeAlias, cast

from dagster import (
    AssetSelection,
    AssetSpec,
    DagsterInstance,
    DagsterRunStatus,
    DefaultScheduleStatus,
    DefaultSensorStatus,
    JobDefinition,
    RunRecord,
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
from blacksmith_dagster.pipeline.destination import AnyDestinationEvent
from blacksmith_dagster.pipeline.schedule import every
from blacksmith_dagster.supervisor import Supervisor

FINAL = {DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED}
ACTIVE = [status for status in DagsterRunStatus if status not in FINAL]
UNDER_WAY = {DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING}

# A run that is under way holds one of its locks, except for short gaps. A run that is not yet under
# way may take as long to start as Dagster allows by default.
_GRACE_BY_UNDER_WAY = {True: timedelta(seconds=15), False: timedelta(seconds=180)}
# The longest that a run that is alive holds no lock: it waits to be retried, then for what is due soon.
LOCK_GAP_SECONDS = RETRY_SECONDS + DUE_SOON + 5.0
_LOOK_SECONDS = 30
_RANGE = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")

WhyNot: TypeAlias = Callable[[DagsterInstance, BlacksmithResource], str | None]
"""Why a job need not run now, or `None` if it must."""


# ------------------------------------------------------------------------------ at an interval


def build_trigger(
    target: JobDefinition,
    interval: str,
    why_not: WhyNot,
    *,
    description: str,
    timezone: str = "UTC",
    tags: Callable[[datetime], dict[str, str]] | None = None,
) -> ScheduleDefinition | SensorDefinition:
    """What launches a job at an interval: running by default, and skipped with the reason of `why_not`.

    - `description`: that of a sensor.
    - `timezone`: that of a cron expression.
    - `tags`: those of a run, by the time when it was due.
    """
    length = every(interval)
    if length is None:

        @schedule(
            name=f"{target.name}_schedule",
            job=target,
            cron_schedule=interval,
            execution_timezone=timezone,
            default_status=DefaultScheduleStatus.RUNNING,
        )
        def launch_by_cron(
            context: ScheduleEvaluationContext, blacksmith: BlacksmithResource
        ) -> RunRequest | SkipReason:
            reason = why_not(context.instance, blacksmith)
            if reason:
                return SkipReason(reason)
            return RunRequest(tags=tags(context.scheduled_execution_time) if tags else None)

        return launch_by_cron

    @sensor(
        name=f"{target.name}_sensor",
        job=target,
        description=description,
        minimum_interval_seconds=look_seconds(length),
        default_status=DefaultSensorStatus.RUNNING,
    )
    def launch_at_interval(
        context: SensorEvaluationContext, blacksmith: BlacksmithResource
    ) -> SensorResult | SkipReason:
        now = time.time()
        reason = too_early(context.cursor, length, now) or why_not(context.instance, blacksmith)
        if reason:
            return SkipReason(reason)
        # No run key: Dagster would never launch the same one again.
        request = RunRequest(tags=tags(datetime.fromtimestamp(now, UTC)) if tags else None)
        return SensorResult(run_requests=[request], cursor=str(now))

    return launch_at_interval


def too_early(cursor: str | None, interval: timedelta, now: float) -> str | None:
    """Why it is too early for the next run, or `None`. `cursor` holds the time of the last launch.

    >>> too_early("1000.0", timedelta(seconds=60), 1015.0)
    'the next run is in 0:00:45'
    """
    left = float(cursor) + interval.total_seconds() - now if cursor else 0.0
    return f"the next run is in {timedelta(seconds=round(left))}" if left > 0 else None


def look_seconds(interval: timedelta) -> int:
    """Seconds between two evaluations of a sensor: retries become due between the runs of an interval.

    Dagster evaluates a sensor every 5 seconds at most.
    """
    return 5 if interval.total_seconds() < 2 * _LOOK_SECONDS else _LOOK_SECONDS


# ------------------------------------------------------------------------------ load jobs


def build_load_trigger(
    load_job: LoadJob, target: JobDefinition
) -> ScheduleDefinition | SensorDefinition:
    """What launches a load job: only when something is due."""
    interval = cast(str, load_job.schedule.interval)  # inherited, so never `None`

    def why_not(instance: DagsterInstance, blacksmith: BlacksmithResource) -> str | None:
        store, supervisor = blacksmith.store, blacksmith.supervisor
        due = {event.path: store.counts.next_due(event.path) for event in load_job.events}
        reason = why_not_due(due)
        if reason:
            return reason
        try:
            supervisor.ready()
            reason = already_active(instance, load_job.name, supervisor)
            return reason or why_not_due(due, _realtime_holders(load_job, supervisor))
        except (Unavailable, SettingsError) as error:
            return f"nothing is loaded without a lock: {error}"

    return build_trigger(
        target,
        interval,
        why_not,
        description=f"Launches {load_job.name} when something is due, "
        f"at most {interval.removeprefix('@')}.",
    )


def why_not_due(
    due: Mapping[str, float | None], holders: Mapping[str, str] = MappingProxyType({})
) -> str | None:
    """Why a load job need not run now, or `None` if it must.

    - `due`: in how many seconds each destination event has something due, `None` if nothing waits.
    - `holders`: what loads realtime events at once, by their paths.

    >>> why_not_due({"lake/movements": 0.0}), why_not_due({"lake/movements": None})
    (None, 'nothing waits for lake/movements')
    """
    waiting = {path: seconds for path, seconds in due.items() if seconds is not None}
    if not waiting:
        return f"nothing waits for {', '.join(due)}"
    left = {path: seconds for path, seconds in waiting.items() if path not in holders}
    if not left:
        return ", ".join(f"{path} is loaded by {holders[path]}" for path in waiting)
    path, seconds = min(left.items(), key=lambda item: item[1])
    if seconds <= DUE_SOON:
        return None
    return f"nothing is due: {path} is the next, in {timedelta(seconds=round(seconds))}"


def _realtime_holders(load_job: LoadJob, supervisor: Supervisor) -> Mapping[str, str]:
    """What loads realtime events at once: a warm run or a worker."""
    locks = {event.path: supervisor.status(f"load/{event.path}") for event in load_job.realtime}
    return {path: lock.holder or "another process" for path, lock in locks.items() if lock.held}


# ------------------------------------------------------------------------------ once a day


def build_purge_schedule(target: JobDefinition) -> ScheduleDefinition:
    """What launches the job that purges: once a day at 4:30 UTC, running by default."""
    return ScheduleDefinition(
        job=target,
        cron_schedule="30 4 * * *",
        execution_timezone="UTC",
        default_status=DefaultScheduleStatus.RUNNING,
    )


def build_backfill(
    event: AnyDestinationEvent, spec: AssetSpec, start_date: date
) -> ScheduleDefinition | None:
    """The schedule that replays the last days of a destination event, running by default.

    `None` if the event has no `backfill_schedule`.
    """
    if event.backfill_schedule is None:
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
        cron_schedule=event.backfill_schedule,
        execution_timezone="UTC",
        default_status=DefaultScheduleStatus.RUNNING,
    )
    def backfill(context: ScheduleEvaluationContext) -> RunRequest | SkipReason:
        today = context.scheduled_execution_time.astimezone(UTC).date()
        last = today - timedelta(days=1)
        first = max(today - timedelta(days=event.backfill_days), start_date)
        if first > last:
            return SkipReason(f"the first day, {start_date}, has not passed")
        days = (first.isoformat(), last.isoformat())
        return RunRequest(tags=dict(zip(_RANGE, days, strict=True)))

    return backfill


# ------------------------------------------------------------------------------ one run at a time


def already_active(instance: DagsterInstance, job: str, supervisor: Supervisor) -> str | None:
    """The active run of a job, as a reason to skip.

    A run whose process seems to be gone does not count: the report sensor marks it as failed. Should
    it be alive, the locks let one of the two runs load.
    """
    records = instance.get_run_records(RunsFilter(job_name=job, statuses=ACTIVE), ascending=True)
    holders = {lock.holder for lock in supervisor.locks()} if records else set()
    for record in records:
        run = record.dagster_run
        if run.status is DagsterRunStatus.QUEUED:
            return f"run {run.run_id} is queued"
        if not _seems_gone(record, holders):
            return f"run {run.run_id} is still under way"
    return None


def fail_gone_runs(
    instance: DagsterInstance,
    jobs: Collection[str],
    supervisor: Supervisor,
    lockless: Mapping[str, float],
) -> Mapping[str, float]:
    """Mark the runs of these jobs as failed whose processes are gone.

    `lockless`: since when (seconds since 1970) a run has held no lock. Returns it for the next call.
    """
    records = instance.get_run_records(RunsFilter(statuses=ACTIVE))
    records = [record for record in records if record.dagster_run.job_name in jobs]
    holders = {lock.holder for lock in supervisor.locks()} if records else set()
    gone = {record.dagster_run.run_id for record in records if _seems_gone(record, holders)}
    now = time.time()
    since = {run_id: lockless.get(run_id, now) for run_id in gone}
    for run_id in gone:
        if now - since[run_id] >= LOCK_GAP_SECONDS:
            fail_gone(instance, run_id)
            del since[run_id]
    return since


def _seems_gone(record: RunRecord, holders: Collection[str | None]) -> bool:
    """Whether a run holds no lock although it should.

    Dagster's default launcher doesn't notice when the machine goes down with its runs: they stay
    'started' forever. Only the locks are reliable. But a run holds none while it moves from one lock to
    the next, or waits to be retried.
    """
    status, age = record.dagster_run.status, datetime.now(UTC) - record.update_timestamp
    if status is DagsterRunStatus.QUEUED or record.dagster_run.run_id in holders:
        return False
    return age >= _GRACE_BY_UNDER_WAY[status in UNDER_WAY]


def fail_gone(instance: DagsterInstance, run_id: str) -> None:
    """Mark a run whose process is gone as failed, unless it has ended meanwhile."""
    run = instance.get_run_by_id(run_id)
    if run and run.status in ACTIVE:
        instance.report_run_failed(
            run, "The process of this run is gone: it holds none of its locks."
        )
