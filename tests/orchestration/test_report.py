"""The report sensor: totals per day, and what the checks find."""

from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from dagster import (
    AssetCheckEvaluation,
    AssetKey,
    AssetMaterialization,
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    RunsFilter,
    build_sensor_context,
)

from blacksmith_dagster import Batch
from blacksmith_dagster.orchestration import schedules
from blacksmith_dagster.orchestration.checks import Finding
from blacksmith_dagster.orchestration.report_sensor import ReportCursor, changed_totals, to_repeat
from blacksmith_dagster.store.records import DayCount
from tests.support.pipelines.orchestration import TODAY, Pipeline

DEPARTED = AssetKey(["airport", "departed"])


class Tick:
    def __init__(self, pipeline: Pipeline, instance: DagsterInstance, cursor: str | None) -> None:
        sensor = next(
            sensor
            for sensor in pipeline.definitions.sensors or ()
            if sensor.name == "blacksmith_report"
        )
        resources = {"blacksmith": pipeline.resource}
        with build_sensor_context(instance, cursor, resources=resources) as context:
            data = sensor.evaluate_tick(context)
        self.events = data.asset_events
        self.cursor = data.cursor
        self.skipped = data.skip_message

    @property
    def totals(self) -> dict[str | None, Any]:
        return {
            event.partition: event.metadata["dagster/partition_row_count"].value
            for event in self.events
            if isinstance(event, AssetMaterialization) and event.asset_key == DEPARTED
        }

    @property
    def checks(self) -> dict[str, bool]:
        return {
            f"{event.asset_key.to_user_string()} {event.check_name}": event.passed
            for event in self.events
            if isinstance(event, AssetCheckEvaluation)
        }


def test_totals_are_reported_per_day_and_only_when_they_change(
    store_url: str, instance: DagsterInstance
) -> None:
    pipeline = Pipeline(store_url)
    yesterday = TODAY - timedelta(days=1)
    pipeline.receive(3, yesterday)
    pipeline.receive(2)
    first = Tick(pipeline, instance, None)
    assert first.totals == {yesterday.isoformat(): 3, TODAY.isoformat(): 2}
    assert Tick(pipeline, instance, first.cursor).events == []
    assert Tick(pipeline, instance, first.cursor).skipped == "nothing has changed"
    pipeline.receive(4)
    third = Tick(pipeline, instance, first.cursor)
    assert third.totals == {TODAY.isoformat(): 6}


def test_a_run_whose_process_is_gone_is_marked_as_failed(
    instance: DagsterInstance, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedules, "_GRACE_BY_UNDER_WAY", {True: timedelta(0), False: timedelta(0)})
    pipeline = Pipeline(f"sqlite:///{tmp_path}/store.db")
    pipeline.open().close()
    load, _ = (
        instance.add_run(DagsterRun(job_name=job, status=DagsterRunStatus.STARTED)).run_id
        for job in ("load_lake", "a_job_of_the_team")
    )
    first = Tick(pipeline, instance, None)
    monkeypatch.setattr(schedules, "LOCK_GAP_SECONDS", 0.0)
    assert first.cursor
    assert Tick(pipeline, instance, first.cursor).cursor != first.cursor
    failed = {
        run.run_id for run in instance.get_runs(RunsFilter(statuses=[DagsterRunStatus.FAILURE]))
    }
    assert failed == {load}


def test_a_tick_that_is_repeated_reports_the_same(
    store_url: str, instance: DagsterInstance
) -> None:
    # Dagster writes the events before it keeps the cursor: after a crash in between, the tick comes
    # again. Totals bear that, differences would not.
    pipeline = Pipeline(store_url)
    pipeline.receive(5)
    first, again = Tick(pipeline, instance, None), Tick(pipeline, instance, None)
    assert first.totals == again.totals == {TODAY.isoformat(): 5}
    for event in [*first.events, *again.events]:
        instance.report_runless_asset_event(event)
    assert instance.get_materialized_partitions(DEPARTED) == {TODAY.isoformat()}


