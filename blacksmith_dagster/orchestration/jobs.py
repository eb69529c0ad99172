"""Load jobs: one per destination, and one per destination event with an interval of its own."""

# Dagster reads the annotation of `context` as it stands: no `from __future__ import annotations`.

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dagster import (
    JobDefinition,
    OpDefinition,
    OpExecutionContext,
    in_process_executor,
    job,
    op,
)

from blacksmith_dagster.orchestration.assets import BlacksmithTranslator
from blacksmith_dagster.orchestration.resource import BlacksmithResource
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.destination import DestinationEvent
from blacksmith_dagster.pipeline.schedule import Schedule

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
