"""The wanderer's jobs in the real UI of `dagster dev`."""

import os
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from dagster import DagsterInstance, DagsterRun, DagsterRunStatus
from playwright.sync_api import Page, expect

from blacksmith_dagster import Blacksmith
from blacksmith_dagster.store import open_store
from blacksmith_dagster.supervisor import open_supervisor
from blacksmith_dagster.wanderer import MigrationState, Wanderer
from tests.support.browser import open_page, shoot
from tests.support.dagster_home import make_home
from tests.support.pipelines.wanderer import FOLDER, SLOW, WAREHOUSE, airport, lake
from tests.support.processes.blacksmith import ROOT_FOLDER
from tests.support.processes.dagster_processes import DagsterProcess
from tests.support.services import free_port
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(300)

MODULE = "tests.support.pipelines.wanderer"
CREATED, GATED = 20260101120000, 20260102120000
FILES = {
    f"{CREATED}.create_flights.up.sql": "CREATE TABLE flights (id TEXT PRIMARY KEY);",
    f"{CREATED}.create_flights.down.sql": "DROP TABLE flights;",
    f"{GATED}.add_gate.up.sql": "ALTER TABLE flights ADD COLUMN gate TEXT;",
    f"{GATED}.add_gate.down.sql": "ALTER TABLE flights DROP COLUMN gate;",
}
LAUNCH = """
mutation Launch($selector: JobOrPipelineSelector!, $config: RunConfigData) {
  launchRun(executionParams: {selector: $selector, runConfigData: $config}) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
  }
}
"""


class Wandering:
    """A running `dagster dev` on `wanderer_pipeline`, with its own store and warehouse."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.store_url = f"sqlite:///{home / 'store.db'}"
        self.warehouse = home / "warehouse.db"
        folder = home / "migrations" / "warehouse"
        folder.mkdir(parents=True)
        for name, sql in FILES.items():
            (folder / name).write_text(sql)
        make_home(home, "nux: {enabled: false}\n")
        open_store(self.store_url, upgrade=True).close()
        env = {
            **os.environ,
            "DAGSTER_HOME": str(home),
            "BLACKSMITH_HOME": str(home),
            "BLACKSMITH_STORE_URL": self.store_url,
            "BLACKSMITH_GATEWAY_URL": "http://127.0.0.1:1",
            FOLDER: str(home),
            WAREHOUSE: f"sqlite:///{self.warehouse}",
        }
        self.instance = DagsterInstance.from_config(str(home))
        port = free_port()
        arguments = ["dagster", "dev", "--port", str(port), "--module-name", MODULE]
        arguments += ["--working-directory", str(ROOT_FOLDER)]
        self.dagster = DagsterProcess(arguments, env, home)
        self.dagster.url = f"http://127.0.0.1:{port}"
        self.dagster.until_ready(self.dagster.responds)

    def columns(self) -> list[str]:
        """The columns of the warehouse's table."""
        with closing(sqlite3.connect(self.warehouse)) as database:
            return [row[1] for row in database.execute("PRAGMA table_info(flights)")]

    def launch(self, job: str, op: str, scopes: Sequence[str]) -> str:
        """Launch a run through the UI's own API; returns its id."""
        response = self.dagster.graphql(
            LAUNCH,
            selector={
                "jobName": job,
                "repositoryName": "__repository__",
                "repositoryLocationName": MODULE,
            },
            config={"ops": {op: {"config": {"scopes": scopes}}}},
        )
        assert response["launchRun"]["__typename"] == "LaunchRunSuccess", response
        run: str = response["launchRun"]["run"]["runId"]
        return run

    def run(self, run_id: str) -> DagsterRun:
        run = self.instance.get_run_by_id(run_id)
        assert run
        return run

    def ended(self, run_id: str) -> DagsterRunStatus:
        """Wait until a run has ended; returns its status."""
        until(lambda: self.run(run_id).is_finished, 90, "the run has ended")
        return self.run(run_id).status

    def states_of_lake(self) -> list[MigrationState | None]:
        """The states of the lake's migrations, oldest first."""
        app = Blacksmith(sources=[airport], destinations=[lake])
        with (
            closing(open_store(self.store_url)) as store,
            closing(open_supervisor(None, store.database)) as supervisor,
        ):
            wanderer = Wanderer(
                app, database=store.database, supervisor=supervisor, holder="the test"
            )
            return [status.state for status in wanderer.status()]


