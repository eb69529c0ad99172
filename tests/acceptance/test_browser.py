"""The real UI of `dagster dev` on the example deployment, in a browser.

With BLACKSMITH_SCREENSHOTS=docs/images it renews the screenshots of the documentation.
"""

import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import httpx
import pytest
from playwright.sync_api import Page, expect

from scripts import demo
from tests.support.browser import open_page, shoot

pytestmark = pytest.mark.timeout(300)

FLIGHTS = 5000
SECONDS = 150
TODAY = datetime.now(UTC).date().isoformat()


REPORTS = """{ assetOrError(assetKey: {path: ["airport", "departed"]}) {
    ... on Asset { assetMaterializations(limit: 1) { timestamp } } } }"""


def is_reported(deployed: demo.Deployment) -> bool:
    """Whether the sensor has reported the day's events, which it does every half minute."""
    return bool(deployed.graphql(REPORTS)["assetOrError"].get("assetMaterializations"))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[demo.Deployment]:
    """The example deployment with real flights, loaded, and its pandas asset materialized."""
    deadline = time.monotonic() + SECONDS
    flights = demo.read_flights(whole_year=False)[:FLIGHTS]
    late = int((flights.dep_delay > demo.LATE_MINUTES).sum())
    home = tmp_path_factory.mktemp("home")
    with demo.broker(home) as pubsub, demo.deployment(home, pubsub) as deployed:
        deployed.wait_for("gateway", lambda: demo.responds(f"{deployed.gateway}/_health"), deadline)
        deployed.wait_for("Dagster", lambda: demo.responds(f"{deployed.ui}/server_info"), deadline)
        deployed.launch(demo.MIGRATES)
        assert demo.feed(deployed.gateway, demo.as_rows(flights), deadline) == FLIGHTS
        demo.watch_loading(deployed, FLIGHTS, late, deadline)
        deployed.wait_for(
            "runs of the loads and of daily_delays",
            lambda: not demo.not_loaded_by(runs := deployed.runs()) and "__ASSET_JOB" in runs,
            deadline,
        )
        assert demo.judge(deployed, flights, FLIGHTS) == []
        deployed.wait_for("report of the day", lambda: is_reported(deployed), deadline)
        # Otherwise Dagster's invitation to its newsletter covers the first page.
        httpx.post(f"{deployed.ui}/graphql", json={"query": "mutation { setNuxSeen }"}, timeout=30)
        yield deployed


@pytest.fixture
def page(running: demo.Deployment, chromium: str) -> Iterator[Page]:
    with open_page(chromium, running.ui) as page:
        yield page


def test_lineage_from_source_event_to_pandas_asset(page: Page) -> None:
    page.goto("/assets/daily_delays?view=lineage&lineageScope=upstream&lineageDepth=5")
    graph = page.locator("svg foreignObject, [class*=AssetNode]")
    for name in ("departed", "flights", "daily_delays"):
        expect(graph.get_by_text(name, exact=True).first).to_be_visible()
    expect(page.get_by_text("pandas", exact=True).first).to_be_visible()
    shoot(page, "lineage")


def test_run_with_its_loads(page: Page) -> None:
    page.goto("/runs")
    job = page.get_by_role("link", name="load_warehouse", exact=True)
    run = page.locator("a[href^='/runs/']")
    row = page.locator("div", has=job).filter(has=run).filter(has_text="Success").last
    row.locator(run).first.click()
    expect(page).to_have_url(re.compile(r"/runs/[0-9a-f-]{36}"))
    expect(page.get_by_text("RUN_SUCCESS").first).to_be_visible()
    page.get_by_placeholder("Filter…").fill("type:ASSET_MATERIALIZATION")
    page.keyboard.press("Enter")
    expect(page.get_by_text("events_loaded").first).to_be_visible()
    shoot(page, "run")


@pytest.mark.parametrize("asset", ["airport/departed", "warehouse/flights"])
def test_partition_of_today_is_filled(page: Page, asset: str) -> None:
    page.goto(f"/assets/{asset}?view=partitions&partition={TODAY}")
    expect(page.get_by_text("Materialized (1)")).to_be_visible()
    expect(
        page.get_by_text("dagster/partition_row_count").or_(page.get_by_text("events_loaded")).first
    ).to_be_visible()
    if asset == "warehouse/flights":
        shoot(page, "partitions")


def test_plot_of_the_pandas_asset(page: Page) -> None:
    page.goto("/assets/daily_delays?view=events")
    expect(page.get_by_text("mean_delay_minutes").first).to_be_visible()
    page.get_by_text("[Show Markdown]").first.click()
    expect(page.get_by_alt_text("mean delay a day")).to_be_visible()
