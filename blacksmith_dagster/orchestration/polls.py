"""Polls: a job per `Cron` event, and what launches it: a schedule for a cron expression, a sensor for
`@every`."""

# Dagster reads the annotation of `context` as it stands: no `from __future__ import annotations`.

import random
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from dagster import (
    AssetKey,
    AssetObservation,
    DagsterInstance,
    DefaultScheduleStatus,
    DefaultSensorStatus,
    Failure,
    JobDefinition,
    OpExecutionContext,
    RetryRequested,
    RunRequest,
    ScheduleDefinition,
    ScheduleEvaluationContext,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    in_process_executor,
    job,
    op,
    schedule,
    sensor,
)

from blacksmith_dagster.errors import SettingsError, Unavailable
from blacksmith_dagster.ingest.poll import Polled, poll
from blacksmith_dagster.orchestration.loads import links_of
from blacksmith_dagster.orchestration.resource import BlacksmithResource
from blacksmith_dagster.orchestration.schedules import already_active, look_seconds, too_early
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.schedule import every
from blacksmith_dagster.pipeline.source import SourceEvent
from blacksmith_dagster.pipeline.triggers import Cron
from blacksmith_dagster.redaction import describe, traced
from blacksmith_dagster.supervisor import Supervisor

DUE_TAG = "blacksmith/due_at"
"""When the poll of a run was due: the same in each of its attempts, and when it is executed again."""

# A run holds no lock while it waits to try again, and no run is taken for gone so soon.
_LONGEST_PAUSE = 10.0


def cron_events(app: Blacksmith) -> Sequence[SourceEvent[Any, Any, Any]]:
    """The events of an application that are polled."""
    return [event for event in app.source_events.values() if isinstance(event.trigger, Cron)]


def retry_delay(retry: int) -> float:
    """Seconds before retry number `retry` (1 is the first): twice as long each time, with jitter.

    >>> 0.5 <= retry_delay(1) <= 1 and 1 <= retry_delay(2) <= 2 and 5 <= retry_delay(100) <= 10
    True
    """
    return min(2.0 ** (retry - 1), _LONGEST_PAUSE) * random.uniform(0.5, 1.0)


def build_poll_job(
    app: Blacksmith, event: SourceEvent[Any, Any, Any], key: AssetKey
) -> JobDefinition:
    """The Dagster job `poll_<source>__<event>`: one op, which calls the event's function."""
    name = event.path.replace("/", "__")

    @op(name=name, description=f"Asks for new events of {event.path}, and keeps them.")
    def poll_event(context: OpExecutionContext, blacksmith: BlacksmithResource) -> None:
        _report_poll(context, key, _poll(context, app, event, blacksmith))

    @job(
        name=f"poll_{name}",
        description=event.description or f"Polls {event.path}.",
        executor_def=in_process_executor,
    )
    def polls() -> None:
        poll_event()

    return polls


def _poll(
    context: OpExecutionContext,
    app: Blacksmith,
    event: SourceEvent[Any, Any, Any],
    blacksmith: BlacksmithResource,
) -> Polled:
    notifier = blacksmith.notifier(app)
    try:
        return poll(
            app,
            event,
            store=blacksmith.store(app),
            supervisor=blacksmith.supervisor,
            at=_due_at(context),
            holder=context.run_id,
            notify=notifier.notify if notifier else lambda _: None,
        )
    except Exception as error:  # noqa: BLE001 - the user's code; its run fails with it
        # Dagster shows errors as they are: this one is logged without the secrets that it may hold.
        context.log.error(traced(error))
        failed = Failure(describe(error))
    retries = cast(int, _cron(event).max_retries)
    if context.retry_number >= retries:
        raise failed
    raise RetryRequested(retries, retry_delay(context.retry_number + 1)) from failed


