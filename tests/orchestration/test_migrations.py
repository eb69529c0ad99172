"""The migration jobs: how they are configured, and what they report to Dagster."""

import os
import signal
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from dagster import (
    AssetCheckEvaluation,
    AssetCheckKey,
    AssetCheckSeverity,
    AssetKey,
    DagsterEventType,
    DagsterInstance,
    DagsterInvalidConfigError,
    ExecuteInProcessResult,
    JobDefinition,
    TableMetadataValue,
    build_sensor_context,
)

from blacksmith_dagster import Batch, Blacksmith, Destination, Migration, Secret, Source
from blacksmith_dagster.orchestration import BlacksmithResource, build_definitions
from blacksmith_dagster.orchestration.migrations import metadata_of
from blacksmith_dagster.store import open_store
from blacksmith_dagster.store.records import NewEvent, NewJob
from blacksmith_dagster.supervisor import open_supervisor
from blacksmith_dagster.wanderer import MigrationAction, MigrationReport
from tests.support.pipelines.orchestration import Pipeline

FIRST, SECOND, THIRD, FOURTH, FIFTH = (20260101120000 + day * 1_000_000 for day in range(5))
USERS = AssetKey(["lake", "users"])
OPS = {
    "wanderer_ack": "ack_migrations",
    "wanderer_run": "run_migrations",
    "wanderer_rollback": "rollback_migrations",
}


class Migrated:
    """Source `crm` with one migration, destination `lake` with two, its event `users` with two: the
    fourth of all is the source's, the second and the fifth are the event's.

    They note what was run in `ran`; `judge` is called with the version and the direction.
    """

    def __init__(
        self, store_url: str, judge: Callable[[int, str], object] = lambda version, direction: None
    ) -> None:
        self.ran: list[tuple[int, str]] = []
        self._store_url = store_url
        self._judge = judge
        crm = Source("crm", migrations=[self.migration(FOURTH)])
        signed_up = crm.accept("signed_up")
        lake = Destination("lake", migrations=[self.migration(FIRST), self.migration(THIRD)])

        @lake.event(receives=signed_up, migrations=[self.migration(SECOND), self.migration(FIFTH)])
        def users(batch: Batch[Any]) -> None: ...

        self.app = Blacksmith(sources=[crm], destinations=[lake])
        open_store(store_url, upgrade=True).close()

    def migration(self, version: int) -> Migration:
        def step(direction: str) -> None:
            self.ran.append((version, direction))
            self._judge(version, direction)

        return Migration(
            version, f"change_{version % 100_000_000}", lambda: step("up"), lambda: step("down")
        )

    def receive(self) -> None:
        """Keep an event with a job for `users`."""
        with closing(open_store(self._store_url)) as store:
            store.register(self.app)
            store.log.append([[NewEvent("crm/signed_up", "{}", [NewJob("lake/users")])]])

    def load(self, instance: DagsterInstance) -> Mapping[str, Any]:
        """What the load of the destination has reported, by name."""
        result = self._job("load_lake").execute_in_process(instance=instance)
        return {name: value.value for name, value in reported(result).items()}

    def run(
        self,
        instance: DagsterInstance,
        job: str,
        *,
        raise_on_error: bool = True,
        **config: Any,
    ) -> ExecuteInProcessResult:
        return self._job(job).execute_in_process(
            instance=instance,
            run_config={"ops": {OPS[job]: {"config": config}}},
            raise_on_error=raise_on_error,
        )

    def _job(self, name: str) -> JobDefinition:
        resource = BlacksmithResource(store_url=self._store_url)
        return build_definitions(
            self.app, start_date="2026-01-01", resource=resource
        ).resolve_job_def(name)

    def fails(self, instance: DagsterInstance, job: str, **config: Any) -> Mapping[str, Any]:
        """The metadata of a run that must fail, with its reason as `description`."""
        result = self.run(instance, job, raise_on_error=False, **config)
        [failed] = [event for event in result.all_node_events if event.is_step_failure]
        failure = failed.step_failure_data.user_failure_data
        assert failure is not None, failed.step_failure_data.error
        return {**failure.metadata, "description": failure.description}


def reported(result: ExecuteInProcessResult) -> Mapping[str, Any]:
    """The metadata of the op."""
    [output] = [event for event in result.all_node_events if event.is_successful_output]
    return output.step_output_data.metadata


