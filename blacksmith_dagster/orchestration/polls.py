"""Polls in Dagster: a job per `Cron` event, its retries, and what launches it."""

# Dagster reads the annotation of `context` as it stands: no `from __future__ import annotations`.

import random
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import cast

from dagster import (
    AssetKey,
    AssetObservation,
    DagsterInstance,
    Failure,
    JobDefinition,
    OpExecutionContext,
    RetryRequested,
    ScheduleDefinition,
    SensorDefinition,
    op,
)

from blacksmith_dagster.errors import SettingsError, Unavailable
from blacksmith_dagster.ingest.poll import Polled, poll
from blacksmith_dagster.orchestration.jobs import in_process_job
from blacksmith_dagster.orchestration.loads import links_of
from blacksmith_dagster.orchestration.resource import BlacksmithResource
from blacksmith_dagster.orchestration.schedules import already_active, build_trigger
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.source import AnySourceEvent
from blacksmith_dagster.pipeline.triggers import Cron
from blacksmith_dagster.redaction import describe, traced

DUE_TAG = "blacksmith/due_at"
"""When the poll of a run was due: the same in each of its attempts, and when it is executed again."""

# A run holds no lock while it waits to be retried. It must not count as gone in that time.
_LONGEST_PAUSE = 10.0


def cron_events(app: Blacksmith) -> Sequence[AnySourceEvent]:
    """The events of an application that are polled."""
    return [event for event in app.source_events.values() if isinstance(event.trigger, Cron)]


def retry_delay(retry: int) -> float:
    """Seconds before retry number `retry` (1 is the first): twice as long each time, with jitter.

    >>> 0.5 <= retry_delay(1) <= 1 and 1 <= retry_delay(2) <= 2 and 5 <= retry_delay(100) <= 10
    True
    """
    return min(2.0 ** (retry - 1), _LONGEST_PAUSE) * random.uniform(0.5, 1.0)


def build_poll_job(event: AnySourceEvent) -> JobDefinition:
    """The Dagster job `poll_<source>__<event>`: one op, which calls the event's function."""
    name = event.path.replace("/", "__")

    @op(name=name, description=f"Asks for new events of {event.path}, and stores them.")
    def poll_event(context: OpExecutionContext, blacksmith: BlacksmithResource) -> None:
        _report_poll(context, blacksmith.asset_keys[event.path], _poll(context, event, blacksmith))

    description = event.description or f"Polls {event.path}."
    return in_process_job(f"poll_{name}", description, poll_event)


def build_poll_trigger(
    event: AnySourceEvent, target: JobDefinition
) -> ScheduleDefinition | SensorDefinition:
    """What launches a poll job: one run at a time.

    After missed ticks Dagster evaluates only the last one, and the function gets everything by its
    cursor.
    """
    cron = cast(Cron, event.trigger)
    interval = cast(str, cron.interval)  # inherited, so never `None`

    def why_not(instance: DagsterInstance, blacksmith: BlacksmithResource) -> str | None:
        # Locks are checked only if a run is active: a new run that cannot acquire its lock is retried,
        # and then fails.
        try:
            return already_active(instance, target.name, blacksmith.supervisor)
        except (Unavailable, SettingsError) as error:
            return f"cannot tell whether a run of {target.name} is still under way: {error}"

    return build_trigger(
        target,
        interval,
        why_not,
        description=f"Launches {target.name} {interval}.",
        timezone=cast(str, cron.timezone),
        tags=lambda due_at: {DUE_TAG: due_at.astimezone(UTC).isoformat()},
    )


def _poll(
    context: OpExecutionContext, event: AnySourceEvent, blacksmith: BlacksmithResource
) -> Polled:
    try:
        return poll(
            blacksmith.app,
            event,
            store=blacksmith.store,
            supervisor=blacksmith.supervisor,
            at=_due_at(context),
            holder=context.run_id,
            notify=blacksmith.backends.notify(blacksmith.app),
        )
    except Exception as error:  # noqa: BLE001 - the user's code; its run fails with it
        # Dagster shows errors as they are; the log gets this one without the secrets in it.
        context.log.error(traced(error))
        failure = Failure(describe(error))
    retries = cast(int, cast(Cron, event.trigger).max_retries)
    if context.retry_number >= retries:
        raise failure
    raise RetryRequested(retries, retry_delay(context.retry_number + 1)) from failure


def _due_at(context: OpExecutionContext) -> datetime:
    if (due := context.run.tags.get(DUE_TAG)) is not None:
        return datetime.fromisoformat(due)
    record = context.instance.get_run_record_by_id(context.run_id)  # launched by hand
    return record.create_timestamp if record else datetime.now(UTC)


def _report_poll(context: OpExecutionContext, key: AssetKey, polled: Polled) -> None:
    """Report to the run what was received; never the cursor, which is the user's and may be secret.

    It is an observation, not a materialization: the report sensor reports a day's total.
    """
    received = {"events_received": polled.events, "events_quarantined": polled.quarantined}
    if polled.skipped:
        context.log.info(f"skipped: {polled.skipped}")
        context.add_output_metadata({**received, "skipped": polled.skipped})
        return
    context.add_output_metadata(received)
    if polled.events or polled.quarantined:
        context.log_event(AssetObservation(key, metadata={**received, **links_of(context)}))
