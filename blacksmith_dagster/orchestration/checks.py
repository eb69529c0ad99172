"""The asset checks: discarded, overdue, quarantined and orphaned jobs, listeners, services, migrations.

A load evaluates the checks of its own destination event; the report sensor evaluates all of them, and a
user can do so in the UI. A finding is data: only `run_checks` queries the store, the supervisor and
the gateway, and `migrations_up_to_date` the wanderer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx
from dagster import (
    AssetCheckEvaluation,
    AssetCheckKey,
    AssetCheckResult,
    AssetCheckSeverity,
    AssetCheckSpec,
    AssetKey,
    MetadataValue,
)

from blacksmith_dagster.backends import Backends
from blacksmith_dagster.errors import BlacksmithError, SettingsError, Unavailable
from blacksmith_dagster.ingest.listeners import listened_events
from blacksmith_dagster.orchestration.assets import STORE_KEY
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.destination import Destination
from blacksmith_dagster.pipeline.schedule import Schedule
from blacksmith_dagster.pipeline.source import AnySourceEvent, Source
from blacksmith_dagster.pipeline.triggers import HTTP
from blacksmith_dagster.store.records import JobCounts, JobState, ListenerStatus, Orphan
from blacksmith_dagster.supervisor import Supervisor
from blacksmith_dagster.wanderer import Wanderer

_GATEWAY_SECONDS = 2.0
_REALTIME = timedelta(seconds=10)
# How long after a load is due it may take to run its first job.
_GRACE = timedelta(minutes=5)
# The status of a listener is stored every few seconds.
_SILENT = timedelta(seconds=60)
_STUCK = timedelta(minutes=5)

MAX_UNSETTLED_READ = 1000
"""The maximum number of jobs of a replay that the check reads."""

_NAMED = 10
_ERROR_LENGTH = 200
_DESCRIPTIONS = {
    "no_discarded": "No job has been discarded.",
    "nothing_overdue": "No job is due for more than an interval (10 seconds if loaded in realtime).",
    "nothing_in_quarantine": "No request or message waits in quarantine, at the event or at a webhook "
    "of its source; `blacksmith quarantine` lists, shows, retries and drops them.",
    "listening": "A listener reads its messages or changes, and keeps up with them.",
    "gateway_reachable": "The gateway responds that it accepts events.",
    "supervisor_reachable": "The supervisor grants locks; the metadata name the holder of each.",
    "replay_settled": "Each job of the last replay has succeeded.",
    "no_orphans": "No job waits for a destination event that is no longer declared.",
    "migrations_up_to_date": "Every migration of the destination and its events has run.",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found."""

    key: AssetKey
    name: str
    passed: bool
    description: str
    severity: AssetCheckSeverity = AssetCheckSeverity.WARN
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def check_key(self) -> AssetCheckKey:
        """The check it belongs to."""
        return AssetCheckKey(self.key, self.name)

    def evaluation(self) -> AssetCheckEvaluation:
        """The finding as an event of a run or a sensor."""
        return AssetCheckEvaluation(
            self.key,
            self.name,
            self.passed,
            self.metadata,
            severity=self.severity,
            description=self.description,
        )

    def result(self) -> AssetCheckResult:
        """The finding as the result of a check that was run by hand."""
        return AssetCheckResult(
            passed=self.passed,
            asset_key=self.key,
            check_name=self.name,
            metadata=self.metadata,
            severity=self.severity,
            description=self.description,
        )


def check_specs(app: Blacksmith, keys: Mapping[str, AssetKey]) -> Sequence[AssetCheckSpec]:
    """Every check of the application. `keys`: the asset keys by the events' paths."""
    checks = [
        (keys[path], name)
        for path in app.destination_events
        for name in ("no_discarded", "nothing_overdue", "replay_settled")
    ]
    checks += [(keys[path], "nothing_in_quarantine") for path in app.source_events]
    checks += [(keys[event.path], "listening") for event in _listened(app)]
    checks += [(keys[path], "gateway_reachable") for path in _over_http(app)]
    checks += [
        (keys[event.path], "migrations_up_to_date")
        for destination in app.destinations.values()
        if has_migrations(destination)
        for event in destination.events.values()
    ]
    checks += [(STORE_KEY, "supervisor_reachable"), (STORE_KEY, "no_orphans")]
    return [
        AssetCheckSpec(name, asset=key, description=_DESCRIPTIONS[name]) for key, name in checks
    ]