def test_outcomes_and_what_is_not_declared_are_not_reported(
    instance: DagsterInstance, tmp_path: Any
) -> None:
    def judge(batch: Batch[Any]) -> None:
        batch.discard(batch[0], "no such airport")

    pipeline = Pipeline(f"sqlite:///{tmp_path}/store.db", judge=judge)
    pipeline.receive(1)
    pipeline.run(instance)
    keys = {
        event.asset_key
        for event in Tick(pipeline, instance, None).events
        if isinstance(event, AssetMaterialization)
    }
    assert keys == {DEPARTED}


def test_a_check_is_reported_again_only_when_it_changes(
    instance: DagsterInstance, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BLACKSMITH_GATEWAY_URL", "http://127.0.0.1:1")

    def judge(batch: Batch[Any]) -> None:
        batch.discard(batch[0], "no such airport")

    pipeline = Pipeline(f"sqlite:///{tmp_path}/store.db", judge=judge)
    first = Tick(pipeline, instance, None)
    assert first.checks == {
        "lake/flights no_discarded": True,
        "lake/flights nothing_overdue": True,
        "lake/flights replay_settled": True,
        "lake/movements no_discarded": True,
        "lake/movements nothing_overdue": True,
        "lake/movements replay_settled": True,
        "lake/undeliverable no_discarded": True,
        "lake/undeliverable nothing_overdue": True,
        "lake/undeliverable replay_settled": True,
        "airport/departed nothing_in_quarantine": True,
        "airport/departed gateway_reachable": False,
        "blacksmith supervisor_reachable": True,
        "blacksmith no_orphans": True,
    }
    pipeline.receive(1)
    pipeline.run(instance)
    assert Tick(pipeline, instance, first.cursor).checks == {"lake/flights no_discarded": False}


def count(day: date, events: int, event_type: str = "airport/departed") -> DayCount:
    return DayCount(event_type, day, events)


def reported(
    cursor: ReportCursor, counted: Sequence[DayCount]
) -> tuple[list[DayCount], ReportCursor]:
    changed, after = changed_totals(
        cursor, [count for count in counted if count.day >= cursor.since], TODAY
    )
    return list(changed), after


def test_many_past_days_are_reported_in_portions_oldest_first() -> None:
    counted = [count(TODAY - timedelta(days=ago), ago + 1) for ago in range(500)]
    cursor = ReportCursor(TODAY - timedelta(days=499))
    seen: list[DayCount] = []
    for portion in (200, 200, 100, 0):
        changed, cursor = reported(cursor, counted)
        assert len(changed) == portion
        seen += changed
    assert seen == counted[::-1]


def test_the_cursor_forgets_days_that_are_over() -> None:
    counted = [count(TODAY - timedelta(days=ago), 1) for ago in range(100)]
    _, cursor = reported(ReportCursor(TODAY - timedelta(days=99)), counted)
    assert len(cursor.totals) == 8
    assert ReportCursor.read(cursor.write(), TODAY) == cursor
    late = [*counted[8:], count(TODAY - timedelta(days=7), 2), *counted[:7]]
    assert reported(cursor, late)[0] == [count(TODAY - timedelta(days=7), 2)]


def test_a_finding_is_repeated_after_an_hour() -> None:
    finding = Finding(DEPARTED, "gateway_reachable", True, "it responds")
    first, cursor = to_repeat(ReportCursor(TODAY), [finding], now=1000.0)
    assert first == [finding]
    assert to_repeat(cursor, [finding], now=4599.0)[0] == []
    assert to_repeat(cursor, [finding], now=4600.0)[0] == [finding]


def test_where_nothing_has_migrations_no_tick_opens_what_tracks_them(
    store_url: str, instance: DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking = tmp_path / "wanderer.db"
    monkeypatch.setenv("BLACKSMITH_WANDERER_URL", f"sqlite:///{tracking}")
    pipeline = Pipeline(store_url)
    pipeline.receive(1)
    assert Tick(pipeline, instance, None).checks
    assert not tracking.exists()
