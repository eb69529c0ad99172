"""The sensor that keeps a destination's realtime run alive while there is something to load."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dagster import (
    DefaultSensorStatus,
    JobDefinition,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    sensor,
)

from blacksmith_dagster.orchestration.load_schedules import why_not
from blacksmith_dagster.orchestration.resource import BlacksmithResource
from blacksmith_dagster.orchestration.warm_runs import WarmRuns
from blacksmith_dagster.orchestration.warm_sensor import LOOK_SECONDS, Holders, look
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.destination import Destination
from blacksmith_dagster.scheduler import realtime_events


def why_idle(
    due: Mapping[str, float | None],
    since_load: float | None,
    holders: Holders,
    warm: WarmRuns,
) -> str | None:
    """Why no run is needed where none is active, or `None` if one is.

    - `due`: in how many seconds each destination event has something due, `None` if nothing waits.
    - `since_load`: seconds since one of them was loaded, `None` if never.
    """
    if all(holders.values()):
        return ", ".join(f"{path} is loaded by {holder}" for path, holder in holders.items())
    if since_load is not None and since_load < warm.idle_seconds:
        return None
    return why_not(due)


def build_realtime_sensor(
    app: Blacksmith, destination: Destination[Any], target: JobDefinition, warm: WarmRuns
) -> SensorDefinition:
    """The sensor `realtime_<destination>_sensor`."""
    paths = [event.path for event in realtime_events(destination)]
    locks = {path: f"load/{path}" for path in paths}

    @sensor(
        name=f"{target.name}_sensor",
        job=target,
        description=f"Keeps a run of {target.name} alive while there is something to load, and for "
        f"{warm.idle} more. Needs BLACKSMITH_PUBSUB_URL; without it the schedules serve.",
        minimum_interval_seconds=LOOK_SECONDS,
        default_status=DefaultSensorStatus.RUNNING,
    )
    def looked(
        context: SensorEvaluationContext, blacksmith: BlacksmithResource
    ) -> SensorResult | SkipReason:
        if blacksmith.pubsub is None:
            return SkipReason("the schedules serve; set BLACKSMITH_PUBSUB_URL to load at once")
        store = blacksmith.store(app)

        def why_no_run(holders: Holders) -> str | None:
            due = {path: store.next_due(path) for path in paths}
            return why_idle(due, store.since_load(*paths), holders, warm)

        return look(context, blacksmith.supervisor, target.name, locks, why_no_run)

    return looked