def run_checks(
    app: Blacksmith, keys: Mapping[str, AssetKey], backends: Backends
) -> Iterator[Finding]:
    """Evaluate every check except those of migrations.

    Raises `Unavailable` when the store does not respond.
    """
    store, has_broker, now = backends.store, backends.pubsub is not None, datetime.now(UTC)
    for path, event in app.destination_events.items():
        yield from check_destination(
            keys[path], event.schedule, store.counts.of(path), now, has_broker
        )
        yield replay_settled(keys[path], store.replays.unsettled(path, MAX_UNSETTLED_READ))
    sizes = store.quarantine.sizes()
    for path, source_event in app.source_events.items():
        at_webhooks = sizes.get(source_event.source.name, 0)
        yield nothing_in_quarantine(keys[path], path, sizes.get(path, 0), at_webhooks)
    statuses = {status.path: status for status in store.log.listeners()}
    for source_event in _listened(app):
        yield listening(keys[source_event.path], source_event, statuses.get(source_event.path), now)
    over_http = _over_http(app)
    if over_http:
        passed, description = gateway_reachable(backends.settings.gateway_url)
        for path in over_http:
            yield Finding(
                keys[path], "gateway_reachable", passed, description, AssetCheckSeverity.ERROR
            )
    yield supervisor_reachable(backends.supervisor)
    yield no_orphans(store.counts.orphans(app))


def check_destination(
    key: AssetKey, schedule: Schedule, counts: JobCounts, now: datetime, has_broker: bool
) -> Iterator[Finding]:
    """The two checks of a destination event, from its counts.

    `has_broker`: whether one notifies the loads of realtime events; else the schedule serves them.
    """
    yield Finding(
        key,
        "no_discarded",
        counts.discarded == 0,
        "nothing is discarded"
        if counts.discarded == 0
        else f"{counts.discarded} jobs are discarded; `blacksmith jobs list --state discarded` "
        "lists them with their reasons",
        metadata={"jobs_discarded": counts.discarded},
    )
    late_at = counts.oldest_waiting and late_after(schedule, counts.oldest_waiting, has_broker)
    overdue = late_at is not None and late_at < now
    # A retry may be due in the future: it does not wait yet.
    oldest = min(counts.oldest_waiting or now, now)
    waiting = (now - oldest).total_seconds()
    yield Finding(
        key,
        "nothing_overdue",
        not overdue,
        f"{counts.pending} jobs wait, the oldest for {waiting:.0f} s; is its schedule running, and "
        "does its load succeed?"
        if overdue
        else f"{counts.pending} jobs wait, none too long",
        metadata={
            "jobs_awaiting": counts.awaiting,
            "jobs_retrying": counts.retrying,
            "jobs_executing": counts.executing,
            "oldest_waiting_seconds": round(waiting, 1),
        },
    )


def nothing_in_quarantine(key: AssetKey, path: str, own: int, at_webhooks: int) -> Finding:
    """Whether requests or messages wait in quarantine.

    - `own`: how many of the event itself.
    - `at_webhooks`: how many that came to a webhook of its source, and may be of any of its events.
    """
    source = path.partition("/")[0]
    description = ", ".join(
        f"{number} wait in quarantine: `blacksmith quarantine list --event {event}` lists them with "
        f"their reasons, `blacksmith quarantine retry --event {event}` ingests them"
        for number, event in [(own, path), (at_webhooks, source)]
        if number
    )
    return Finding(
        key,
        "nothing_in_quarantine",
        not description,
        description or "nothing is in quarantine",
        metadata={"in_quarantine": own}
        | ({"in_quarantine_at_webhooks": at_webhooks} if at_webhooks else {}),
    )


def listening(
    key: AssetKey, event: AnySourceEvent, status: ListenerStatus | None, now: datetime
) -> Finding:
    """Whether a subscription or a CDC event is read: `status` is the last one of its listener."""
    last = status or ListenerStatus(event.path, "")
    if status is None or last.at is None or now - last.at > _SILENT:
        since = f" since {last.at:%Y-%m-%d %H:%M:%S} UTC" if last.at else ""
        problem = (
            f"nothing has listened{since}: is the sensor listen_{event.source.name}_sensor running, or "
            "a `blacksmith worker`, and does it respond?"
        )
    elif last.error:
        problem = last.error
    elif last.lag and (last.read_at is None or now - last.read_at > _STUCK):
        problem = f"{last.lag} {last.unit} wait, and nothing was read for 5 minutes"
    else:
        problem = ""
    metadata = {
        "lag": last.lag,
        "lag_unit": last.unit,
        "held_by": last.holder,
        "last_read_at": last.read_at and MetadataValue.timestamp(last.read_at),
        "noted_at": last.at and MetadataValue.timestamp(last.at),
        "error": last.error,
    }
    return Finding(
        key,
        "listening",
        not problem,
        problem or f"{last.holder} listens; {last.lag or 0} {last.unit} wait",
        AssetCheckSeverity.ERROR,
        {name: value for name, value in metadata.items() if value is not None} if status else {},
    )


