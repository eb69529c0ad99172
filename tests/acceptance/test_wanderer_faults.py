"""Migrating processes are killed: the migration is rolled back or reported, never 'succeeded'."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from blacksmith_dagster.errors import MigrationError, MigrationLocked
from blacksmith_dagster.wanderer import (
    MigrationReport,
    MigrationRequest,
    MigrationState,
    Wanderer,
)
from blacksmith_dagster.wanderer.tracking import Tracking
from tests.support.migrating import ONE, SCOPE, Runs, load, runs, tables
from tests.support.pipelines.one_event import ingest
from tests.support.processes.blacksmith import ROOT_FOLDER
from tests.support.processes.migrating_main import PAUSED, POINT, application
from tests.support.waiting import until, until_ready

_MAIN = "tests.support.processes.migrating_main"


@pytest.fixture(params=["together", "apart"])
def target_url(request: pytest.FixtureRequest, store_url: str, tmp_path: Path) -> str:
    """The URL of the database that is migrated: the one that tracks, or another."""
    return store_url if request.param == "together" else f"sqlite:///{tmp_path}/warehouse.db"


@pytest.fixture
def wandering(store_url: str, locks_url: str | None) -> Iterator[Runs]:
    with runs(store_url, locks_url) as wandering:
        wandering.store()  # creates the tables before the processes start
        yield wandering


def kill_at(point: str, wandering: Runs, target_url: str, folder: Path) -> None:
    """Start a process that migrates, and kill it at a point."""
    marker = folder / "paused"
    environment = {**os.environ, POINT: point, PAUSED: str(marker)}
    if wandering.supervisor_url:
        environment["BLACKSMITH_SUPERVISOR_URL"] = wandering.supervisor_url
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", _MAIN, wandering.store_url, target_url],
        cwd=ROOT_FOLDER,
        env=environment,
        stdin=subprocess.DEVNULL,
    )
    try:
        until_ready(process, marker.exists)  # to be killed
    finally:
        process.kill()
        process.wait()


def run_again(wanderer: Wanderer) -> MigrationReport:
    """Run once the lock of the killed process has expired."""
    ended: list[MigrationReport] = []

    def runs_through() -> bool:
        try:
            ended.append(wanderer.run(MigrationRequest()))
        except MigrationLocked:
            return False
        return True

    until(runs_through, 20)
    return ended[0]


def history(wandering: Runs) -> list[MigrationState]:
    return [
        transition.state
        for transition in Tracking(wandering.store().database, "", None).history(SCOPE, ONE)
    ]


def test_killed_before_a_migration(wandering: Runs, target_url: str, tmp_path: Path) -> None:
    """The next run lifts the barrier that the killed one had raised."""
    kill_at("before", wandering, target_url, tmp_path)
    app = application(target_url, in_transaction=True)
    wanderer = wandering.wanderer(app)
    ingest(wandering.store(), [{"n": 1}])
    assert "being migrated" in (load(wandering, app).skipped or "")
    assert history(wandering) == [MigrationState.ACKNOWLEDGED]
    assert tables(target_url) == set()

    assert run_again(wanderer).error is None

    assert tables(target_url) == {"t1", "t2"}
    assert load(wandering, app).tally.succeeded == 1


def test_killed_in_a_transactional_migration(
    wandering: Runs, target_url: str, tmp_path: Path
) -> None:
    """The database has rolled it back. If the database itself tracks migrations, the next run continues;
    otherwise nothing shows that it was not committed, and a person must look."""
    kill_at("within", wandering, target_url, tmp_path)
    wanderer = wandering.wanderer(application(target_url, in_transaction=True))
    until(lambda: tables(target_url) == set(), 10)
    if target_url == wandering.store_url:
        assert run_again(wanderer).error is None
        assert history(wandering)[1:3] == [MigrationState.EXECUTING_UP, MigrationState.FAILED_UP]
    else:
        with pytest.raises(MigrationError, match=f"{ONE} step of {SCOPE} was interrupted"):
            run_again(wanderer)
        assert history(wandering)[1:] == [MigrationState.EXECUTING_UP, MigrationState.INTERRUPTED]
        wanderer.repair("d:warehouse", ONE, applied=False)
        assert wanderer.run(MigrationRequest()).error is None
    assert tables(target_url) == {"t1", "t2"}


def test_killed_in_a_nontransactional_migration(
    wandering: Runs, target_url: str, tmp_path: Path
) -> None:
    """Half of it is applied: it was interrupted, and did not succeed."""
    kill_at("between statements", wandering, target_url, tmp_path)
    app = application(target_url, in_transaction=False)
    wanderer = wandering.wanderer(app)
    assert tables(target_url) == {"t1"}

    with pytest.raises(MigrationError, match="was interrupted: look whether the target has it"):
        run_again(wanderer)

    assert history(wandering) == [
        MigrationState.ACKNOWLEDGED,
        MigrationState.EXECUTING_UP,
        MigrationState.INTERRUPTED,
    ]
    assert "repair" in (load(wandering, app).skipped or "")


def test_killed_after_the_effect_before_the_record(
    wandering: Runs, target_url: str, tmp_path: Path
) -> None:
    """In one database both are one commit, without a moment between them. Apart, it was interrupted."""
    if target_url == wandering.store_url:
        kill_at("within", wandering, target_url, tmp_path)
        until(lambda: tables(target_url) == set(), 10)
        assert MigrationState.SUCCEEDED_UP not in history(wandering)
        return
    kill_at("after", wandering, target_url, tmp_path)
    wanderer = wandering.wanderer(application(target_url, in_transaction=True))
    assert tables(target_url) == {"t1", "t2"}

    with pytest.raises(MigrationError, match="was interrupted"):
        run_again(wanderer)

    wanderer.repair("d:warehouse", ONE, applied=True)
    assert wanderer.run(MigrationRequest()).planned == []
    assert history(wandering)[2:] == [MigrationState.INTERRUPTED, MigrationState.SUCCEEDED_UP]