@pytest.fixture(scope="module")
def wandering(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wandering]:
    running = Wandering(tmp_path_factory.mktemp("home"))
    yield running
    running.dagster.kill()
    running.instance.dispose()


@pytest.fixture
def page(wandering: Wandering, chromium: str) -> Iterator[Page]:
    with open_page(chromium, wandering.dagster.url) as page:
        yield page


def launch_by_hand(page: Page, job: str, config: str) -> None:
    """Write the configuration into the launchpad and launch."""
    page.goto(f"/locations/{MODULE}/jobs/{job}")
    page.get_by_role("tab", name="Launchpad").click()
    editor = page.locator(".CodeMirror").first
    editor.click()
    page.keyboard.press("ControlOrMeta+A")
    page.keyboard.insert_text(config)
    page.get_by_role("button", name="Launch Run").click()
    expect(page).to_have_url(re.compile(r"/runs/[0-9a-f-]{36}"))


def see_table(page: Page, rows: Sequence[Sequence[str]]) -> None:
    """Check that the run's log has the table of migrations, with these cells in its rows."""
    expect(page.get_by_text("RUN_SUCCESS").first).to_be_visible(timeout=60_000)
    page.get_by_placeholder("Filter…").fill("type:STEP_OUTPUT")
    page.keyboard.press("Enter")
    table = page.get_by_role("table").filter(has_text="scope").last
    body = table.locator("tbody tr")
    expect(body).to_have_count(len(rows))
    for number, row in enumerate(rows):
        cells = body.nth(number).locator("td")
        assert cells.all_inner_texts()[: len(row)] == list(row)


def test_a_run_with_config_shows_its_actions_in_a_table(wandering: Wandering, page: Page) -> None:
    config = "ops:\n  run_migrations:\n    config:\n      scopes: ['d:warehouse']\n"
    launch_by_hand(page, "wanderer_run", config + f"      version: {CREATED}\n")
    see_table(page, [["destination:warehouse", str(CREATED), "create_flights", "up"]])
    assert wandering.columns() == ["id"]
    launch_by_hand(page, "wanderer_run", config)
    see_table(page, [["destination:warehouse", str(GATED), "add_gate", "up", "succeeded(up)"]])
    assert wandering.columns() == ["id", "gate"]
    shoot(page, "migrations")
    page.goto("/assets/warehouse/flights?view=checks")
    expect(page.get_by_text("migrations_up_to_date").first).to_be_visible()
    expect(page.get_by_text("every migration has run").first).to_be_visible()


def test_rolled_back_from_the_launchpad(wandering: Wandering, page: Page) -> None:
    run = wandering.launch("wanderer_run", "run_migrations", ["d:warehouse"])
    assert wandering.ended(run) is DagsterRunStatus.SUCCESS
    config = "ops:\n  rollback_migrations:\n    config:\n      scopes: ['d:warehouse']\n"
    launch_by_hand(page, "wanderer_rollback", config + "      version: 0\n")
    scope, state = "destination:warehouse", "succeeded(down)"
    see_table(
        page,
        [
            [scope, str(GATED), "add_gate", "down", state],
            [scope, str(CREATED), "create_flights", "down", state],
        ],
    )
    assert wandering.columns() == []


def test_a_second_run_fails_at_once_and_a_terminated_one_finishes_its_migration(
    wandering: Wandering, page: Page
) -> None:
    first = wandering.launch("wanderer_run", "run_migrations", ["d:lake"])
    record = wandering.home / "lake"
    until(record.exists, 60, "the first migration has begun")

    second = wandering.launch("wanderer_run", "run_migrations", ["d:lake"])
    assert wandering.ended(second) is DagsterRunStatus.FAILURE
    page.goto(f"/runs/{second}")
    expect(page.get_by_text(re.compile(first)).first).to_be_visible()  # the holder is named

    wandering.dagster.terminate(first)
    until(lambda: wandering.run(first).status is DagsterRunStatus.CANCELING, 20, "it is canceling")
    (wandering.home / "go").touch()
    assert wandering.ended(first) is DagsterRunStatus.CANCELED
    assert record.read_text().split() == [str(SLOW[0])]
    assert wandering.states_of_lake() == [MigrationState.SUCCEEDED_UP, None]
