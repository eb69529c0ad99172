"""Everything that Dagster needs to know of an application: its definitions, or a component for `dg`."""

# Dagster reads the component's fields as they stand: no `from __future__ import annotations`.

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from dagster import (
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
from dagster.components.utils.translation import ResolvedTranslationFn, TranslationFn

from blacksmith_dagster.composition import scheduler_of
from blacksmith_dagster.errors import DeclarationError
from blacksmith_dagster.importer import load_application
from blacksmith_dagster.ingest.listeners import listened_events
from blacksmith_dagster.orchestration.assets import (
    EVENT,
    AnyEvent,
    BlacksmithTranslator,
    EventTranslatorData,
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
    start_date: str | date,
    translator: BlacksmithTranslator | None = None,
    resource: BlacksmithResource | None = None,
    warm: WarmRuns | None = None,
) -> Definitions:
    """Dagster's definitions of an application: assets, jobs, what launches them, and checks.

    - `start_date`: the first day of the assets' partitions, which are UTC days of `received_at`.
    - `translator`: changes the assets' specs; `BlacksmithTranslator()` if `None`.
    - `resource`: the resource `blacksmith`, which is bound to the application; `BlacksmithResource()`
      if `None`.
    - `warm`: how long runs that load realtime events or listen stay alive; `WarmRuns()` if `None`.

    Merge them with your own:

    ```python
    events = build_definitions(application, start_date="2026-01-01")
    defs = Definitions.merge(events, Definitions(assets=[daily_delays]))
    ```

    >>> from blacksmith_dagster import Source
    >>> app = Blacksmith(sources=[Source("airport")], destinations=[])
    >>> [sensor.name for sensor in build_definitions(app, start_date="2026-01-01").sensors]
    ['blacksmith_report']

    Raises `DeclarationError` if `start_date` is not a day, the application's scheduler is not one, or
    `resource` is bound to another application.
    """
    scheduler_of(app)  # a wrong one is reported here, not by the first load
    warm, resource, first_day = (
        warm or WarmRuns(),
        resource or BlacksmithResource(),
        _day(start_date),
    )
    specs = _specs(app, translator or BlacksmithTranslator(), first_day)
    resource.bind(app, {path: spec.key for path, spec in specs.items()})

    jobs: list[JobDefinition] = []
    triggers: list[ScheduleDefinition | SensorDefinition] = []
    for load_job in load_jobs(app):
        jobs.append(build_load_job(load_job))
        triggers.append(build_load_trigger(load_job, jobs[-1]))
    for polled in cron_events(app):
        jobs.append(build_poll_job(polled))
        triggers.append(build_poll_trigger(polled, jobs[-1]))
    triggers.insert(0, build_report_sensor(first_day, {job.name for job in jobs}))
    for destination in filter(realtime_events, app.destinations.values()):
        jobs.append(build_realtime_job(destination, warm))
        triggers.append(build_realtime_sensor(destination, jobs[-1], warm))
    for source in filter(listened_events, app.sources.values()):
        jobs.append(build_listen_job(source, warm))
        triggers.append(build_listen_sensor(source, jobs[-1]))
    jobs += build_migration_jobs(app)

    replays: dict[str, AssetsDefinition] = {}
    for path, event in app.destination_events.items():
        replays[path] = build_replay(event, specs[path])
        if backfill := build_backfill(event, specs[path], first_day):
            triggers.append(backfill)
    if purge := build_purge_job(app):
        jobs.append(purge)
        triggers.append(build_purge_schedule(purge))

    return Definitions(
        assets=[*(replays.get(path, spec) for path, spec in specs.items()), store_spec()],
        asset_checks=[build_checks(app, resource.asset_keys)],
        jobs=jobs,
        schedules=[trigger for trigger in triggers if isinstance(trigger, ScheduleDefinition)],
        sensors=[trigger for trigger in triggers if isinstance(trigger, SensorDefinition)],
        resources={"blacksmith": resource},
    )


def _specs(
    app: Blacksmith, translator: BlacksmithTranslator, start_date: date
) -> Mapping[str, AssetSpec]:
    events: list[AnyEvent] = [*app.source_events.values(), *app.destination_events.values()]
    return {
        event.path: translator.get_asset_spec(
            EventTranslatorData(app, event, start_date)
        ).merge_attributes(metadata={EVENT: event.path})
        for event in events
    }


def _day(start_date: str | date) -> date:
    try:
        day = date.fromisoformat(start_date) if isinstance(start_date, str) else start_date
    except ValueError:
        day = None
    if not isinstance(day, date) or isinstance(day, datetime):
        raise DeclarationError(f"start_date={start_date!r}: write a day, in UTC, as '2026-01-31'")
    return day


class _Scaffolder(Scaffolder[Any]):
    def scaffold(self, request: ScaffoldRequest[Any]) -> None:
        today = datetime.now(UTC).date().isoformat()
        attributes = {"app": "my_package.application:blacksmith", "start_date": today}
        scaffold_component(request, attributes)


@dataclass(frozen=True)
class _ComponentTranslator(BlacksmithTranslator):
    translate: TranslationFn[EventTranslatorData]

    def get_asset_spec(self, data: EventTranslatorData) -> AssetSpec:
        return self.translate(super().get_asset_spec(data), data)


@scaffold_with(_Scaffolder)
@dataclass
class BlacksmithComponent(Component, Resolvable):
    """The definitions of an application; see `build_definitions`.

    - `app`: the application, as `package.module:name`.
    - `start_date`: the first day of the assets' partitions, in UTC.
    - `translation`: changes the assets' specs, as in Dagster's own integrations; the templates know
      `spec` and `data`, the `EventTranslatorData`.

    ```yaml
    type: blacksmith_dagster.orchestration.BlacksmithComponent
    attributes:
      app: my_package.application:blacksmith
      start_date: "2026-01-01"
      translation:
        key_prefix: events
    ```
    """

    app: str
    start_date: str
    translation: ResolvedTranslationFn[EventTranslatorData] = None

    def build_defs(self, context: ComponentLoadContext) -> Definitions:  # noqa: ARG002
        """Called by Dagster.

        Raises `SettingsError` if there is no such application, and what `build_definitions` raises.
        """
        return build_definitions(
            load_application(self.app),
            start_date=self.start_date,
            translator=_ComponentTranslator(self.translation) if self.translation else None,
        )
