"""A replay in a Dagster run, which loads a range of days again.

At its end each day is materialized once, and the check `replay_settled` names the jobs that have not
succeeded.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Any

import msgspec
from dagster import (
    AssetExecutionContext,
    AssetKey,
    AssetMaterialization,
    AssetObservation,
    Config,
    Failure,
    MetadataValue,
    RetryRequested,
)
from pydantic import Field

from blacksmith_dagster.backends import Backends
from blacksmith_dagster.errors import FencedOut, Unavailable
from blacksmith_dagster.orchestration.checks import (
    MAX_UNSETTLED_READ,
    check_destination,
    replay_settled,
)
from blacksmith_dagster.orchestration.loads import (
    DayOfLoads,
    LoadReporter,
    evaluate,
    interrupt_if_terminated,
    links_of,
)
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.destination import AnyDestinationEvent
from blacksmith_dagster.scheduler import LoadReport, StandardScheduler, Tally
from blacksmith_dagster.scheduler.replay import (
    Forecast,
    ReplayProgress,
    ReplaySummary,
    forecast,
    replay,
)
from blacksmith_dagster.signals import on_stop
from blacksmith_dagster.store.records import ReplayMode, ReplayRequest

_LOG_SECONDS = 30.0
_RETRIES = 10
_RETRY_SECONDS = 5.0
_NOTHING = DayOfLoads(Tally(), 0, 0, 0, 0.0, None)


class ReplayConfig(Config):
    """Which events of the days are loaded again, and how.

    - `modes`: 'missing' (events that the flows want and that have no job), 'failed' (discarded jobs), or
      'all' (everything that is not pending).
    - `events`, `version`: only events of these types (`source/event`), of this version.
    - `error`: only jobs that were discarded with an error that contains this text.
    - `when`: only events for which this `package.module:function` returns true.
    - `edit`: the `package.module:function` that returns an event's new data.
    - `new_key`: give the jobs new idempotency keys.
    - `rate`: at most this many jobs a second.
    - `dry_run`: report what would be loaded, and load nothing.
    """

    modes: list[str] = Field(
        default=["missing", "failed"],
        description="missing: events that the flows want and that have no job; failed: discarded "
        "jobs; all: everything that is not pending.",
    )
    events: list[str] = Field(
        default=[], description="Only events of these types, as source/event."
    )
    version: str | None = Field(default=None, description="Only events of this version.")
    error: str | None = Field(
        default=None,
        description="Only jobs that were discarded with an error that contains this text.",
    )
    when: str | None = Field(
        default=None, description="Only events for which this package.module:function returns true."
    )
    edit: str | None = Field(
        default=None, description="The package.module:function that returns an event's new data."
    )
    new_key: bool = Field(default=False, description="Give the jobs new idempotency keys.")
    rate: float | None = Field(default=None, description="At most this many jobs a second.", gt=0)
    dry_run: bool = Field(
        default=False, description="Report what would be loaded, and load nothing."
    )

    def request(self, start: datetime, end: datetime) -> ReplayRequest:
        """The request for a window of time. Raises `ValueError` for an unknown mode."""
        return ReplayRequest(
            start,
            end,
            tuple(ReplayMode(mode) for mode in self.modes),
            tuple(self.events),
            self.version,
            self.error,
            self.when,
            self.edit,
            self.new_key,
        )


def replay_partitions(
    context: AssetExecutionContext,
    app: Blacksmith,
    event: AnyDestinationEvent,
    key: AssetKey,
    config: ReplayConfig,
    scheduler: StandardScheduler,
    *,
    backends: Backends,
    stop: threading.Event,
) -> ReplaySummary | Forecast:
    """Replay the run's days, and report to the run. See `BlacksmithResource.replay`."""
    store, op = backends.store, context.op_execution_context
    window = context.partition_time_window
    request = config.request(window.start, window.end)
    if config.dry_run:
        would_load = forecast(app, event, request, store=store)
        context.log_event(AssetObservation(key, metadata=_forecast_metadata(would_load)))
        return would_load
    links, logged_at = links_of(op), time.monotonic()
    reporter = LoadReporter({event.path: key}, context.log_event, links=links)
    notify = backends.notify(app)

    def report(recorded: LoadReport, progress: ReplayProgress) -> None:
        nonlocal logged_at
        notify(recorded.receivers)
        reporter.add(event, recorded)
        if time.monotonic() - logged_at >= _LOG_SECONDS:
            logged_at = time.monotonic()
            context.log.info(_progress_line(event, progress))

    with on_stop(stop.set):
        try:
            summary = replay(
                app,
                event,
                request,
                scheduler,
                store=store,
                supervisor=backends.supervisor,
                run=context.run.run_id,
                stop=stop,
                rate=config.rate,
                report=report,
            )
        except (Unavailable, FencedOut) as error:  # the next attempt acquires the lock again
            context.log.warning(f"{event.path}: {error}")
            raise RetryRequested(_RETRIES, _RETRY_SECONDS) from error
        if summary.stopped:  # reports nothing: a day that is partly replayed is not materialized
            context.log.info(
                f"{event.path}: stopped after {summary.loads} loads; the next launch continues"
            )
            interrupt_if_terminated(op)
            raise Failure(f"{event.path}: the replay was stopped; launch it again to continue it")
        days = reporter.flush()
        for partition in context.partition_keys:
            metadata = days.get((event.path, date.fromisoformat(partition)), _NOTHING).metadata(
                links
            )
            context.log_event(AssetMaterialization(key, partition=partition, metadata=metadata))
        counts, now, has_broker = (
            store.counts.of(event.path),
            datetime.now(UTC),
            backends.pubsub is not None,
        )
        evaluate(
            op,
            [replay_settled(key, store.replays.unsettled(event.path, MAX_UNSETTLED_READ))],
        )
        evaluate(op, check_destination(key, event.schedule, counts, now, has_broker))
    return summary


def _progress_line(event: AnyDestinationEvent, progress: ReplayProgress) -> str:
    left = "" if progress.seconds_left is None else f", about {progress.seconds_left:.0f} s left"
    done = f"{progress.done} jobs done, {progress.left} left, {progress.rate:.0f} a second"
    return f"{event.path}: {done}{left}"


def _forecast_metadata(would_load: Forecast) -> Mapping[str, Any]:
    days = {day.isoformat(): dict(states) for day, states in would_load.days.items()}
    return {
        "would_be_loaded": would_load.jobs,
        "about_seconds": -1.0 if would_load.seconds is None else round(would_load.seconds, 1),
        "days": MetadataValue.json(days),
        "sample": MetadataValue.json([msgspec.to_builtins(event) for event in would_load.sample]),
    }
