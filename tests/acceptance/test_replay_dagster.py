"""Backfills in the real Dagster: launched in its UI, terminated there, and with their daemon killed."""

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Any

import pytest
from dagster import AssetKey, DagsterRunStatus
from playwright.sync_api import Page, expect

from tests.support.browser import open_page
from tests.support.processes.dagster_processes import FLIGHTS, DagsterProcess, Deployment
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(300)

TODAY = datetime.now(UTC).date()
DAYS = [(TODAY - timedelta(days=n)).isoformat() for n in (3, 2, 1)]
ASSET_JOB = "__ASSET_JOB"
BACKFILL = """
mutation Backfill($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename
    ... on PythonError { message }
  }
}
"""
LAUNCH = """
mutation Launch($params: ExecutionParams!) {
  launchPipelineExecution(executionParams: $params) {
    __typename
    ... on PythonError { message }
  }
}
"""
on_sqlite = pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
on_postgres = pytest.mark.parametrize("store_url", ["postgres"], indirect=True)


@pytest.fixture
def deploy(store_url: str, tmp_path: Path) -> Iterator[Callable[..., Deployment]]:
    deployments: list[Deployment] = []

    def deployment(numbers: Sequence[int], **options: Any) -> Deployment:
        """A deployment with events of three days, without jobs."""
        lake = Deployment(store_url, tmp_path, interval="@every 1h", **options)
        deployments.append(lake)
        for number, day in zip(numbers, DAYS, strict=True):
            noon = datetime.combine(datetime.fromisoformat(day), time(12), UTC)
            lake.receive(number, received_at=noon, with_jobs=False)
        return lake

    yield deployment
    for deployed in deployments:
        deployed.close()


def backfill(dagster: DagsterProcess) -> None:
    """Launch a backfill of the three days, of which the daemon makes a run."""
    params = {"assetSelection": [{"path": FLIGHTS.split("/")}], "partitionNames": DAYS}
    response = dagster.graphql(BACKFILL, params=params)["launchPartitionBackfill"]
    assert response["__typename"] == "LaunchBackfillSuccess", response


def launch(dagster: DagsterProcess) -> None:
    """Launch a run of the three days directly."""
    tags = {"start": DAYS[0], "end": DAYS[-1]}
    params = {
        "selector": {
            "repositoryLocationName": "tests.support.pipelines.dagster_faults",
            "repositoryName": "__repository__",
            "pipelineName": ASSET_JOB,
            "assetSelection": [{"path": FLIGHTS.split("/")}],
            "assetCheckSelection": [],
        },
        "mode": "default",
        "executionMetadata": {
            "tags": [
                {"key": f"dagster/asset_partition_range_{name}", "value": day}
                for name, day in tags.items()
            ]
        },
    }
    response = dagster.graphql(LAUNCH, params=params)["launchPipelineExecution"]
    assert response["__typename"] == "LaunchRunSuccess", response


def materialized(lake: Deployment) -> set[str]:
    return set(lake.instance.get_materialized_partitions(AssetKey(FLIGHTS.split("/"))))


@on_sqlite
def test_cancelled_from_the_ui(deploy: Callable[..., Deployment]) -> None:
    lake = deploy((150, 0, 60), seconds=0.3)
    dagster = lake.dev()
    launch(dagster)
    until(lake.began, 90, "a batch begins")
    (run,) = lake.runs_of(ASSET_JOB)
    dagster.terminate(run.run_id)
    until(lambda: lake.status(run.run_id) is DagsterRunStatus.CANCELED, 30, "the run is canceled")
    began, ended = (
        [line["ids"] for line in lake.lines() if line["what"] == what] for what in ("begin", "end")
    )
    assert began == ended  # the current batch was finished
    assert 0 < len(ended) < 21
    # The termination reaches the run late on a busy machine: by then it may have loaded a whole day.
    assert materialized(lake) <= set(DAYS[: len(ended) // 15])
    launch(dagster)
    until(lambda: materialized(lake) == set(DAYS), 90, "the next launch continues")
    lake.judge()
    loaded = [
        event_id for line in lake.lines() if line["what"] == "end" for event_id in line["ids"]
    ]
    assert len(loaded) == len(set(loaded)) == 210
    (replayed,) = lake.store.replays.newest(FLIGHTS)
    assert (replayed.jobs, replayed.created_jobs, replayed.waiting) == (210, 210, 0)


@on_postgres
def test_daemon_killed_in_a_backfill(deploy: Callable[..., Deployment]) -> None:
    lake = deploy((40, 40, 40), seconds=0.2)
    dagster = lake.dev()
    backfill(dagster)
    until(lake.began, 90, "a batch begins")
    dagster.kill()  # with the run and all other descendants
    dagster = lake.dev()
    launch(dagster)
    until(lambda: materialized(lake) == set(DAYS), 120, "the next launch continues")
    lake.judge()
    (replayed,) = lake.store.replays.newest(FLIGHTS)
    assert (replayed.jobs, replayed.waiting) == (120, 0)


@pytest.fixture
def page(chromium: str) -> Iterator[Page]:
    with open_page(chromium, height=900) as page:
        yield page


@on_sqlite
def test_a_backfill_launched_in_the_browser(deploy: Callable[..., Deployment], page: Page) -> None:
    lake = deploy((20, 30, 10), seconds=0.05)
    dagster = lake.dev()
    dagster.graphql("mutation { setNuxSeen }")  # otherwise an invitation covers the page
    page.goto(f"{dagster.url}/assets/{FLIGHTS}?view=partitions")
    page.locator("button").filter(has_text="Materialize…").click()
    dialog = page.get_by_role("dialog")
    days = dialog.locator("input[type=text]").first
    days.fill(f"[{DAYS[0]}...{DAYS[-1]}]")
    days.press("Enter")
    dialog.locator("button").filter(has_text="Launch backfill").click()
    until(lambda: materialized(lake) == set(DAYS), 120, "the days become materialized")
    for day, number in zip(DAYS, (20, 30, 10), strict=True):
        page.goto(f"{dagster.url}/assets/{FLIGHTS}?view=partitions&partition={day}")
        expect(page.get_by_text("Materialized (3)")).to_be_visible()
        row = page.get_by_role("row").filter(has_text="events_loaded").first
        expect(row).to_contain_text(str(number))
    (run,) = lake.runs_of(ASSET_JOB)
    assert run.status is DagsterRunStatus.SUCCESS
    lake.judge()
