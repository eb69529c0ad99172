"""The commands that load history again, and that show and write out what was discarded."""

from __future__ import annotations

import sys
import threading
import time
from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day
from pathlib import Path
from typing import Any

import click
import msgspec

from blacksmith_dagster.cli.common import app_option, event_of, json_option, opened
from blacksmith_dagster.cli.tables import as_json, table
from blacksmith_dagster.importer import load_application
from blacksmith_dagster.scheduler import LoadReport
from blacksmith_dagster.scheduler.replay import Forecast, ReplayProgress, ReplaySummary, forecast
from blacksmith_dagster.scheduler.replay import replay as replay_window
from blacksmith_dagster.signals import on_stop
from blacksmith_dagster.store.interface import JobRow, ReplayMode, ReplayRequest

_PRINT_SECONDS = 2.0
_AT_ONCE = 1000


class TimeParam(click.ParamType[datetime]):
    """A day, or a time with its zone (UTC if there is none)."""

    name = "time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        """Called by click."""
        if isinstance(value, datetime):
            return value
        try:
            if len(value) == len("2026-01-31"):
                return datetime.combine(date.fromisoformat(value), time_of_day(), UTC)
            at = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r}: write 2026-01-31 or 2026-01-31T12:00Z", param, ctx)
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


@click.command()
@click.argument("destination", metavar="DESTINATION/EVENT")
@click.option(
    "--from", "start", type=TimeParam(), required=True, help="From this day or time on, in UTC."
)
@click.option("--to", "end", type=TimeParam(), help="Up to this; the end of today if not given.")
@click.option(
    "--mode",
    "modes",
    multiple=True,
    type=click.Choice([mode.value for mode in ReplayMode]),
    default=["missing", "failed"],
    show_default=True,
    help="missing: events without a job; failed: discarded jobs; all: what is not pending.",
)
@click.option(
    "--event", "event_types", multiple=True, metavar="SOURCE/EVENT", help="Only this one."
)
@click.option("--version", help="Only events of this version.")
@click.option("--error", help="Only jobs discarded by an error that holds this text.")
@click.option("--when", metavar="MODULE:FUNCTION", help="Only events for which this is true.")
@click.option("--edit", metavar="MODULE:FUNCTION", help="Makes the events' new data.")
@click.option("--new-key", is_flag=True, help="Give the jobs new idempotency keys.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Jobs a second, at most.")
@click.option("--dry-run", is_flag=True, help="Tell what would be loaded, load nothing.")
@app_option
@json_option
def replay(
    destination: str,
    start: datetime,
    end: datetime | None,
    modes: tuple[str, ...],
    event_types: tuple[str, ...],
    version: str | None,
    error: str | None,
    when: str | None,
    edit: str | None,
    new_key: bool,
    rate: float | None,
    dry_run: bool,
    app: str | None,
    json: bool,
) -> None:
    """Load a window of the log again.

    Ctrl-C stops it after the batch under way; the same command goes on from there.
    """
    application = load_application(app)
    event = event_of(application, destination)
    request = ReplayRequest(
        start,
        end or _tomorrow(),
        tuple(ReplayMode(mode) for mode in modes),
        event_types,
        version,
        error,
        when,
        edit,
        new_key,
    )
    with opened() as backends:
        store, supervisor = backends.store, backends.supervisor
        store.register(application)
        if dry_run:
            found = forecast(application, event, request, store=store)
            click.echo(as_json(found) if json else _forecast_text(found))
            return
        stop = threading.Event()
        with on_stop(stop.set):
            summary = replay_window(
                application,
                event,
                request,
                store=store,
                supervisor=supervisor,
                stop=stop,
                rate=rate,
                report=_progress_printer(),
            )
    click.echo(as_json(summary) if json else _summary_text(summary))
    if summary.stopped:
        raise click.exceptions.Exit(1)


def _tomorrow() -> datetime:
    """Whole days, so that the same command, given again today, is the same replay."""
    return datetime.combine(datetime.now(UTC).date() + timedelta(days=1), time_of_day(), UTC)


def _progress_printer() -> Any:
    """Writes a line on standard error now and then."""
    last = time.monotonic()

    def print_progress(_: LoadReport, at: ReplayProgress) -> None:
        nonlocal last
        if time.monotonic() - last >= _PRINT_SECONDS:
            last = time.monotonic()
            left = "" if at.seconds_left is None else f", about {at.seconds_left:.0f} s left"
            click.echo(
                f"{at.done} jobs done, {at.left} left, {at.rate:.0f} a second{left}", err=True
            )

    return print_progress


def _forecast_text(found: Forecast) -> str:
    states = ("missing", "discarded", "succeeded", "pending")
    rows = [[day, *(each.get(state, 0) for state in states)] for day, each in found.days.items()]
    about = "" if found.seconds is None else f", in about {found.seconds:.0f} s"
    parts = [table(["day (UTC)", *states], rows), f"{found.jobs} jobs would be run{about}"]
    if found.sample:
        sample = [[each.event_id, each.event_type, each.state, each.error] for each in found.sample]
        parts.append(table(["event", "event type", "job", "error"], sample))
    return "\n\n".join(parts)


def _summary_text(summary: ReplaySummary) -> str:
    tally = summary.tally
    said = (
        f"{tally.succeeded} succeeded, {tally.failed} failed and are tried again, "
        f"{tally.discarded} discarded"
    )
    return f"stopped: {said}; the same command goes on" if summary.stopped else said


@click.command("export")
@click.argument("destination", metavar="DESTINATION/EVENT")
@click.option(
    "--format",
    "form",
    type=click.Choice(["jsonl", "csv"]),
    default="jsonl",
    show_default=True,
    help="JSON lines, or CSV with a column per field of the data.",
)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="A file to write.")
def export_jobs(destination: str, form: str, output: Path | None) -> None:
    """Write out the discarded jobs of a destination event, with their events' data."""
    with opened() as backends:
        store = backends.store
        found = store.jobs("discarded", destination, sys.maxsize)
        ids = [job.event_id for job in found]
        originals: dict[str, JobRow] = {}
        for start in range(0, len(ids), _AT_ONCE):
            originals |= store.originals(ids[start : start + _AT_ONCE])
    rows = [
        {
            "event_id": job.event_id,
            "event_type": job.event_type,
            "received_at": job.received_at.isoformat(),
            "attempts": job.attempts,
            "error": job.error,
            "data": msgspec.json.decode(originals[job.event_id].payload),
        }
        for job in found
    ]
    if form == "csv":
        import pandas

        written = pandas.json_normalize(rows).to_csv(index=False)
    else:
        written = "".join(msgspec.json.encode(row).decode() + "\n" for row in rows)
    if output is None:
        click.echo(written, nl=False)
    else:
        output.write_text(written)
        click.echo(f"{len(rows)} discarded jobs written to {output}", err=True)
