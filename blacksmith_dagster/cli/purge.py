"""The command that removes events which are past their time."""

from __future__ import annotations

import click

from blacksmith_dagster.cli.common import app_option, json_option, opened
from blacksmith_dagster.cli.tables import as_json, table
from blacksmith_dagster.errors import UsageError
from blacksmith_dagster.importer import load_application
from blacksmith_dagster.scheduler.purge import PurgeReport
from blacksmith_dagster.scheduler.purge import purge as purge_store
from blacksmith_dagster.supervisor import here


@click.command()
@app_option
@click.option("--dry-run", is_flag=True, help="Tell what would go, and change nothing.")
@click.option(
    "--archive",
    metavar="URL",
    help="Write events to this folder or fsspec URL before they go; BLACKSMITH_ARCHIVE_URL otherwise.",
)
@json_option
def purge(app: str | None, dry_run: bool, archive: str | None, json: bool) -> None:
    """Remove the events that are past their `keep` and that nothing needs any more."""
    application = load_application(app)
    retention = application.retention()
    if all(each.events is None for each in retention.values()):
        raise UsageError(
            "nothing is ever past its time: no source says how long its events are kept; write "
            "Source(..., keep='30d'), for example"
        )
    with opened() as backends:
        store, supervisor = backends.store, backends.supervisor
        store.register(application)
        if dry_run:
            found = store.purgeable(retention)
            rows = [[each.event_type, each.before, each.events, each.needed] for each in found]
            head = ["event", "received before (UTC)", "would go", "needed"]
            click.echo(as_json(found) if json else table(head, rows))
            return
        report = purge_store(
            application,
            store=store,
            supervisor=supervisor,
            holder=here(),
            archive=archive,
        )
    if report.skipped:
        raise UsageError(f"another purge is at it: {report.skipped}; it does the same")
    click.echo(as_json(report) if json else _text(report))


def _text(report: PurgeReport) -> str:
    lines = [f"{report.events} events deleted, {report.partitions} partitions dropped"]
    if report.files:
        lines.append(f"archived in {len(report.files)} files, the last {report.files[-1]}")
    if report.postponed:
        lines.append(
            f"a reader keeps {', '.join(report.postponed)} from being dropped; the next purge will"
        )
    if report.stopped:
        lines.append("its lock was lost: purge again, it goes on from there")
    return "\n".join(lines)
