"""Everything that Dagster needs to know of an application: its definitions, or a component for `dg`."""

# Dagster reads the component's fields as they stand: no `from __future__ import annotations`.

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dagster import (
    AssetKey,
    AssetsDefinition,
    AssetSpec,
    Component,
    ComponentLoadContext,
    Definitions,
    JobDefinition,
    Resolvable,
    Scaffolder,
    ScaffoldRequest,
    ScheduleDefinition,
    SensorDefinition,
    scaffold_with,
)
from dagster.components import scaffold_component

from blacksmith_dagster.composition import scheduler_of
from blacksmith_dagster.importer import load_application
from blacksmith_dagster.ingest.listeners import listened_events
from blacksmith_dagster.orchestration.assets import (
    AnyEvent,
    BlacksmithTranslator,
    EventData,
    store_spec,
)
from blacksmith_dagster.orchestration.jobs import (
    build_load_job,
    build_purge_job,
    build_replay,
    load_jobs,
)
from blacksmith_dagster.orchestration.listen import build_listen_job, build_listen_sensor
from blacksmith_dagster.orchestration.migrations import build_migration_jobs
from blacksmith_dagster.orchestration.polls import build_poll_job, build_poll_trigger, cron_events
from blacksmith_dagster.orchestration.realtime import build_realtime_job, build_realtime_sensor
from blacksmith_dagster.orchestration.report_sensor import build_checks, build_report_sensor
from blacksmith_dagster.orchestration.resource import BlacksmithResource
from blacksmith_dagster.orchestration.schedules import (
    build_backfill,
    build_load_trigger,
    build_purge_schedule,
)
from blacksmith_dagster.orchestration.warm_runs import WarmRuns
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.scheduler import realtime_events


def build_definitions(
    app: Blacksmith,
    *,
    translator: BlacksmithTranslator | None = None,
    resource: BlacksmithResource | None = None,
    warm: WarmRuns | None = None,
) -> Definitions:
    """Dagster's definitions of an application: assets, jobs, what launches them, and checks.

    - `translator`: changes the assets' specs; `BlacksmithTranslator()` if `None`.
    - `resource`: opens the store; by default the one that `BLACKSMITH_STORE_URL` names. Its key is
      `blacksmith`.
    - `warm`: how long runs that load realtime events or listen stay alive; `WarmRuns()` if `None`.

    Merge them with your own:

    ```python
    defs = Definitions.merge(build_definitions(application), Definitions(assets=[daily_delays]))
    ```

    >>> from blacksmith_dagster import Source
    >>> app = Blacksmith(sources=[Source("airport")], destinations=[], since="2026-01-01")
    >>> [sensor.name for sensor in build_definitions(app).sensors]
    ['blacksmith_report']
    """
    scheduler_of(app)  # a wrong one is reported here, not by the first load
    translator, warm = translator or BlacksmithTranslator(), warm or WarmRuns()
    specs = _specs(app, translator)
    keys: Mapping[str, AssetKey] = {path: spec.key for path, spec in specs.items()}

    jobs: list[JobDefinition] = []
    triggers: list[ScheduleDefinition | SensorDefinition] = []
    for load_job in load_jobs(app):
        jobs.append(build_load_job(app, load_job, translator))
        triggers.append(build_load_trigger(app, load_job, jobs[-1]))
    for polled in cron_events(app):
        jobs.append(build_poll_job(app, polled, keys[polled.path]))
        triggers.append(build_poll_trigger(polled, jobs[-1]))
    for destination in filter(realtime_events, app.destinations.values()):
        jobs.append(build_realtime_job(app, destination, keys, warm))
        triggers.append(build_realtime_sensor(app, destination, jobs[-1], warm))
    for source in filter(listened_events, app.sources.values()):
        jobs.append(build_listen_job(app, source, keys, warm))
        triggers.append(build_listen_sensor(source, jobs[-1]))
    jobs += build_migration_jobs(app, keys)

    replays: dict[str, AssetsDefinition] = {}
    for path, event in app.destination_events.items():
        replays[path] = build_replay(app, event, specs[path], translator)
        if backfill := build_backfill(app, event, specs[path]):
            triggers.append(backfill)
    if purge := build_purge_job(app):
        jobs.append(purge)
        triggers.append(build_purge_schedule(purge))

    return Definitions(
        assets=[*(replays.get(path, spec) for path, spec in specs.items()), store_spec()],
        asset_checks=[build_checks(app, keys)],
        jobs=jobs,
        schedules=[trigger for trigger in triggers if isinstance(trigger, ScheduleDefinition)],
        sensors=[
            build_report_sensor(app, keys),
            *(trigger for trigger in triggers if isinstance(trigger, SensorDefinition)),
        ],
        resources={"blacksmith": resource or BlacksmithResource()},
    )


def _specs(app: Blacksmith, translator: BlacksmithTranslator) -> Mapping[str, AssetSpec]:
    events: list[AnyEvent] = [*app.source_events.values(), *app.destination_events.values()]
    return {event.path: translator.get_asset_spec(EventData(app, event)) for event in events}


class _Scaffolder(Scaffolder[Any]):
    def scaffold(self, request: ScaffoldRequest[Any]) -> None:
        scaffold_component(request, {"app": "my_package.application:blacksmith"})


@scaffold_with(_Scaffolder)
@dataclass
class BlacksmithComponent(Component, Resolvable):
    """The definitions of the application that `app` names as `package.module:name`.

    ```yaml
    type: blacksmith_dagster.orchestration.BlacksmithComponent
    attributes:
      app: my_package.application:blacksmith
    ```
    """

    app: str

    def build_defs(self, context: ComponentLoadContext) -> Definitions:  # noqa: ARG002
        """Called by Dagster. Raises `SettingsError` if there is no such application."""
        return build_definitions(load_application(self.app))
