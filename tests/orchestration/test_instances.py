"""The Dagster instance: its storage on PostgreSQL, and the settings that we propose."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from dagster import AssetKey, DagsterInstance, RunsFilter

from blacksmith_dagster.orchestration.jobs import LOAD_TAG
from tests.support.pipelines.orchestration import TODAY, Pipeline

EXAMPLE = (Path(__file__).parents[2] / "dagster.yaml.example").read_text()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "dagster"
    folder.mkdir()
    return folder


@pytest.fixture
def on_postgres(
    home: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[DagsterInstance]:
    """An instance with the example's settings, those for PostgreSQL among them."""
    _, begin, storage = EXAMPLE.partition("# storage:")
    uncommented = [line.removeprefix("# ") for line in (begin + storage).splitlines()]
    (home / "dagster.yaml").write_text(EXAMPLE + "\n".join(uncommented))
    parts = urlsplit(postgres_url)
    for name, value in {
        "HOST": parts.hostname,
        "PORT": str(parts.port),
        "USER": parts.username,
        "PASSWORD": parts.password or "",
        "DB": parts.path.removeprefix("/"),
    }.items():
        monkeypatch.setenv(f"DAGSTER_POSTGRES_{name}", value or "")
    with DagsterInstance.from_config(str(home)) as instance:
        yield instance


def test_the_example_settings_are_accepted(home: Path) -> None:
    (home / "dagster.yaml").write_text(EXAMPLE)
    with DagsterInstance.from_config(str(home)) as instance:
        assert instance.run_monitoring_enabled
        limits = instance.get_settings("concurrency")["runs"]["tag_concurrency_limits"]
    each_value = {"applyLimitPerUniqueValue": True}
    assert limits == [
        {"key": LOAD_TAG, "value": each_value, "limit": 1},
        {"key": "blacksmith/realtime", "value": each_value, "limit": 2},
        {"key": "blacksmith/listen", "value": each_value, "limit": 2},
    ]


def test_everything_is_reported_to_dagster_on_postgresql(
    on_postgres: DagsterInstance, tmp_path: Path
) -> None:
    assert type(on_postgres.event_log_storage).__name__ == "PostgresEventLogStorage"
    pipeline = Pipeline(f"sqlite:///{tmp_path}/store.db")
    pipeline.receive(3)
    result = pipeline.run(on_postgres)
    flights = AssetKey(["lake", "flights"])
    assert on_postgres.get_materialized_partitions(flights) == {TODAY.isoformat()}
    record = on_postgres.get_latest_materialization_event(flights)
    assert record is not None
    assert record.asset_materialization is not None
    assert record.asset_materialization.metadata["events_loaded"].value == 3
    (run,) = on_postgres.get_runs(RunsFilter(job_name="load_lake"))
    assert run.run_id == result.run_id
    assert run.is_success
