"""The jobs that acknowledge, run and roll back migrations in Dagster."""

# Dagster reads the annotations of ops as they stand: no `from __future__ import annotations`.

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dagster import (
    Config,
    Failure,
    JobDefinition,
    MetadataValue,
    OpExecutionContext,
    TableColumn,
    TableRecord,
    TableSchema,
    op,
)
from pydantic import Field

from blacksmith_dagster.errors import BlacksmithError
from blacksmith_dagster.orchestration.checks import has_migrations, migrations_up_to_date
from blacksmith_dagster.orchestration.jobs import in_process_job
from blacksmith_dagster.orchestration.loads import evaluate, interrupt_if_terminated
from blacksmith_dagster.orchestration.resource import BlacksmithResource
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.redaction import clean
from blacksmith_dagster.signals import on_stop
from blacksmith_dagster.wanderer import CompletedAction, MigrationReport, MigrationRequest, Wanderer

# A run writes the whole table as one event, and the UI shows it at once.
_MOST_ROWS = 1000

_COLUMNS = TableSchema(
    [
        TableColumn("scope"),
        TableColumn("version"),
        TableColumn("name"),
        TableColumn("action"),
        TableColumn("state"),
        TableColumn("seconds", "float"),
        TableColumn("error"),
    ]
)


class _MigrationConfig(Config):
    scopes: list[str] = Field(
        default=[],
        description="Whose migrations: 'source:crm', 'source/event:crm/user', "
        "'destination:warehouse', 'destination/event:warehouse/flights', or in short 's:', 's/e:', "
        "'d:', 'd/e:'. All if empty.",
    )
    dry_run: bool = Field(default=False, description="Only show what would be done.")


class AckConfig(_MigrationConfig):
    """The configuration of `wanderer_ack`."""

    version: int | None = Field(
        default=None, description="Up to this version, as YYYYMMDDHHMMSS; all if empty."
    )
    discard: bool = Field(default=False, description="Discard them instead: they never run.")


class UpConfig(_MigrationConfig):
    """The configuration of `wanderer_run`."""

    version: int | None = Field(
        default=None, description="Up to this version, as YYYYMMDDHHMMSS; all if empty."
    )
    out_of_order: bool = Field(
        default=False, description="Also run migrations that are older than one that has run."
    )


class RollbackConfig(_MigrationConfig):
    """The configuration of `wanderer_rollback`."""

    version: int = Field(
        description="Down to this version, as YYYYMMDDHHMMSS, which stays; 0 rolls all back."
    )
    discard: bool = Field(
        default=False,
        description="Discard the migrations that were rolled back: they never run again.",
    )


def build_migration_jobs(app: Blacksmith) -> Sequence[JobDefinition]:
    """`wanderer_ack`, `wanderer_run` and `wanderer_rollback`; empty if nothing declares migrations."""
    sources, destinations = app.sources.values(), app.destinations.values()
    if not (any(map(has_migrations, sources)) or any(map(has_migrations, destinations))):
        return []

    @op(description="Acknowledges new migrations: the next run runs them.")
    def ack_migrations(
        context: OpExecutionContext, config: AckConfig, blacksmith: BlacksmithResource
    ) -> None:
        _migrate(context, blacksmith, config, Wanderer.ack)

    @op(description="Runs migrations, oldest to newest.")
    def run_migrations(
        context: OpExecutionContext, config: UpConfig, blacksmith: BlacksmithResource
    ) -> None:
        _migrate(context, blacksmith, config, Wanderer.run)

    @op(description="Rolls migrations back, newest to oldest.")
    def rollback_migrations(
        context: OpExecutionContext, config: RollbackConfig, blacksmith: BlacksmithResource
    ) -> None:
        _migrate(context, blacksmith, config, Wanderer.rollback)

    # Never retried, even if the instance retries failed runs: a person must look at the failure.
    return [
        in_process_job(name, migrate.description or "", migrate, tags={"dagster/max_retries": "0"})
        for name, migrate in (
            ("wanderer_ack", ack_migrations),
            ("wanderer_run", run_migrations),
            ("wanderer_rollback", rollback_migrations),
        )
    ]


def _migrate(
    op: OpExecutionContext,
    blacksmith: BlacksmithResource,
    config: _MigrationConfig,
    call: Callable[[Wanderer, MigrationRequest], MigrationReport],
) -> None:
    """Do what `config` says, report to the run what was done, and evaluate the checks.

    When the run is terminated, the migration under way is finished first.

    Raises `Failure` (Dagster's) when something was not done.
    """
    stop = threading.Event()

    def report_done(done: CompletedAction) -> None:
        if done.action.what in ("up", "down"):
            op.log.info(_line(done))

    with on_stop(stop.set):
        try:
            wanderer = blacksmith.wanderer(run=op.run_id, stop=stop, report=report_done)
            report = call(wanderer, MigrationRequest(**config.model_dump()))
            checks = migrations_up_to_date(blacksmith.app, blacksmith.asset_keys, lambda: wanderer)
            findings = [] if config.dry_run else list(checks)
        except BlacksmithError as error:
            raise Failure(clean(str(error)), allow_retries=False) from error
        evaluate(op, findings)
        _conclude(op, report, metadata_of(report, config.dry_run), stop)


def _conclude(
    op: OpExecutionContext,
    report: MigrationReport,
    metadata: Mapping[str, Any],
    stop: threading.Event,
) -> None:
    if report.error is None:
        op.add_output_metadata(metadata)
        return
    failed = next((done for done in report.done if done.error), None)
    if stop.is_set() and failed is None:
        op.log.info(report.error)
        interrupt_if_terminated(op)
    raise Failure(_line(failed) if failed else report.error, metadata, allow_retries=False)


def metadata_of(report: MigrationReport, dry_run: bool) -> Mapping[str, Any]:
    """What a run reports of migrations: a table of them, and how many were done.

    A dry run also shows the SQL of its plan. Only the first 1000 actions are shown: the wanderer's own
    tables have the whole history.
    """
    shown = MigrationReport(report.planned[:_MOST_ROWS], report.done[:_MOST_ROWS], report.error)
    metadata: dict[str, Any] = {
        "migrations": MetadataValue.table(
            [TableRecord(dict(row)) for row in shown.rows()], _COLUMNS
        ),
        "migrations_planned": len(report.planned),
        "migrations_done": sum(done.error is None for done in report.done),
    }
    if dry_run and (sql := shown.sql()):
        metadata["sql"] = MetadataValue.md(f"```sql\n{sql}\n```")
    return metadata


def _line(done: CompletedAction) -> str:
    line = f"{done.action}: {done.state.value}, {done.seconds:.1f} s"
    return f"{line}: {done.error}" if done.error else line
