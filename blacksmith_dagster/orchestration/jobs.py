"""Load jobs: one per destination, and one per destination event with an interval of its own."""

# Dagster reads the annotation of `context` as it stands: no `from __future__ import annotations`.

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dagster import (
    AssetExecutionContext,
    AssetsDefinition,
    AssetSpec,
    BackfillPolicy,
    DefaultScheduleStatus,
    JobDefinition,
    OpDefinition,
    OpExecutionContext,
    ScheduleDefinition,
    in_process_executor,
    job,
    multi_asset,
    op,
)

from blacksmith_dagster.orchestration.assets import BlacksmithTranslator
from blacksmith_dagster.orchestration.replays import ReplayConfig
from blacksmith_dagster.orchestration.resource import BlacksmithResource
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.destination import DestinationEvent
from blacksmith_dagster.pipeline.schedule import Schedule
from blacksmith_dagster.scheduler.purge import purge

# `dagster.yaml` may limit the runs of each value to one, whoever launches them.
LOAD_TAG = "blacksmith/load"


@dataclass(frozen=True, slots=True)
class LoadJob:
    """What one load job loads, and when."""

    name: str
    events: Sequence[DestinationEvent[Any]]
    schedule: Schedule

    @property
    def realtime(self) -> Sequence[DestinationEvent[Any]]:
        """Those that are loaded at once where there is a broker; the job stands behind."""
        return [event for event in self.events if event.schedule.realtime]


def load_jobs(app: Blacksmith) -> Sequence[LoadJob]:
    """Which load jobs an application has."""
    jobs = []
    for name, destination in app.destinations.items():
        events = list(destination.events.values())
        shared = [event for event in events if not event.own_schedule]
        if shared:
            jobs.append(LoadJob(f"load_{name}", shared, destination.schedule))
        jobs += [
            LoadJob(f"load_{name}__{event.name}", [event], event.schedule)
            for event in events
            if event.own_schedule
        ]
    return jobs


def build_job(
    app: Blacksmith, load_job: LoadJob, translator: BlacksmithTranslator
) -> JobDefinition:
    """The Dagster job: an op per destination event, one after another in the run's own process."""
    ops = [_build_op(app, event, translator) for event in load_job.events]

    @job(
        name=load_job.name,
        description=f"Loads {', '.join(event.path for event in load_job.events)}.",
        executor_def=in_process_executor,
        tags={LOAD_TAG: load_job.name},
    )
    def loads() -> None:
        for each in ops:
            each()

    return loads


def _build_op(
    app: Blacksmith, event: DestinationEvent[Any], translator: BlacksmithTranslator
) -> OpDefinition:
    # A plain function: in a generator Dagster takes the signal handlers back at every `next()`, and
    # a termination would interrupt a batch.
    @op(
        name=event.path.replace("/", "__"),
        description=f"Loads all that is due of {event.path}.",
    )
    def load_event(context: OpExecutionContext, blacksmith: BlacksmithResource) -> None:
        blacksmith.load(context, app, event, translator=translator)

    return load_event


_DAILY = "30 4 * * *"


def build_replay(
    app: Blacksmith,
    event: DestinationEvent[Any],
    spec: AssetSpec,
    translator: BlacksmithTranslator,
) -> AssetsDefinition:
    """The asset of a destination event. Days that are materialized together are one run."""

    # What is materialized is reported day by day, not by the op's output: that is skippable, and a
    # generator that yields nothing leaves it out.
    @multi_asset(
        name=f"replay__{event.path.replace('/', '__')}",
        specs=[spec.replace_attributes(skippable=True)],
        backfill_policy=BackfillPolicy.single_run(),
    )
    def replay_days(
        context: AssetExecutionContext, config: ReplayConfig, blacksmith: BlacksmithResource
    ) -> Iterator[Any]:
        blacksmith.replay(context, app, event, config, translator=translator)
        yield from ()

    return replay_days


def build_purge(app: Blacksmith) -> ScheduleDefinition | None:
    """The schedule of the job `blacksmith_purge`: once a day at 4:30 UTC, running by default.

    `None` if no source says how long its events are kept.
    """
    if all(each.events is None for each in app.retention().values()):
        return None

    @op(name="purge", description="Removes the events that are past their keep.")
    def purge_store(context: OpExecutionContext, blacksmith: BlacksmithResource) -> None:
        report = purge(
            app,
            store=blacksmith.store(app),
            supervisor=blacksmith.supervisor,
            holder=context.run_id,
        )
        context.add_output_metadata(
            {
                "events_deleted": report.events,
                "partitions_dropped": report.partitions,
                "files_archived": len(report.files),
                "tables_postponed": len(report.postponed),
                **({"skipped": report.skipped} if report.skipped else {}),
            }
        )

    @job(
        name="blacksmith_purge",
        description="Removes the events that are past their keep and that nothing needs any more.",
        executor_def=in_process_executor,
    )
    def purges() -> None:
        purge_store()

    return ScheduleDefinition(
        job=purges,
        cron_schedule=_DAILY,
        execution_timezone="UTC",
        default_status=DefaultScheduleStatus.RUNNING,
    )
