"""The job that purges, and its schedule, which exists only if events are purged."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from dagster import DagsterInstance, DefaultScheduleStatus, ExecuteInProcessResult

from blacksmith_dagster import Blacksmith, Source
from blacksmith_dagster.orchestration import BlacksmithResource, build_definitions
from blacksmith_dagster.scheduler import purge as purging
from blacksmith_dagster.store import Store, open_store
from blacksmith_dagster.store.records import NewEvent
from blacksmith_dagster.store.tables import time_index
from blacksmith_dagster.supervisor import open_supervisor

SITE = Source("site", retention="30d")
SEEN = SITE.accept("seen")
APP = Blacksmith(sources=[SITE], destinations=[])


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    """A store with three events that are older than they are kept, and one that is not."""
    opened = open_store(store_url, upgrade=True)
    opened.register(APP)
    opened.log.append([[NewEvent(SEEN.path, "{}")] * 3])
    with opened.database.writing() as conn:
        at, last = opened.database.now(conn) - timedelta(days=31), opened.database.sequence(conn)
        conn.execute(time_index.insert(), {"at": at, "low": last, "high": last})
    opened.log.append([[NewEvent(SEEN.path, "{}")]])
    yield opened
    opened.close()


def run(store_url: str, instance: DagsterInstance) -> ExecuteInProcessResult:
    definitions = build_definitions(
        APP, start_date="2026-01-01", resource=BlacksmithResource(store_url=store_url)
    )
    job = definitions.resolve_job_def("blacksmith_purge")
    return job.execute_in_process(instance=instance)


def metadata(result: ExecuteInProcessResult) -> dict[str, object]:
    (output,) = [event for event in result.all_events if event.event_type_value == "STEP_OUTPUT"]
    metadata = output.step_output_data.metadata
    return {name: value.value for name, value in metadata.items()}


def test_a_run_purges_and_reports_what_has_gone(
    store: Store,
    store_url: str,
    instance: DagsterInstance,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BLACKSMITH_ARCHIVE_URL", str(tmp_path / "archive"))
    assert metadata(run(store_url, instance)) == {
        "events_deleted": 3,
        "quarantined_removed": 0,
        "table_partitions_dropped": 0,
        "files_archived": 1,
        "tables_postponed": 0,
    }
    assert len(store.log.newest()) == 1
    assert len(list((tmp_path / "archive").iterdir())) == 1
    assert metadata(run(store_url, instance))["events_deleted"] == 0


def test_a_run_beside_another_purge_is_skipped(
    store: Store, store_url: str, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purging, "_WAIT", 0.1)
    supervisor = open_supervisor(None, store.database)
    try:
        lease = supervisor.acquire("purge", "another run")
        assert lease is not None
        with lease:
            skipped = metadata(run(store_url, instance))["skipped"]
    finally:
        supervisor.close()
    assert str(skipped).startswith("held by another run at ")
    assert len(store.log.newest()) == 4


def test_the_schedule_is_there_only_if_events_are_purged() -> None:
    (schedule,) = build_definitions(APP, start_date="2026-01-01").schedules or ()
    assert schedule.name == "blacksmith_purge_schedule"
    assert schedule.default_status is DefaultScheduleStatus.RUNNING
    forever = Source("site", discarded_retention="30d")
    forever.accept("seen", retention="forever")
    app = Blacksmith(sources=[forever], destinations=[])
    assert not build_definitions(app, start_date="2026-01-01").schedules
    assert not build_definitions(app, start_date="2026-01-01").jobs