def _due_at(context: OpExecutionContext) -> datetime:
    if (due := context.run.tags.get(DUE_TAG)) is not None:
        return datetime.fromisoformat(due)
    record = context.instance.get_run_record_by_id(context.run_id)  # launched by hand
    return record.create_timestamp if record else datetime.now(UTC)


def _report_poll(context: OpExecutionContext, key: AssetKey, polled: Polled) -> None:
    """Report to the run what was received; never the cursor, which is the user's and may be secret.

    It is no materialization: the report sensor reports a day's total.
    """
    received = {"events_received": polled.events, "events_quarantined": polled.quarantined}
    if polled.skipped:
        context.log.info(f"skipped: {polled.skipped}")
        context.add_output_metadata({**received, "skipped": polled.skipped})
        return
    context.add_output_metadata(received)
    if polled.events or polled.quarantined:
        context.log_event(AssetObservation(key, metadata={**received, **links_of(context)}))


def build_poll_trigger(
    event: SourceEvent[Any, Any, Any], target: JobDefinition
) -> ScheduleDefinition | SensorDefinition:
    """What launches a poll job, running by default: one run at a time.

    After ticks that were missed, Dagster evaluates the last one alone, and the function gets
    everything by its cursor.
    """
    interval = every(_interval(event))
    if interval is None:
        return _build_schedule(event, target)
    return _build_sensor(event, target, interval)


def _build_schedule(event: SourceEvent[Any, Any, Any], target: JobDefinition) -> ScheduleDefinition:
    @schedule(
        name=f"{target.name}_schedule",
        job=target,
        cron_schedule=_interval(event),
        execution_timezone=_cron(event).timezone,
        default_status=DefaultScheduleStatus.RUNNING,
    )
    def scheduled(
        context: ScheduleEvaluationContext, blacksmith: BlacksmithResource
    ) -> RunRequest | SkipReason:
        active = _active(context.instance, event, target, blacksmith.supervisor)
        return SkipReason(active) if active else _request(context.scheduled_execution_time)

    return scheduled


def _build_sensor(
    event: SourceEvent[Any, Any, Any],
    target: JobDefinition,
    interval: timedelta,
) -> SensorDefinition:
    @sensor(
        name=f"{target.name}_sensor",
        job=target,
        description=f"Launches {target.name} {_interval(event)}.",
        minimum_interval_seconds=look_seconds(interval),
        default_status=DefaultSensorStatus.RUNNING,
    )
    def looked(
        context: SensorEvaluationContext, blacksmith: BlacksmithResource
    ) -> SensorResult | SkipReason:
        now = time.time()
        reason = too_early(context.cursor, interval, now) or _active(
            context.instance, event, target, blacksmith.supervisor
        )
        if reason:
            return SkipReason(reason)
        # No run key: Dagster would never launch the same one again.
        return SensorResult(
            run_requests=[_request(datetime.fromtimestamp(now, UTC))], cursor=str(now)
        )

    return looked


def _request(due_at: datetime) -> RunRequest:
    return RunRequest(tags={DUE_TAG: due_at.astimezone(UTC).isoformat()})


def _active(
    instance: DagsterInstance,
    event: SourceEvent[Any, Any, Any],
    target: JobDefinition,
    supervisor: Supervisor,
) -> str | None:
    """The run that polls this event, in words; the function is not called twice at a time.

    No lock is asked for while none is active: a run that can't have one tries again, and fails.
    """

    def holds(run_id: str) -> bool:
        status = supervisor.status(f"listen/{event.path}")
        return status.held and status.holder == run_id

    try:
        return already_active(instance, target.name, holds)
    except (Unavailable, SettingsError) as error:
        return f"nobody knows whether a run of {target.name} is still under way: {error}"


def _cron(event: SourceEvent[Any, Any, Any]) -> Cron:
    return cast(Cron, event.trigger)


def _interval(event: SourceEvent[Any, Any, Any]) -> str:
    return cast(str, _cron(event).interval)
