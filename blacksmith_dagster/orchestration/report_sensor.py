"""The sensor `blacksmith_report`: reports to Dagster the events per day and the checks' results."""

# Dagster reads the annotation of `context` as it stands: no `from __future__ import annotations`.

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import msgspec
from dagster import (
    AssetCheckEvaluation,
    AssetCheckExecutionContext,
    AssetCheckResult,
    AssetChecksDefinition,
    AssetKey,
    AssetMaterialization,
    DefaultSensorStatus,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
    multi_asset_check,
    sensor,
)
from msgspec import structs

from blacksmith_dagster.errors import SettingsError, Unavailable
from blacksmith_dagster.orchestration.checks import (
    Finding,
    check_specs,
    has_migrations,
    migrations_up_to_date,
    run_checks,
)
from blacksmith_dagster.orchestration.resource import BlacksmithResource
from blacksmith_dagster.orchestration.schedules import fail_gone_runs
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.store.records import DayCount

_LOOK_SECONDS = 30
# Dagster writes totals one by one, about 100 a second, and a tick has 60 seconds.
_MAX_TOTALS_PER_TICK = 200
# The count of a past day may still grow: clocks differ, and the counter follows the log.
_OPEN_DAYS = timedelta(days=7)
_REPEAT_SECONDS = 3600.0


class ReportCursor(msgspec.Struct, frozen=True):
    """What was reported to Dagster.

    - `since`: the counts of earlier days are final.
    - `totals`: by '<path> <day>', from `since` on.
    - `checks`: by '<asset> <check>', whether it passed and when that was reported.
    - `lockless`: see `fail_gone_runs`.
    """

    since: date
    totals: Mapping[str, int] = {}
    checks: Mapping[str, tuple[bool, float]] = {}
    lockless: Mapping[str, float] = {}

    @classmethod
    def read(cls, text: str | None, first: date) -> "ReportCursor":
        """The cursor in `text`, or one that starts at the day `first` if there is no text yet."""
        return cls(first) if text is None else msgspec.json.decode(text, type=cls)

    def write(self) -> str:
        """The cursor as the text that `read` accepts."""
        return msgspec.json.encode(self).decode()


def changed_totals(
    cursor: ReportCursor, counted: Iterable[DayCount], today: date
) -> tuple[Sequence[DayCount], ReportCursor]:
    """The totals that Dagster does not know yet, oldest day first, and the cursor once it does.

    At most 200; the next call has the rest.
    """
    changed = sorted(
        (count for count in counted if cursor.totals.get(_label(count)) != count.events),
        key=lambda count: (count.day, count.event_type),
    )
    reported, rest = changed[:_MAX_TOTALS_PER_TICK], changed[_MAX_TOTALS_PER_TICK:]
    since = max(cursor.since, min([today - _OPEN_DAYS, *(count.day for count in rest)]))
    totals = {**cursor.totals, **{_label(count): count.events for count in reported}}
    open_totals = {label: events for label, events in totals.items() if _day(label) >= since}
    return reported, structs.replace(cursor, since=since, totals=open_totals)


def to_repeat(
    cursor: ReportCursor, findings: Iterable[Finding], now: float
) -> tuple[Sequence[Finding], ReportCursor]:
    """The findings that changed since they were reported, or were reported an hour ago."""
    due = []
    reported: dict[str, tuple[bool, float]] = {}
    for finding in findings:
        label = f"{finding.key.to_user_string()} {finding.name}"
        before = cursor.checks.get(label)
        if before and before[0] == finding.passed and now - before[1] < _REPEAT_SECONDS:
            reported[label] = before
        else:
            reported[label] = (finding.passed, now)
            due.append(finding)
    return due, structs.replace(cursor, checks=reported)


def build_report_sensor(start_date: date, jobs: Collection[str]) -> SensorDefinition:
    """The sensor `blacksmith_report`: totals per source event and day, the checks, and gone runs.

    `jobs`: the names of the jobs whose runs are marked as failed when their processes are gone.
    """

    @sensor(
        name="blacksmith_report",
        description="Reports how many events were received per day, and evaluates the checks.",
        minimum_interval_seconds=_LOOK_SECONDS,
        default_status=DefaultSensorStatus.RUNNING,
    )
    def report(context: SensorEvaluationContext, blacksmith: BlacksmithResource) -> SensorResult:
        store = blacksmith.store
        store.maintain()  # brings the counts below up to date with the log
        cursor = ReportCursor.read(context.cursor, start_date)
        counted = [
            count
            for count in store.counts.days(cursor.since)
            if count.event_type in blacksmith.app.source_events
        ]
        totals, cursor = changed_totals(cursor, counted, datetime.now(UTC).date())
        findings, cursor = to_repeat(cursor, _findings(blacksmith), time.time())
        try:
            lockless = fail_gone_runs(
                context.instance, jobs, blacksmith.supervisor, cursor.lockless
            )
            cursor = structs.replace(cursor, lockless=lockless)
        except (Unavailable, SettingsError) as error:  # a check reports that, too
            context.log.warning(f"cannot tell which runs are still under way: {error}")
        events: list[AssetMaterialization | AssetCheckEvaluation] = [
            _materialization(blacksmith.asset_keys[count.event_type], count) for count in totals
        ]
        events += [finding.evaluation() for finding in findings]
        return SensorResult(
            asset_events=events,
            cursor=cursor.write(),
            skip_reason=f"reported {len(totals)} totals and {len(findings)} checks"
            if events
            else "nothing has changed",
        )

    return report


def build_checks(app: Blacksmith, keys: Mapping[str, AssetKey]) -> AssetChecksDefinition:
    """The checks, which you can evaluate by hand in the UI or in a job of your own."""

    @multi_asset_check(name="blacksmith_checks", specs=check_specs(app, keys), can_subset=True)
    def checks(
        context: AssetCheckExecutionContext, blacksmith: BlacksmithResource
    ) -> Iterator[AssetCheckResult]:
        for finding in _findings(blacksmith):
            if finding.check_key in context.selected_asset_check_keys:
                yield finding.result()

    return checks


def _findings(blacksmith: BlacksmithResource) -> Iterator[Finding]:
    app, keys = blacksmith.app, blacksmith.asset_keys
    yield from run_checks(app, keys, blacksmith.backends)
    # Migrations may be tracked in another database, which each tick would have to open.
    if any(map(has_migrations, app.destinations.values())):
        yield from migrations_up_to_date(app, keys, blacksmith.wanderer)


def _materialization(key: AssetKey, count: DayCount) -> AssetMaterialization:
    metadata: dict[str, Any] = {"dagster/partition_row_count": count.events}
    return AssetMaterialization(key, partition=count.day.isoformat(), metadata=metadata)


def _label(count: DayCount) -> str:
    return f"{count.event_type} {count.day.isoformat()}"


def _day(label: str) -> date:
    return date.fromisoformat(label.rpartition(" ")[2])
