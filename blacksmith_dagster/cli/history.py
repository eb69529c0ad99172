"""The commands that load history again, and that remove it: replay and purge."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from time import monotonic
from typing import Any

import click

from blacksmith_dagster.cli.common import (
    app_option,
    event_of,
    json_option,
    opened,
    show,
    table,
    utc_time,
)
from blacksmith_dagster.composition import open_scheduler
from blacksmith_dagster.errors import UsageError
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.scheduler import LoadReport
from blacksmith_dagster.scheduler.purge import PurgeReport
from blacksmith_dagster.scheduler.purge import purge as purge_store
from blacksmith_dagster.scheduler.replay import Forecast, ReplayProgress, ReplaySummary, forecast
from blacksmith_dagster.scheduler.replay import replay as replay_window
from blacksmith_dagster.signals import on_stop
from blacksmith_dagster.store.records import ReplayMode, ReplayRequest
from blacksmith_dagster.supervisor import here

_PRINT_SECONDS = 2.0


def _tomorrow() -> str:
    """The end of today, not now, so that running a command again today continues the same replay."""
    return (datetime.now(UTC) + timedelta(days=1)).date().isoformat()


# The options that select what is replayed are named as the fields of ReplayRequest.
@click.command()
@click.argument("destination", metavar="DESTINATION/EVENT")
@click.option(
    "--from",
    "start",
    type=utc_time,
    metavar="TIME",
    required=True,
    help="From this day or time on, in UTC.",
)
@click.option(
    "--to",
    "end",
    type=utc_time,
    metavar="TIME",
    default=_tomorrow,
    help="Up to this day or time. Default: the end of today.",
)
@click.option(
    "--mode",
    "modes",
    multiple=True,
    type=click.Choice([mode.value for mode in ReplayMode]),
    default=["missing", "failed"],
    show_default=True,
    callback=lambda _context, _option, modes: tuple(map(ReplayMode, modes)),
    help="missing: events without a job; failed: discarded jobs; all: all that are not pending.",
)
@click.option(
    "--event",
    "event_types",
    multiple=True,
    metavar="SOURCE/EVENT",
    help="Only events of this type.",
)
@click.option("--version", help="Only events of this version.")
@click.option("--error", help="Only jobs discarded with an error that contains this text.")
@click.option(
    "--when", metavar="MODULE:FUNCTION", help="Only events for which this function is true."
)
@click.option(
    "--edit", metavar="MODULE:FUNCTION", help="A function that returns an event's new data."
)
@click.option("--new-key", is_flag=True, help="Give the jobs new idempotency keys.")
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    help="Run at most this many jobs a second.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be loaded, and load nothing.")
@app_option
@json_option
def replay(
    destination: str,
    rate: float | None,
    dry_run: bool,
    app: Blacksmith,
    json: bool,
    **selection: Any,
) -> None:
    """Load a window of the log again.

    Ctrl-C stops it after the current batch; the same command continues from there.
    """
    event, request = event_of(app, destination), ReplayRequest(**selection)
    with opened(app) as backends, open_scheduler(app) as scheduler:
        if dry_run:
            expected = forecast(app, event, request, store=backends.store)
            show(expected, json=json, text=_forecast_text(expected))
            return
        stop = threading.Event()
        with on_stop(stop.set):
            summary = replay_window(
                app,
                event,
                request,
                scheduler,
                store=backends.store,
                supervisor=backends.supervisor,
                stop=stop,
                rate=rate,
                report=_progress_printer(),
            )
    show(summary, json=json, text=_summary_text(summary))
    if summary.stopped:
        raise click.exceptions.Exit(1)


def _progress_printer() -> Callable[[LoadReport, ReplayProgress], None]:
    """Prints the progress on standard error every few seconds."""
    printed_at = monotonic()

    def print_progress(_: LoadReport, progress: ReplayProgress) -> None:
        nonlocal printed_at
        if monotonic() - printed_at >= _PRINT_SECONDS:
            printed_at = monotonic()
            seconds = progress.seconds_left
            left = "" if seconds is None else f", about {seconds:.0f} s left"
            click.echo(
                f"{progress.done} jobs done, {progress.left} left, {progress.rate:.0f} a second{left}",
                err=True,
            )

    return print_progress


def _forecast_text(expected: Forecast) -> str:
    states = ("missing", "discarded", "succeeded", "pending")
    days = [
        [day, *(counts.get(state, 0) for state in states)] for day, counts in expected.days.items()
    ]
    about = "" if expected.seconds is None else f", in about {expected.seconds:.0f} s"
    parts = [table(["day (UTC)", *states], days), f"{expected.jobs} jobs would be run{about}"]
    if expected.sample:
        sample = map(attrgetter("event_id", "event_type", "state", "error"), expected.sample)
        parts.append(table(["event", "event type", "job", "error"], sample))
    return "\n\n".join(parts)


def _summary_text(summary: ReplaySummary) -> str:
    tally = summary.tally
    text = (
        f"{tally.succeeded} succeeded, {tally.failed} failed and will be retried, "
        f"{tally.discarded} discarded"
    )
    return f"stopped: {text}; run the same command to continue" if summary.stopped else text


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
def purge(app: Blacksmith, dry_run: bool, archive: str | None, json: bool) -> None:
    """Remove the events that are past their retention and that no job, outcome or replay needs, and what
    is past it in quarantine."""
    retentions = app.retention()
    if all(retention.is_forever for retention in retentions.values()):
        raise UsageError(
            "no event is ever past its retention: no source says how long its events are kept; write "
            "Source(..., retention='30d'), for example"
        )
    with opened(app) as backends:
        if dry_run:
            counts = backends.store.log.purgeable(retentions)
            quarantine = backends.store.quarantine
            expired = quarantine.expired(retentions)
            quarantined = {path: quarantine.size(selected) for path, selected in expired.items()}
            head = ["event", "received before (UTC)", "would be removed", "needed"]
            text = table(head, counts)
            if removable := sum(quarantined.values()):
                text += f"\n{removable} would be removed from quarantine"
            show({"events": counts, "quarantine": quarantined}, json=json, text=text)
            return
        report = purge_store(
            app,
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
    if report.quarantined:
        lines.append(f"{report.quarantined} removed from quarantine")
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