def rows(metadata: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Version, action and state of each row of the table that was reported."""
    table = metadata["migrations"]
    assert isinstance(table, TableMetadataValue)
    return [
        (int(str(row.data["version"])), row.data["action"], row.data["state"])
        for row in table.records
    ]


@pytest.fixture
def one_store(tmp_path: Path) -> str:
    """For what does not depend on the database."""
    return f"sqlite:///{tmp_path}/store.db"


def ups(*versions: int) -> list[tuple[int, str]]:
    return [(version, "up") for version in versions]


def checks(instance: DagsterInstance, result: ExecuteInProcessResult) -> list[tuple[bool, str]]:
    """What the check of the destination's event has found in a run, from the run's log."""
    entries = instance.all_logs(result.run_id, of_type=DagsterEventType.ASSET_CHECK_EVALUATION)
    evaluations = [
        entry.dagster_event.asset_check_evaluation_data for entry in entries if entry.dagster_event
    ]
    return [
        (evaluation.passed, evaluation.description or "")
        for evaluation in evaluations
        if evaluation.asset_check_key == AssetCheckKey(USERS, "migrations_up_to_date")
    ]


def test_there_are_jobs_only_where_something_has_migrations() -> None:
    without = Pipeline("sqlite:////nowhere/store.db").definitions
    assert not any(job.name.startswith("wanderer") for job in without.jobs or ())


def test_a_run_reports_what_was_done_in_a_table(store_url: str, instance: DagsterInstance) -> None:
    migrated = Migrated(store_url)
    result = migrated.run(instance, "wanderer_run")
    assert migrated.ran == ups(FIRST, SECOND, THIRD, FOURTH, FIFTH)
    metadata = reported(result)
    assert rows(metadata) == [
        (version, "up", "succeeded(up)") for version in (FIRST, SECOND, THIRD, FOURTH, FIFTH)
    ]
    [first, second] = [row.data for row in metadata["migrations"].records][:2]
    assert (first["scope"], second["scope"]) == (
        "destination:lake",
        "destination/event:lake/users",
    )
    assert first["name"] == "change_1120000"
    assert isinstance(first["seconds"], float)
    assert metadata["migrations_done"].value == metadata["migrations_planned"].value
    # Another run has nothing to do.
    assert rows(reported(migrated.run(instance, "wanderer_run"))) == []
    assert len(migrated.ran) == 5


def test_a_run_may_be_limited_to_scopes_and_up_to_a_version(
    one_store: str, instance: DagsterInstance
) -> None:
    migrated = Migrated(one_store)
    migrated.run(instance, "wanderer_run", scopes=["d:lake", "s:crm"], version=THIRD)
    assert migrated.ran == ups(FIRST, THIRD)


def test_what_was_acknowledged_is_run_by_the_next_run(
    one_store: str, instance: DagsterInstance
) -> None:
    migrated = Migrated(one_store)
    acknowledged = reported(migrated.run(instance, "wanderer_ack", version=SECOND))
    assert rows(acknowledged) == [
        (FIRST, "acknowledge", "acknowledged"),
        (SECOND, "acknowledge", "acknowledged"),
    ]
    assert migrated.ran == []
    migrated.run(instance, "wanderer_run", version=SECOND)
    assert migrated.ran == ups(FIRST, SECOND)


def test_what_was_discarded_never_runs(one_store: str, instance: DagsterInstance) -> None:
    migrated = Migrated(one_store)
    metadata = reported(migrated.run(instance, "wanderer_ack", version=SECOND, discard=True))
    assert {row[2] for row in rows(metadata)} == {"discarded"}
    migrated.run(instance, "wanderer_run")
    assert migrated.ran == ups(THIRD, FOURTH, FIFTH)


def test_a_rollback_goes_down_to_the_version_which_stays(
    store_url: str, instance: DagsterInstance
) -> None:
    migrated = Migrated(store_url)
    migrated.run(instance, "wanderer_run")
    migrated.ran.clear()
    metadata = reported(migrated.run(instance, "wanderer_rollback", version=THIRD))
    assert migrated.ran == [(FIFTH, "down"), (FOURTH, "down")]
    assert rows(metadata) == [
        (FIFTH, "down", "succeeded(down)"),
        (FOURTH, "down", "succeeded(down)"),
    ]


def test_a_rollback_must_be_given_its_version(one_store: str, instance: DagsterInstance) -> None:
    with pytest.raises(DagsterInvalidConfigError, match="version"):
        Migrated(one_store).run(instance, "wanderer_rollback")


def test_config_of_another_type_is_rejected(one_store: str, instance: DagsterInstance) -> None:
    with pytest.raises(DagsterInvalidConfigError, match="scopes"):
        Migrated(one_store).run(instance, "wanderer_run", scopes="d:lake")


def test_a_dry_run_reports_the_plan_and_does_nothing(
    one_store: str, instance: DagsterInstance
) -> None:
    migrated = Migrated(one_store)
    planned = rows(reported(migrated.run(instance, "wanderer_run", dry_run=True)))
    assert planned == [
        (version, "up", "planned") for version in (FIRST, SECOND, THIRD, FOURTH, FIFTH)
    ]
    assert migrated.ran == []
    assert rows(reported(migrated.run(instance, "wanderer_run", dry_run=True))) == planned


def test_a_dry_run_reports_the_sql() -> None:
    up = MigrationAction("up", "destination:lake", FIRST, "make", "CREATE TABLE users (id TEXT);\n")
    noted = MigrationAction("acknowledge", "destination:lake", SECOND, "noted")
    sql = metadata_of(MigrationReport([up, noted]), dry_run=True)["sql"]
    assert sql.value == (
        f"```sql\n-- destination:lake {FIRST} make (up)\nCREATE TABLE users (id TEXT);\n```"
    )
    assert "sql" not in metadata_of(MigrationReport([up]), dry_run=False)


def test_the_table_of_very_many_is_cut_and_their_number_is_reported() -> None:
    planned = [
        MigrationAction("acknowledge", "destination:lake", version, "step")
        for version in range(3000)
    ]
    metadata = metadata_of(MigrationReport(planned), dry_run=True)
    assert (len(metadata["migrations"].records), metadata["migrations_planned"]) == (1000, 3000)


def test_a_late_lower_version_runs_with_out_of_order(
    one_store: str, instance: DagsterInstance
) -> None:
    migrated = Migrated(one_store)
    migrated.run(instance, "wanderer_run", scopes=["d/e:lake/users"])
    migrated.ran.clear()
    refused = migrated.fails(instance, "wanderer_run", scopes=["d:lake"])
    assert str(FIRST) in refused["description"]
    assert migrated.ran == []
    migrated.run(instance, "wanderer_run", scopes=["d:lake"], out_of_order=True)
    assert migrated.ran == ups(FIRST, THIRD)


def test_an_unknown_scope_fails_the_run_with_its_name(
    one_store: str, instance: DagsterInstance
) -> None:
    migrated = Migrated(one_store)
    failure = migrated.fails(instance, "wanderer_run", scopes=["d:see"])
    assert "no scope 'destination:see'" in failure["description"]


def test_the_third_of_five_fails_and_the_table_says_so(
    store_url: str, instance: DagsterInstance
) -> None:
    def judge(version: int, direction: str) -> None:
        if version == THIRD:
            raise RuntimeError("no such column: gate")

    migrated = Migrated(store_url, judge)
    failure = migrated.fails(instance, "wanderer_run")
    assert rows(failure) == [
        (FIRST, "up", "succeeded(up)"),
        (SECOND, "up", "succeeded(up)"),
        (THIRD, "up", "failed(up)"),
        (FOURTH, "up", "not done"),
        (FIFTH, "up", "not done"),
    ]
    [error] = [row.data["error"] for row in failure["migrations"].records if row.data["error"]]
    assert "no such column: gate" in str(error)
    assert str(THIRD) in failure["description"]
    assert migrated.ran == ups(FIRST, SECOND, THIRD)


def test_a_target_in_use_fails_the_run_at_once_and_names_the_holder(
    store_url: str, instance: DagsterInstance
) -> None:
    migrated = Migrated(store_url)
    store = open_store(store_url)
    supervisor = open_supervisor(None, store.database)
    try:
        lease = supervisor.acquire("migrate/destination/lake", "run-of-another")
        assert lease is not None
        with lease:
            failure = migrated.fails(instance, "wanderer_run")
    finally:
        supervisor.close()
        store.close()
    assert "run-of-another" in failure["description"]
    assert migrated.ran == []


def test_a_signal_ends_the_run_after_the_migration_under_way(
    one_store: str, instance: DagsterInstance
) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def judge(version: int, direction: str) -> None:
        if version == SECOND:
            os.kill(os.getpid(), signal.SIGTERM)

    migrated = Migrated(one_store, judge)
    failure = migrated.fails(instance, "wanderer_run")
    assert migrated.ran == ups(FIRST, SECOND)
    assert [row[2] for row in rows(failure)] == ["succeeded(up)"] * 2 + ["not done"] * 3
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_check_says_which_migration_has_not_run(
    store_url: str, instance: DagsterInstance
) -> None:
    migrated = Migrated(store_url)
    [(passed, description)] = checks(
        instance, migrated.run(instance, "wanderer_run", version=SECOND)
    )
    assert not passed
    assert str(THIRD) in description
    [(passed, description)] = checks(instance, migrated.run(instance, "wanderer_run"))
    assert (passed, description) == (True, "every migration has run")
    [(passed, description)] = checks(
        instance, migrated.run(instance, "wanderer_rollback", version=THIRD)
    )
    assert not passed
    assert str(FIFTH) in description


@pytest.mark.parametrize("waits", [True, False], ids=["its_jobs_wait", "its_jobs_do_not"])
def test_the_report_says_what_is_wrong_with_migrations_that_cannot_be_read(
    one_store: str, instance: DagsterInstance, tmp_path: Path, waits: bool
) -> None:
    crm = Source("crm")
    lake = Destination("lake", migrations=tmp_path / "nowhere", wait_for_migrations=waits)
    lake.event(receives=crm.accept("signed_up"), name="users")(lambda batch: None)
    app = Blacksmith(sources=[crm], destinations=[lake])
    open_store(one_store, upgrade=True).close()
    resource = BlacksmithResource(store_url=one_store)
    [report] = [
        sensor
        for sensor in build_definitions(app, start_date="2026-01-01", resource=resource).sensors
        or ()
        if sensor.name == "blacksmith_report"
    ]
    with build_sensor_context(instance, resources={"blacksmith": resource}) as context:
        reported = report.evaluate_tick(context).asset_events
    [check] = [
        event
        for event in reported
        if isinstance(event, AssetCheckEvaluation) and event.check_name == "migrations_up_to_date"
    ]
    assert not check.passed
    assert str(tmp_path / "nowhere") in (check.description or "")
    assert check.severity is (AssetCheckSeverity.ERROR if waits else AssetCheckSeverity.WARN)


def test_a_failed_run_evaluates_the_check(one_store: str, instance: DagsterInstance) -> None:
    def judge(version: int, direction: str) -> None:
        raise RuntimeError("no such table: users")

    migrated = Migrated(one_store, judge)
    result = migrated.run(instance, "wanderer_run", raise_on_error=False)
    assert not result.success
    [(passed, description)] = checks(instance, result)
    assert not passed
    assert str(FIRST) in description


def test_a_load_says_which_migration_its_jobs_wait_for(
    one_store: str, instance: DagsterInstance
) -> None:
    migrated = Migrated(one_store)
    migrated.receive()
    waiting = migrated.load(instance)
    assert waiting["events_loaded"] == 0
    assert f"migration {FIFTH} has not run" in waiting["skipped"]
    migrated.run(instance, "wanderer_run")
    loaded = migrated.load(instance)
    assert loaded["events_loaded"] == 1
    assert "skipped" not in loaded


def test_they_are_tracked_where_the_environment_says(
    one_store: str, instance: DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing names a home: the resource's store_url is enough.
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BLACKSMITH_HOME", raising=False)
    migrated = Migrated(one_store)
    monkeypatch.setenv("BLACKSMITH_WANDERER_URL", f"sqlite:///{tmp_path}/wanderer.db")
    migrated.run(instance, "wanderer_run")
    assert rows(reported(migrated.run(instance, "wanderer_run", dry_run=True))) == []
    monkeypatch.delenv("BLACKSMITH_WANDERER_URL")
    assert len(rows(reported(migrated.run(instance, "wanderer_run", dry_run=True)))) == 5


def test_an_error_with_a_secret_in_it_is_reported_without(
    one_store: str, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAKE_PASSWORD", "canary-of-the-lake")

    def judge(version: int, direction: str) -> None:
        raise RuntimeError(f"refused: {Secret('LAKE_PASSWORD').reveal()}")

    result = Migrated(one_store, judge).run(instance, "wanderer_run", raise_on_error=False)
    logs = instance.all_logs(result.run_id)
    assert any("refused: ***" in str(entry) for entry in logs)
    assert not any("canary-of-the-lake" in str(entry) for entry in logs)