def replay_settled(key: AssetKey, unsettled: Sequence[JobState]) -> Finding:
    """Whether all jobs of the last replay have succeeded.

    `unsettled`: the jobs that have not, or the first `MAX_UNSETTLED_READ` of them.
    """
    days = Counter((job.received_at.astimezone(UTC).date(), job.state) for job in unsettled)
    states_by_day: dict[str, dict[str, int]] = {}
    for (day, state), jobs in sorted(days.items()):
        states_by_day.setdefault(day.isoformat(), {})[state] = jobs
    more = "+" if len(unsettled) == MAX_UNSETTLED_READ else ""
    jobs_with_errors = [
        f"{job.event_id}: {(job.error or '')[:_ERROR_LENGTH]}" for job in unsettled[:_NAMED]
    ]
    return Finding(
        key,
        "replay_settled",
        not unsettled,
        f"{len(unsettled)}{more} jobs of the last replay are retried or discarded, on "
        f"{', '.join(states_by_day)}"
        if unsettled
        else "no job of the last replay waits or is discarded",
        metadata={
            "days": MetadataValue.json(states_by_day),
            "jobs": MetadataValue.json(jobs_with_errors),
        }
        if unsettled
        else {},
    )


def late_after(schedule: Schedule, due: datetime, has_broker: bool) -> datetime:
    """The latest time at which a job that was received or due at `due` should be loaded.

    >>> late_after(Schedule("@every 1m"), datetime(2026, 1, 1, tzinfo=UTC), has_broker=True).minute
    2
    """
    if schedule.realtime and has_broker:
        return due + _REALTIME
    return due + schedule.gap(due) + min(schedule.every or _GRACE, _GRACE)


def no_orphans(orphans: Sequence[Orphan]) -> Finding:
    """Whether jobs wait for a destination event that the application no longer declares."""
    orphaned = ", ".join(f"{orphan.destination} ({orphan.pending})" for orphan in orphans)
    return Finding(
        STORE_KEY,
        "no_orphans",
        not orphans,
        f"jobs wait for {orphaned}: declare it again until they are loaded, or run `blacksmith "
        "destinations retire`; renamed_from= moves them to a new name when that is first deployed"
        if orphans
        else "no job is orphaned",
        metadata={orphan.destination: orphan.pending for orphan in orphans},
    )


def supervisor_reachable(supervisor: Supervisor) -> Finding:
    """Whether the supervisor grants locks, and the holder of each."""
    name = "supervisor_reachable"
    try:
        locks = supervisor.locks()
    except (Unavailable, SettingsError) as error:
        description = f"{error} Nothing is loaded meanwhile."
        return Finding(STORE_KEY, name, False, description, AssetCheckSeverity.ERROR)
    return Finding(
        STORE_KEY,
        name,
        True,
        f"locks are kept by {supervisor.label}; held: {len(locks)}",
        AssetCheckSeverity.ERROR,
        {lock.key: lock.held_by for lock in locks},
    )


def has_migrations(target: Source | Destination[Any]) -> bool:
    """Whether a source or a destination, or one of its events, declares migrations."""
    return any(scope.migrations for scope in (target, *target.events.values()))


def migrations_up_to_date(
    app: Blacksmith, keys: Mapping[str, AssetKey], wanderer: Callable[[], Wanderer]
) -> Iterator[Finding]:
    """Whether each destination that has migrations is up to date.

    Shown on each of its events, whose jobs wait while it is not.
    """
    for destination in app.destinations.values():
        if not has_migrations(destination):
            continue
        try:
            waits_for = wanderer().waits_for(destination.name)
        except BlacksmithError as error:  # a file that cannot be read, or a database that is down
            waits_for = str(error)
        for event in destination.events.values():
            yield Finding(
                keys[event.path],
                "migrations_up_to_date",
                waits_for is None,
                waits_for or "every migration has run",
                AssetCheckSeverity.ERROR
                if destination.wait_for_migrations
                else AssetCheckSeverity.WARN,
            )


def gateway_reachable(url: str) -> tuple[bool, str]:
    """Whether the gateway at `url` is ready, and how it responded within 2 seconds."""
    url = url.rstrip("/")
    shown = _without_credentials(url)
    try:
        status = httpx.get(f"{url}/_health", timeout=_GATEWAY_SECONDS, trust_env=False).status_code
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return False, (
            f"{shown} does not respond ({type(error).__name__}): start `blacksmith gateway`, or set "
            "BLACKSMITH_GATEWAY_URL where Dagster runs"
        )
    return status == httpx.codes.OK, f"{shown}/_health returned {status}"


def _listened(app: Blacksmith) -> Sequence[AnySourceEvent]:
    return [event for source in app.sources.values() for event in listened_events(source)]


def _over_http(app: Blacksmith) -> Sequence[str]:
    return [path for path, event in app.source_events.items() if isinstance(event.trigger, HTTP)]


def _without_credentials(url: str) -> str:
    """The URL without credentials and query."""
    parts = urlsplit(url)
    return urlunsplit(
        (parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", "")
    )
