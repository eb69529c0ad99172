"""The command that removes events past their retention."""

from __future__ import annotations

import click

from blacksmith_dagster.cli.common import app_option, json_option, opened, show, table
from blacksmith_dagster.errors import UsageError
from blacksmith_dagster.importer import load_application
from blacksmith_dagster.scheduler.purge import PurgeReport
from blacksmith_dagster.scheduler.purge import purge as purge_store
from blacksmith_dagster.supervisor import here


@click.command()
@app_option
@click.option("--dry-run", is_flag=True, help="Show what would be removed, and change nothing.")
@click.option(
    "--archive",
    metavar="URL",
    help="Write events to this folder or fsspec URL before they are removed. "
    "Default: BLACKSMITH_ARCHIVE_URL.",
)
@json_option
def purge(app: str | None, dry_run: bool, archive: str | None, json: bool) -> None:
    """Remove the events that are past their `keep` and that no job, outcome or replay needs."""
    application = load_application(app)
    retentions = application.retention()
    if all(retention.events is None for retention in retentions.values()):
        raise UsageError(
            "no event is ever past its retention: no source says how long its events are kept; write "
            "Source(..., keep='30d'), for example"
        )
    with opened() as backends:
        backends.store.register(application)
        if dry_run:
            counts = backends.store.purgeable(retentions)
            rows = [
                [count.event_type, count.before, count.events, count.needed] for count in counts
            ]
            head = ["event", "received before (UTC)", "would be removed", "needed"]
            show(counts, json=json, text=table(head, rows))
            return
        report = purge_store(
            application,
            store=backends.store,
            supervisor=backends.supervisor,
            holder=here(),
            archive=archive,
        )
    if report.skipped:
        raise UsageError(f"another purge is already running ({report.skipped}); let it finish")
    show(report, json=json, text=_report_text(report))


def _report_text(report: PurgeReport) -> str:
    lines = [f"{report.events} events deleted, {report.partitions} partitions dropped"]
    if report.files:
        lines.append(f"archived in {len(report.files)} files, the last {report.files[-1]}")
    if report.postponed:
        lines.append(
            f"not dropped, because a reader uses them: {', '.join(report.postponed)}; the next purge "
            "drops them"
        )
    if report.stopped:
        lines.append("the purge lost its lock; run it again to continue")
    return "\n".join(lines)
