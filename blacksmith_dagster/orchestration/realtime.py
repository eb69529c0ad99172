"""The warm run that loads a destination's realtime events as soon as they arrive, and its sensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from dagster import JobDefinition, OpExecutionContext, SensorDefinition

from blacksmith_dagster.composition import build_realtime
from blacksmith_dagster.errors import Unavailable
from blacksmith_dagster.orchestration.checks import check_destination
from blacksmith_dagster.orchestration.loads import LoadReporter, conclude, evaluate, links_of
from blacksmith_dagster.orchestration.resource import BlacksmithResource
from blacksmith_dagster.orchestration.schedules import why_not_due
from blacksmith_dagster.orchestration.warm_run_sensor import Holders, build_warm_run_sensor
from blacksmith_dagster.orchestration.warm_runs import Serving, WarmRuns, build_warm_job
from blacksmith_dagster.pipeline.destination import AnyDestinationEvent, Destination
from blacksmith_dagster.pipeline.validation import seconds
from blacksmith_dagster.scheduler import Summary, realtime_events


def build_realtime_job(destination: Destination[Any], warm: WarmRuns) -> JobDefinition:
    """The job `realtime_<destination>`."""
    events = realtime_events(destination)
    paths = [event.path for event in events]

    def serve(op: OpExecutionContext, blacksmith: BlacksmithResource) -> Serving:
        reporter = LoadReporter(blacksmith.asset_keys, op.log_event, links=links_of(op))
        loop = build_realtime(
            blacksmith.app,
            destination,
            blacksmith.scheduler,
            blacksmith.backends,
            holder=op.run_id,
            report=reporter.add,
            run=op.run_id,
        )

        def conclude_run(reason: str, stopped: bool) -> None:
            _check(op, blacksmith, events)
            conclude(op, Summary(reporter.loads, reporter.tally, stopped=stopped), reason)

        return Serving(loop, reporter.report, conclude_run, lambda: loop.idle)

    return build_warm_job(
        "realtime",
        destination.name,
        f"Loads {', '.join(paths)} as soon as there is something to load.",
        [f"load/{path}" for path in paths],
        serve,
        warm,
        longest_load=max(event.timeout.total_seconds() for event in events),
    )


def _check(
    op: OpExecutionContext, blacksmith: BlacksmithResource, events: Sequence[AnyDestinationEvent]
) -> None:
    now = datetime.now(UTC)
    try:
        for event in events:
            key, counts = blacksmith.asset_keys[event.path], blacksmith.store.counts.of(event.path)
            evaluate(op, check_destination(key, event.schedule, counts, now, has_broker=True))
    except Unavailable as error:  # what was loaded is recorded; `blacksmith_report` checks it too
        op.log.warning(f"the checks are not evaluated: {error}")


def why_idle(
    due: Mapping[str, float | None], since_load: float | None, holders: Holders, warm: WarmRuns
) -> str | None:
    """Why no run is needed, or `None` if one is.

    - `due`: in how many seconds each destination event has something due, `None` if nothing waits.
    - `since_load`: seconds since one of them was loaded, `None` if never.
    """
    if all(holders.values()):
        return ", ".join(f"{path} is loaded by {holder}" for path, holder in holders.items())
    if since_load is not None and since_load < seconds(warm.idle):
        return None
    return why_not_due(due)


def build_realtime_sensor(
    destination: Destination[Any], target: JobDefinition, warm: WarmRuns
) -> SensorDefinition:
    """The sensor `realtime_<destination>_sensor`."""
    paths = [event.path for event in realtime_events(destination)]
    locks = {path: f"load/{path}" for path in paths}

    def why_not_configured(blacksmith: BlacksmithResource) -> str | None:
        if blacksmith.pubsub is not None:
            return None
        return "the schedules serve; set BLACKSMITH_PUBSUB_URL to load at once"

    def why_no_run(blacksmith: BlacksmithResource, holders: Holders) -> str | None:
        store = blacksmith.store
        due = {path: store.counts.next_due(path) for path in paths}
        return why_idle(due, store.counts.since_load(*paths), holders, warm)

    return build_warm_run_sensor(
        target,
        f"Keeps a run of {target.name} alive while there is something to load, and for {warm.idle} "
        "more. Needs BLACKSMITH_PUBSUB_URL; without it the schedules serve.",
        locks,
        why_not_configured,
        why_no_run,
    )
