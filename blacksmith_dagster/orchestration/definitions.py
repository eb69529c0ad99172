"""The composition: everything that Dagster is to know of an application."""

# Dagster reads the component's fields as they stand: no `from __future__ import annotations`.

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dagster import (
    AssetKey,
    AssetSpec,
    Component,
    ComponentLoadContext,
    Definitions,
    Resolvable,
    Scaffolder,
    ScaffoldRequest,
    ScheduleDefinition,
    SensorDefinition,
    scaffold_with,
)
from dagster.components import scaffold_component

from blacksmith_dagster.ingest.listeners import listened_events
from blacksmith_dagster.orchestration.assets import (
    AnyEvent,
    BlacksmithTranslator,
    EventData,
    store_spec,
)
from blacksmith_dagster.orchestration.jobs import build_job, build_purge, build_replay, load_jobs
from blacksmith_dagster.orchestration.listen import build_listen_job, build_listen_sensor
from blacksmith_dagster.orchestration.migrations import build_migration_jobs
from blacksmith_dagster.orchestration.polls import (
    build_poll_job,
    build_poll_trigger,
    cron_events,
)
from blacksmith_dagster.orchestration.realtime import build_realtime_job, build_realtime_sensor
from blacksmith_dagster.orchestration.report_sensor import build_checks, build_report_sensor
from blacksmith_dagster.orchestration.resource import BlacksmithResource
from blacksmith_dagster.orchestration.schedules import build_backfill, build_trigger
from blacksmith_dagster.orchestration.warm_runs import WarmRuns
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.scheduler import realtime_events
from blacksmith_dagster.settings import load_application


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
    - `warm`: how long the runs stay that load realtime events, or listen; `WarmRuns()` if `None`.

    Merge them with your own:

    ```python
    defs = Definitions.merge(build_definitions(application), Definitions(assets=[daily_delays]))
    ```

    >>> from blacksmith_dagster import Source
    >>> app = Blacksmith(sources=[Source("airport")], destinations=[], since="2026-01-01")
    >>> [sensor.name for sensor in build_definitions(app).sensors]
    ['blacksmith_report']
    """
    translator = translator or BlacksmithTranslator()
    specs = _specs(app, translator)
    keys: Mapping[str, AssetKey] = {path: spec.key for path, spec in specs.items()}
    jobs = {each.name: build_job(app, each, translator) for each in load_jobs(app)}
    polls = {each: build_poll_job(app, each, keys[each.path]) for each in cron_events(app)}
    triggers = [
        *(build_trigger(app, each, jobs[each.name]) for each in load_jobs(app)),
        *(build_poll_trigger(event, target) for event, target in polls.items()),
    ]
    warm = warm or WarmRuns()
    realtime = [each for each in app.destinations.values() if realtime_events(each)]
    realtime_jobs = [build_realtime_job(app, each, keys, warm) for each in realtime]
    listened = [each for each in app.sources.values() if listened_events(each)]
    listen_jobs = [build_listen_job(app, each, keys, warm) for each in listened]
    events = app.destination_events
    replays = {
        path: build_replay(app, event, specs[path], translator) for path, event in events.items()
    }
    backfills = [build_backfill(app, event, specs[path]) for path, event in events.items()]
    purges = build_purge(app)
    return Definitions(
        assets=[*(replays.get(path, spec) for path, spec in specs.items()), store_spec()],
        asset_checks=[build_checks(app, keys)],
        jobs=[
            *jobs.values(),
            *polls.values(),
            *realtime_jobs,
            *listen_jobs,
            *build_migration_jobs(app, keys),
            *([purges.job] if purges else []),
        ],
        schedules=[
            *(each for each in triggers if isinstance(each, ScheduleDefinition)),
            *(each for each in backfills if each is not None),
            *([purges] if purges else []),
        ],
        sensors=[
            build_report_sensor(app, keys),
            *(each for each in triggers if isinstance(each, SensorDefinition)),
            *(
                build_realtime_sensor(app, each, target, warm)
                for each, target in zip(realtime, realtime_jobs, strict=True)
            ),
            *map(build_listen_sensor, listened, listen_jobs),
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
        """Called by Dagster. Raises `SettingsError` if the application is not there."""
        return build_definitions(load_application(self.app))
