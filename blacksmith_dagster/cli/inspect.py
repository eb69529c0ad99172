"""The commands that show what became of events and jobs, and those that settle jobs by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import click
import msgspec

from blacksmith_dagster.cli.common import (
    app_option,
    event_of,
    json_option,
    limit_option,
    opened,
)
from blacksmith_dagster.cli.tables import age, as_json, table, utc_text
from blacksmith_dagster.errors import NotFound, SettingsError, Unavailable, UsageError
from blacksmith_dagster.importer import load_application
from blacksmith_dagster.scheduler.discard import discard, retire
from blacksmith_dagster.store.interface import (
    Counts,
    ListenerStatus,
    Orphan,
    Store,
    StoredEvent,
    Transition,
)
from blacksmith_dagster.supervisor import LockStatus, ServiceStatus, Supervisor


class _DestinationStatus(msgspec.Struct, frozen=True):
    """A destination event in `status`: `counts` is `None` before a process has registered it.

    `lag` is how many jobs have neither succeeded nor been discarded.
    """

    destination: str
    counts: Counts | None
    lag: int | None


class _SupervisorReport(msgspec.Struct, frozen=True):
    """What the supervisor knows, or why it is not known."""

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
def status(app: str | None, json: bool) -> None:
    """Show which services run, who holds which lock, how far each destination event and each listener
    is, and what is in quarantine."""
    application = load_application(app)
    with opened() as backends:
        store, supervisor = backends.store, backends.supervisor
        found = _StatusReport(
            store.label,
            _supervision(supervisor),
            [_destination_status(store, path) for path in application.destination_events],
            store.orphans(application),
            store.listeners(),
            store.quarantine_sizes(),
        )
    click.echo(as_json(found) if json else _status_text(found))


def _supervision(supervisor: Supervisor) -> _SupervisorReport:
    try:
        return _SupervisorReport(supervisor.label, supervisor.services(), supervisor.locks())
    except (Unavailable, SettingsError) as error:
        return _SupervisorReport(supervisor.label, error=str(error))


def _destination_status(store: Store, path: str) -> _DestinationStatus:
    try:
        counts = store.counts(path)
    except NotFound:
        counts = None
    return _DestinationStatus(path, counts, counts.pending if counts else None)


def _status_text(found: _StatusReport) -> str:
    now = datetime.now(UTC)
    holders = {lock.key: lock.holder for lock in found.supervision.locks}
    states = ("awaiting", "executing", "retrying", "succeeded", "discarded")
    rows = [
        [
            row.destination,
            *(getattr(row.counts, state, None) for state in states),
            row.lag,
            age(row.counts.oldest_waiting, now) if row.counts else "",
            holders.get(f"load/{row.destination}"),
        ]
        for row in found.destinations
    ]
    head = ["destination event", *states, "lag", "oldest waiting", "loaded by"]
    parts = [*_supervision_text(found.supervision, now), table(head, rows)]
    if found.listeners:
        parts.append(_listeners_text(found.listeners, now))
    if found.orphans:
        fix = "declare it again until they are loaded, or `blacksmith destinations retire` it"
        parts.append(f"No longer declared ({fix}):")
        parts.append(table(["destination event", "jobs waiting"], found.orphans))
    if found.quarantined:
        each = ", ".join(
            f"{number} of {event_type}" for event_type, number in found.quarantined.items()
        )
        parts.append(f"In quarantine: {each} (`blacksmith quarantine list`)")
    return "\n\n".join(parts)


def _listeners_text(listeners: Sequence[ListenerStatus], now: datetime) -> str:
    rows = [
        [
            each.path,
            each.holder,
            "not known" if each.lag is None else f"{each.lag} {each.unit}",
            each.read_at,
            age(each.at, now),
            each.error,
        ]
        for each in listeners
    ]
    return table(["listener", "holder", "lag", "read (UTC)", "noted ago", "error"], rows)


def _supervision_text(found: _SupervisorReport, now: datetime) -> list[str]:
    if found.error:
        return [f"Services and locks are not known: {found.error}"]
    parts = []
    if found.services:
        rows: list[list[object]] = [
            [
                each.name,
                each.address,
                "passing" if each.passing else "critical",
                each.version,
                ", ".join(each.tags),
            ]
            for each in found.services
        ]
        parts.append(table(["service", "address", "state", "version", "serves"], rows))
    if found.locks:
        rows = [[each.key, each.holder, each.address, age(each.since, now)] for each in found.locks]
        parts.append(table(["lock", "held by", "at", "for"], rows))
    return parts


@click.group()
def events() -> None:
    """Events as they were kept."""


@events.command("show")
@click.argument("event_id", metavar="ID")
@json_option
def show_event(event_id: str, json: bool) -> None:
    """Tell what happened to an event: its jobs, every transition of each, and its run."""
    with opened() as backends:
        event, history = backends.store.event(event_id), backends.store.history(event_id)
    if json:
        click.echo(as_json({"event": event, "history": history}))
        return
    by_job: dict[str, list[Transition]] = {path: [] for path in event.destinations}
    for transition in history:
        by_job.setdefault(transition.destination, []).append(transition)
    click.echo("\n\n".join([_event_text(event), *(_job_text(*job) for job in by_job.items())]))
    if not by_job:
        click.echo("\nNo destination event wanted it: it has no job.")


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
    rows = [
        [each.at, each.state, each.attempt, each.load_id, each.run, each.due_at, each.error]
        for each in history
    ]
    head = ["at (UTC)", "state", "attempt", "load", "run", "due again", "error"]
    return f"job of {destination}\n{table(head, rows)}"


@events.command("list")
@click.option("--event-type", metavar="SOURCE/EVENT", help="Only events of this type.")
@limit_option
@json_option
def list_events(event_type: str | None, limit: int, json: bool) -> None:
    """List the newest events, newest first."""
    with opened() as backends:
        found = backends.store.events(event_type, limit)
    if json:
        click.echo(as_json(found))
        return
    rows = [
        [each.id, each.event_type, each.received_at, ", ".join(each.destinations)] for each in found
    ]
    click.echo(table(["event", "event type", "received (UTC)", "jobs for"], rows))


@click.group()
def jobs() -> None:
    """Jobs: one event to be loaded by one destination event."""


@jobs.command("list")
@click.option(
    "--state",
    type=click.Choice(["discarded", "retrying", "executing", "awaiting"]),
    default="discarded",
    show_default=True,
)
@click.option("--destination", metavar="DESTINATION/EVENT", help="Only those of this one.")
@limit_option
@json_option
def list_jobs(state: str, destination: str | None, limit: int, json: bool) -> None:
    """List the jobs in a state."""
    with opened() as backends:
        found = backends.store.jobs(state, destination, limit)
    if json:
        click.echo(as_json(found))
        return
    rows = [
        [each.destination, each.event_id, each.event_type, each.attempts, each.due_at, each.error]
        for each in found
    ]
    head = ["destination event", "event", "event type", "attempts", "due again", "error"]
    click.echo(table(head, rows))


@jobs.command("discard")
@click.argument("destination", metavar="DESTINATION/EVENT")
@click.argument("event_ids", metavar="ID...", nargs=-1, required=True)
@click.option("--why", required=True, help="The reason, kept in the jobs' history.")
@app_option
def discard_jobs(destination: str, event_ids: tuple[str, ...], why: str, app: str | None) -> None:
    """Discard jobs that are due again: they are not tried any more."""
    application = load_application(app)
    event = event_of(application, destination)
    with opened() as backends:
        store, supervisor = backends.store, backends.supervisor
        store.register(application)
        discarded = discard(application, event, event_ids, why, store=store, supervisor=supervisor)
    click.echo(f"{discarded} of {len(event_ids)} discarded")


@click.group()
def destinations() -> None:
    """Destination events."""


@destinations.command("retire")
@click.argument("destination", metavar="DESTINATION/EVENT")
@app_option
def retire_destination(destination: str, app: str | None) -> None:
    """Discard what waits for a destination event that is no longer declared."""
    if destination in load_application(app).destination_events:
        raise UsageError(f"{destination} is still declared; remove it from the application first")
    with opened() as backends:
        store, supervisor = backends.store, backends.supervisor
        why = "the destination event was retired"
        discarded = retire(destination, why, store=store, supervisor=supervisor)
    click.echo(f"{destination} is retired; {discarded} waiting jobs were discarded")
