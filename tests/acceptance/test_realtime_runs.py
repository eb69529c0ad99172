"""Warm runs are killed, paused, run twice, terminated and handed over while events arrive."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterRunStatus

from tests.support.process_trees import is_alive
from tests.support.processes.warm_processes import LATE, WarmDeployment
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(300)

# On a busy machine, launching a run takes many times as long.
NO_GAP = 3.0

Deploy = Callable[..., WarmDeployment]


@pytest.fixture
def deploy(postgres_url: str, tmp_path: Path) -> Iterator[Deploy]:
    deployments: list[WarmDeployment] = []

    def deployment(**options: Any) -> WarmDeployment:
        deployments.append(WarmDeployment(postgres_url, tmp_path, **options))
        return deployments[-1]

    yield deployment
    for deployed in deployments:
        deployed.close()


def test_warm_run_killed(deploy: Deploy) -> None:
    alerts = deploy(seconds=0.2)
    alerts.daemon()
    alerts.send()
    first = alerts.warm()
    with alerts.stream():
        os.kill(first, signal.SIGKILL)
        alerts.warm(2)
    until(alerts.is_settled, 60, "latency is normal again")
    alerts.judge()
    assert alerts.overlaps() == []
    until(lambda: alerts.status_of(1) is DagsterRunStatus.FAILURE, 30, "the killed run has failed")
    assert alerts.status_of(2) is DagsterRunStatus.STARTED


def test_warm_run_stopped_past_its_lease_and_resumed(deploy: Deploy) -> None:
    alerts = deploy(seconds=1.0, age="50s", notice="10s")
    alerts.daemon()
    alerts.send()
    first = alerts.warm()
    torn = alerts.send()
    until(lambda: torn in alerts.notes()[-1]["ids"], 20, "a batch begins")
    os.kill(first, signal.SIGSTOP)  # in the middle of the batch
    try:
        alerts.warm(2)
        until(lambda: alerts.pending() == 0, 60, "the next run has loaded the batch")
    finally:
        os.kill(first, signal.SIGCONT)
    until(lambda: torn in alerts.notes("end")[-1]["ids"], 20, "the first run continues")
    with alerts.stream():
        until(lambda: not is_alive(first), 60, "the first run has ended")
    until(alerts.is_settled, 60, "latency is normal again")
    alerts.judge()
    states = [
        entry.state for entry in alerts.store.history.transitions(torn) if entry.destination == LATE
    ]
    assert states == ["acknowledged", "awaiting", "executing", "unknown", "executing", "succeeded"]


def test_dev_killed_while_its_run_lives_on(deploy: Deploy) -> None:
    alerts = deploy(age="40s", notice="15s")
    dagster = alerts.dev()
    alerts.send()
    first = alerts.warm()
    since = time.monotonic()
    with alerts.stream():
        dagster.kill_all_but(first)
        alerts.daemon()
        alerts.warm(2)
    assert max(alerts.latencies(since)) < NO_GAP
    until(lambda: not is_alive(first), 30, "the orphan has ended")
    until(lambda: alerts.status_of(1) is DagsterRunStatus.SUCCESS, 30, "it has succeeded")
    until(alerts.is_settled, 60, "everything is loaded")
    alerts.judge()
    assert alerts.overlaps() == []


@pytest.mark.slow
def test_two_daemons_one_loader(deploy: Deploy) -> None:
    alerts = deploy(seconds=0.05, age="20s", notice="15s")
    daemons = [alerts.daemon(), alerts.daemon()]
    active = [0]

    def has_successor() -> bool:
        active.append(len(alerts.active()))
        return len(alerts.pids()) == 2

    with alerts.stream(10.0):
        until(has_successor, 150)
    assert max(active) == 2  # one run and its successor
    assert all(daemon.process.poll() is None for daemon in daemons)
    until(alerts.is_settled, 60, "everything is loaded")
    alerts.judge()
    assert alerts.overlaps() == []
    keys = [run.tags["dagster/run_key"] for run in alerts.runs()]
    assert len(set(keys)) == len(keys)


def test_one_event_hangs_the_others_flow(deploy: Deploy, tmp_path: Path) -> None:
    fixed = tmp_path / "fixed"
    alerts = deploy(notice="25s")
    alerts.daemon()
    alerts.send()
    first = alerts.warm()
    since = time.monotonic()
    with alerts.stream():
        hanging = alerts.send(hangs_until_there_is=str(fixed))
        alerts.warm(2)
        until(lambda: not is_alive(first), 30, "the first run has ended")
        after = time.monotonic()
        fixed.touch()
        until(lambda: alerts.latencies(after, "stuck"), 90, "the job that hung is loaded again")
    assert alerts.status_of(1) is DagsterRunStatus.FAILURE
    assert max(alerts.latencies(since)) < NO_GAP
    until(alerts.is_settled, 60, "everything is loaded")
    alerts.judge()
    loads = [note for note in alerts.notes(event="stuck") if hanging in note["ids"]]
    assert len({note["pid"] for note in loads}) >= 2


def test_terminated_in_the_middle_of_a_batch(deploy: Deploy) -> None:
    alerts = deploy(seconds=2.0)
    dagster = alerts.dev()
    alerts.send()
    alerts.warm()
    (run,) = alerts.runs()
    with alerts.stream(2.0):
        until(lambda: len(alerts.notes()) > len(alerts.notes("end")), 20, "a batch begins")
        dagster.terminate(run.run_id)
        until(lambda: alerts.status(run.run_id) is DagsterRunStatus.CANCELED, 30, "it is canceled")
        began, ended = (
            [note["ids"] for note in alerts.notes(what) if note["pid"] == alerts.pids()[0]]
            for what in ("begin", "end")
        )
        assert began == ended
        alerts.warm(2)
    until(alerts.is_settled, 60, "latency is normal again")
    alerts.judge()
    assert alerts.overlaps() == []
    loads = [event for note in alerts.notes() for event in note["ids"]]
    assert len(loads) == len(set(loads))  # no load was cut off and repeated


def test_handover_leaves_no_gap(deploy: Deploy) -> None:
    alerts = deploy(age="30s", notice="20s")
    alerts.daemon()
    alerts.send()
    alerts.warm()
    since = time.monotonic()
    with alerts.stream(50.0):
        alerts.warm(2)
    latencies = alerts.latencies(since)
    print(f"{len(latencies)} events through a handover, worst {max(latencies) * 1000:.0f} ms")
    assert max(latencies) < NO_GAP
    until(alerts.is_settled, 60, "everything is loaded")
    alerts.judge()
    assert alerts.overlaps() == []
    first = alerts.runs()[0]
    assert first.status is DagsterRunStatus.SUCCESS
    outputs = [
        entry.dagster_event.step_output_data.metadata
        for entry in alerts.instance.all_logs(first.run_id)
        if entry.dagster_event and entry.dagster_event.is_successful_output
    ]
    assert outputs[0]["stop_reason"].value == "30s old, and another takes over"


RELOAD = """
mutation Reload {
  reloadWorkspace { __typename ... on PythonError { message } }
}
"""


def test_code_reload_during_a_warm_run(deploy: Deploy) -> None:
    alerts = deploy(age="40s", notice="20s")
    dagster = alerts.dev()
    alerts.send()
    first = alerts.warm()
    since = time.monotonic()
    with alerts.stream():
        alerts.version.write_text("2")
        response = dagster.graphql(RELOAD)
        assert response["reloadWorkspace"]["__typename"] == "Workspace"
        alerts.warm(2)
    assert max(alerts.latencies(since)) < NO_GAP
    versions = {note["pid"]: note["version"] for note in alerts.notes()}
    assert [versions[pid] for pid in alerts.pids()] == ["1", "2"]
    until(lambda: not is_alive(first), 30, "the run with the old code has ended")
    assert alerts.status_of(1) is DagsterRunStatus.SUCCESS
    until(alerts.is_settled, 60, "everything is loaded")
    alerts.judge()
