"""Dagster is terminated, killed and run twice while it loads."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterRunStatus

from tests.support.processes.dagster_processes import Deployment
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def deploy(store_url: str, tmp_path: Path) -> Iterator[Callable[..., Deployment]]:
    deployments: list[Deployment] = []

    def deployment(**options: Any) -> Deployment:
        deployments.append(Deployment(store_url, tmp_path, **options))
        return deployments[-1]

    yield deployment
    for deployed in deployments:
        deployed.close()


def test_run_terminated_from_ui(deploy: Callable[..., Deployment]) -> None:
    lake = deploy(interval="@every 1h", seconds=2.0)
    lake.receive(300)
    dagster = lake.dev()
    until(lake.began, 90, "a batch begins")
    (run,) = lake.runs()
    dagster.terminate(run.run_id)
    until(lambda: lake.status(run.run_id) is DagsterRunStatus.CANCELED, 30, "the run is canceled")
    began, ended = (
        [line["ids"] for line in lake.lines() if line["what"] == what] for what in ("begin", "end")
    )
    assert began == ended  # the current batch was finished
    loaded = {event_id for ids in ended for event_id in ids}
    assert 0 < len(loaded) < 300
    states = {
        event_id: lake.store.history.transitions(event_id)[-1].state for event_id in lake.wanted
    }
    assert {event_id for event_id, state in states.items() if state == "succeeded"} == loaded
    assert set(states.values()) == {"succeeded", "awaiting"}


@pytest.mark.parametrize("orphaned", [False, True], ids=["with_its_run", "but_not_its_run"])
def test_daemon_killed(deploy: Callable[..., Deployment], orphaned: bool) -> None:
    lake = deploy(seconds=0.5)
    lake.receive(100)
    first = lake.daemon()
    until(lake.began, 90, "a batch begins")
    (run,) = lake.runs()
    if orphaned:
        first.kill_all_but(lake.lines()[0]["pid"])
    else:
        first.kill()
    lake.receive(20)
    lake.daemon()
    until(lambda: lake.pending() == 0, 60, "everything is loaded")
    lake.judge()
    expected = DagsterRunStatus.SUCCESS if orphaned else DagsterRunStatus.FAILURE
    until(lambda: lake.status(run.run_id) is expected, 30, f"the first run is {expected}")


def test_two_daemons(deploy: Callable[..., Deployment]) -> None:
    _two_daemons(deploy(seconds=0.05))


def test_two_daemons_with_locks_in_consul(
    postgres_url: str, consul_url: str, tmp_path: Path
) -> None:
    environment = {"BLACKSMITH_SUPERVISOR_URL": consul_url}
    with closing(Deployment(postgres_url, tmp_path, seconds=0.05, env=environment)) as lake:
        _two_daemons(lake)


def _two_daemons(lake: Deployment) -> None:
    lake.receive(50)
    daemons = [lake.daemon(), lake.daemon()]
    for _ in range(4):
        until(lambda: lake.pending() == 0, 90, "everything is loaded")
        lake.receive(50)
    until(lambda: lake.pending() == 0, 60, "everything is loaded")
    lake.judge()
    assert all(daemon.process.poll() is None for daemon in daemons)
    until(lambda: all(run.is_finished for run in lake.runs()), 60, "all runs have ended")
    assert {run.status for run in lake.runs()} == {DagsterRunStatus.SUCCESS}
