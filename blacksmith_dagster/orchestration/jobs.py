"""The jobs and assets that Dagster runs to load, to replay and to purge events."""

# Dagster reads the annotation of `context` as it stands: no `from __future__ import annotations`.

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dagster import (
    AssetExecutionContext,
    AssetsDefinition,
    AssetSpec,
    BackfillPolicy,
    JobDefinition,
    OpDefinition,
    OpExecutionContext,
    in_process_executor,
    job,
    multi_asset,
    op,
)

from blacksmith_dagster.orchestration.replays import ReplayConfig
from blacksmith_dagster.orchestration.resource import BlacksmithResource
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.destination import AnyDestinationEvent
from blacksmith_dagster.pipeline.schedule import Schedule
from blacksmith_dagster.scheduler.purge import purge

# `dagster.yaml` may limit the runs of each value to one, no matter what launches them.
LOAD_TAG = "blacksmith/load"


@dataclass(frozen=True, slots=True)
class LoadJob:
    """What one load job loads, and when."""

    name: str
    events: Sequence[AnyDestinationEvent]
    schedule: Schedule

    @property
    def realtime(self) -> Sequence[AnyDestinationEvent]:
        """The events that are loaded at once where there is a broker; this job is their backstop."""
        return [event for event in self.events if event.schedule.realtime]


def load_jobs(app: Blacksmith) -> Sequence[LoadJob]:
    """One load job per destination, and one per destination event with a schedule of its own."""
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


def in_process_job(
    name: str, description: str, *ops: OpDefinition, tags: Mapping[str, str] | None = None
) -> JobDefinition:
    """A job of these ops, one after another in the run's own process.

    There a termination arrives as a signal, which an op may handle.
    """

    @job(name=name, description=description, executor_def=in_process_executor, tags=tags)
    def run_ops() -> None:
        for op_of_job in ops:
            op_of_job()

    return run_ops


def build_load_job(load_job: LoadJob) -> JobDefinition:
    """The Dagster job, with an op per destination event."""
    return in_process_job(
        load_job.name,
        f"Loads {', '.join(event.path for event in load_job.events)}.",
        *map(_build_load_op, load_job.events),
        tags={LOAD_TAG: load_job.name},
    )


def _build_load_op(event: AnyDestinationEvent) -> OpDefinition:
    # A plain function: with a generator, Dagster would reinstall its own signal handlers at every
    # `next()`, and a termination would interrupt a batch.
    @op(
        name=event.path.replace("/", "__"),
        description=f"Loads everything that is due for {event.path}.",
    )
    def load_event(context: OpExecutionContext, blacksmith: BlacksmithResource) -> None:
        blacksmith.load(context, event)

    return load_event


def build_replay(event: AnyDestinationEvent, spec: AssetSpec) -> AssetsDefinition:
    """The asset of a destination event; materializing it replays the event.

    Days that are materialized together are one run.
    """

    # The run reports each day itself. The op's output is skippable, and a generator that yields
    # nothing leaves it out.
    @multi_asset(
        name=f"replay__{event.path.replace('/', '__')}",
        specs=[spec.replace_attributes(skippable=True)],
        backfill_policy=BackfillPolicy.single_run(),
    )
    def replay_days(
        context: AssetExecutionContext, config: ReplayConfig, blacksmith: BlacksmithResource
    ) -> Iterator[Any]:
        blacksmith.replay(context, event, config)
        yield from ()

    return replay_days


def build_purge_job(app: Blacksmith) -> JobDefinition | None:
    """The job `blacksmith_purge`; `None` if every event is kept forever."""
    if all(retention.is_forever for retention in app.retention().values()):
        return None

    @op(name="purge", description="Removes the events that are past their retention.")
    def purge_store(context: OpExecutionContext, blacksmith: BlacksmithResource) -> None:
        report = purge(
            app,
            store=blacksmith.store,
            supervisor=blacksmith.supervisor,
            holder=context.run_id,
        )
        context.add_output_metadata(
            {
                "events_deleted": report.events,
                "quarantined_removed": report.quarantined,
                "table_partitions_dropped": report.partitions,
                "files_archived": len(report.files),
                "tables_postponed": len(report.postponed),
                **({"skipped": report.skipped} if report.skipped else {}),
                **({"stop_reason": "its lock was lost: purge again"} if report.stopped else {}),
            }
        )

    return in_process_job(
        "blacksmith_purge",
        "Removes the events that are past their retention and that nothing needs any more.",
        purge_store,
    )
