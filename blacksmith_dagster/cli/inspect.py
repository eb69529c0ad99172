"""The commands that show events and jobs, and those that discard jobs by hand."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from operator import attrgetter
from pathlib import Path
from typing import Any

import click
import msgspec

from blacksmith_dagster.cli.common import (
    age,
    app_option,
    event_of,
    json_option,
    limit_option,
    opened,
    show,
    table,
    utc_text,
)
from blacksmith_dagster.composition import open_scheduler
from blacksmith_dagster.errors import NotFound, SettingsError, Unavailable, UsageError
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.scheduler.discard import discard, retire
from blacksmith_dagster.store import Store
from blacksmith_dagster.store.records import (
    JobCounts,
    JobRow,
    ListenerStatus,
    Orphan,
    StoredEvent,
    Transition,
)
from blacksmith_dagster.store.statements import batched
from blacksmith_dagster.supervisor import LockStatus, ServiceStatus, Supervisor

_BATCH = 1000


class _DestinationStatus(msgspec.Struct, frozen=True):
    """A destination event in `status`; `counts` is `None` before a process has registered it.

    `lag` is how many jobs have neither succeeded nor been discarded.
    """

    destination: str
    counts: JobCounts | None
    lag: int | None


class _SupervisorReport(msgspec.Struct, frozen=True):
    """The supervisor's services and locks, or the error that kept them from being read."""

    supervisor: str
    services: Sequence[ServiceStatus] = ()
    locks: Sequence[LockStatus] = ()
    error: str | None = None


class _StatusReport(msgspec.Struct, frozen=True):
    store: str
    supervision: _SupervisorReport
    destinations: Sequence[_DestinationStatus]
    orphans: Sequence[Orphan]
    listeners: Sequence[ListenerStatus]
    quarantined: Mapping[str, int]


@click.command()
@app_option
@json_option
def status(app: Blacksmith, json: bool) -> None:
    """Show services, locks, destination events, listeners, orphans and the size of the quarantine."""
    with opened() as backends:
        store = backends.store
        report = _StatusReport(
            store.label,
            _supervision(backends.supervisor),
            [_destination_status(store, path) for path in app.destination_events],
            store.counts.orphans(app),
            store.log.listeners(),
            store.quarantine.sizes(),
        )
    show(report, json=json, text=_status_text(report, datetime.now(UTC)))


def _supervision(supervisor: Supervisor) -> _SupervisorReport:
    try:
        return _SupervisorReport(supervisor.label, supervisor.services(), supervisor.locks())
    except (Unavailable, SettingsError) as error:
        return _SupervisorReport(supervisor.label, error=str(error))


def _destination_status(store: Store, path: str) -> _DestinationStatus:
    try:
        counts = store.counts.of(path)
    except NotFound:
        return _DestinationStatus(path, None, None)
    return _DestinationStatus(path, counts, counts.pending)


def _status_text(report: _StatusReport, now: datetime) -> str:
    supervision, parts = report.supervision, []
    if supervision.error:
        parts.append(f"Services and locks are not known: {supervision.error}")
    if supervision.services:
        services = [
            [
                service.name,
                service.address,
                "passing" if service.passing else "critical",
                service.version,
                ", ".join(service.tags),
            ]
            for service in supervision.services
        ]
        parts.append(table(["service", "address", "state", "version", "serves"], services))
    if supervision.locks:
        locks = [
            [lock.key, lock.holder, lock.address, age(lock.since, now)]
            for lock in supervision.locks
        ]
        parts.append(table(["lock", "held by", "at", "for"], locks))
    parts.append(_destinations_text(report, now))
    if report.listeners:
        listeners = [
            [
                listener.path,
                listener.holder,
                "not known" if listener.lag is None else f"{listener.lag} {listener.unit}",
                listener.read_at,
                age(listener.at, now),
                listener.error,
            ]
            for listener in report.listeners
        ]
        head = ["listener", "holder", "lag", "read (UTC)", "noted ago", "error"]
        parts.append(table(head, listeners))
    if report.orphans:
        fix = "declare it again until they are loaded, or `blacksmith destinations retire` it"
        parts.append(f"No longer declared ({fix}):")
        parts.append(table(["destination event", "jobs waiting"], report.orphans))
    if report.quarantined:
        sizes = ", ".join(f"{number} of {path}" for path, number in report.quarantined.items())
        parts.append(f"In quarantine: {sizes} (`blacksmith quarantine list`)")
    return "\n\n".join(parts)


def _destinations_text(report: _StatusReport, now: datetime) -> str:
    holders = {lock.key: lock.holder for lock in report.supervision.locks}
    states = ("awaiting", "executing", "retrying", "succeeded", "discarded")
    rows = [
        [
            status.destination,
            *(getattr(status.counts, state, None) for state in states),
            status.lag,
            age(status.counts.oldest_waiting, now) if status.counts else "",
            holders.get(f"load/{status.destination}"),
        ]
        for status in report.destinations
    ]
    return table(["destination event", *states, "lag", "oldest waiting", "loaded by"], rows)


@click.group()
def events() -> None:
    """Show stored events."""


@events.command("show")
@click.argument("event_id", metavar="ID")
@json_option
def show_event(event_id: str, json: bool) -> None:
    """Show an event, its jobs, and every transition of each job with its run."""
    with opened() as backends:
        event, history = (
            backends.store.log.event(event_id),
            backends.store.history.transitions(event_id),
        )
    by_job: dict[str, list[Transition]] = {path: [] for path in event.destinations}
    for transition in history:
        by_job.setdefault(transition.destination, []).append(transition)
    parts = [_event_text(event), *(_job_text(*job) for job in by_job.items())]
    if not by_job:
        parts.append("It has no job: no destination event receives it.")
    show({"event": event, "history": history}, json=json, text="\n\n".join(parts))


