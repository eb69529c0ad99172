"""The job that purges the store, and the schedule that launches it once a day."""

# Dagster reads the annotation of `context` as it stands: no `from __future__ import annotations`.

from dagster import (
    DefaultScheduleStatus,
    OpExecutionContext,
    ScheduleDefinition,
    in_process_executor,
    job,
    op,
)

from blacksmith_dagster.orchestration.resource import BlacksmithResource
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.retention import retention_of
from blacksmith_dagster.scheduler.purge import purge

_DAILY = "30 4 * * *"


def build_purge(app: Blacksmith) -> ScheduleDefinition | None:
    """The schedule of the job `blacksmith_purge`: once a day at 4:30 UTC, running by default.

    `None` if no source says how long its events are kept.
    """
    if all(each.events is None for each in retention_of(app).values()):
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