def _event_text(event: StoredEvent) -> str:
    fields = {
        "event": event.id,
        "type": event.event_type,
        "received": utc_text(event.received_at),
        "sent": utc_text(event.sent_at),
        "key": event.key,
        "version": event.version,
        "parent": event.parent,
        "context": event.context,
        "data": event.payload,
    }
    return "\n".join(f"{name:<10}{value}" for name, value in fields.items() if value)


def _job_text(destination: str, history: Sequence[Transition]) -> str:
    head = ["at (UTC)", "state", "attempt", "load", "run", "due again", "error"]
    values = attrgetter("at", "state", "attempt", "load_id", "run", "due_at", "error")
    return f"job of {destination}\n{table(head, map(values, history))}"


@events.command("list")
@click.option("--event-type", metavar="SOURCE/EVENT", help="Only events of this type.")
@limit_option
@json_option
def list_events(event_type: str | None, limit: int, json: bool) -> None:
    """List the newest events, newest first."""
    with opened() as backends:
        stored = backends.store.log.newest(event_type, limit)
    rows = [
        [event.id, event.event_type, event.received_at, ", ".join(event.destinations)]
        for event in stored
    ]
    head = ["event", "event type", "received (UTC)", "jobs for"]
    show(stored, json=json, text=table(head, rows))


@click.group()
def jobs() -> None:
    """Show, export and discard jobs. A job is one event to be loaded by one destination event."""


@jobs.command("list")
@click.option(
    "--state",
    type=click.Choice(["discarded", "retrying", "executing", "awaiting"]),
    default="discarded",
    show_default=True,
)
@click.option("--destination", metavar="DESTINATION/EVENT", help="Only the jobs of this one.")
@limit_option
@json_option
def list_jobs(state: str, destination: str | None, limit: int, json: bool) -> None:
    """List the jobs in a state."""
    with opened() as backends:
        stored = backends.store.history.jobs(state, destination, limit)
    head = ["destination event", "event", "event type", "attempts", "due again", "error"]
    values = attrgetter("destination", "event_id", "event_type", "attempts", "due_at", "error")
    show(stored, json=json, text=table(head, map(values, stored)))


@jobs.command("discard")
@click.argument("destination", metavar="DESTINATION/EVENT")
@click.argument("event_ids", metavar="ID...", nargs=-1, required=True)
@click.option("--why", required=True, help="The reason, kept in the jobs' history.")
@app_option
def discard_jobs(destination: str, event_ids: tuple[str, ...], why: str, app: Blacksmith) -> None:
    """Discard jobs that are due again, so that they are not tried any more."""
    event = event_of(app, destination)
    with opened(app) as backends, open_scheduler(app) as scheduler:
        store, supervisor = backends.store, backends.supervisor
        discarded = discard(
            app, event, scheduler, event_ids, why, store=store, supervisor=supervisor
        )
    click.echo(f"{discarded} of {len(event_ids)} discarded")


@jobs.command("export")
@click.argument("destination", metavar="DESTINATION/EVENT")
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["jsonl", "csv"]),
    default="jsonl",
    show_default=True,
    help="JSON lines, or CSV with a column for each field of the data.",
)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="A file to write.")
def export_jobs(destination: str, file_format: str, output: Path | None) -> None:
    """Export the discarded jobs of a destination event, with their events' data."""
    with opened() as backends:
        discarded = backends.store.history.jobs("discarded", destination, sys.maxsize)
        originals: dict[str, JobRow] = {}
        for event_ids in batched([job.event_id for job in discarded], _BATCH):
            originals |= backends.store.log.originals(event_ids)
    rows = [
        {
            "event_id": job.event_id,
            "event_type": job.event_type,
            "received_at": job.received_at.isoformat(),
            "attempts": job.attempts,
            "error": job.error,
            "data": msgspec.json.decode(originals[job.event_id].payload),
        }
        for job in discarded
    ]
    if file_format == "csv":
        exported = as_csv(rows)
    else:
        exported = "".join(msgspec.json.encode(row).decode() + "\n" for row in rows)
    if output is None:
        click.echo(exported, nl=False)
    else:
        output.write_text(exported)
        click.echo(f"{len(rows)} discarded jobs written to {output}", err=True)


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV, with a column for each field that one of them has; `data.flight` if it is nested."""
    flat = [dict(_fields("", row)) for row in rows]
    written = io.StringIO()
    columns = dict.fromkeys(name for row in flat for name in row)
    writer = csv.DictWriter(written, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return written.getvalue()


def _fields(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _fields(f"{name}.{key}" if name else key, inner)
    else:
        yield name, msgspec.json.encode(value).decode() if isinstance(value, list) else value


@click.group()
def destinations() -> None:
    """Retire destination events."""


@destinations.command("retire")
@click.argument("destination", metavar="DESTINATION/EVENT")
@app_option
def retire_destination(destination: str, app: Blacksmith) -> None:
    """Discard all pending jobs of a destination event that is no longer declared."""
    if destination in app.destination_events:
        raise UsageError(f"{destination} is still declared; remove it from the application first")
    with opened() as backends:
        reason = "the destination event was retired"
        discarded = retire(
            destination, reason, store=backends.store, supervisor=backends.supervisor
        )
    click.echo(f"{destination} is retired; {discarded} pending jobs were discarded")
