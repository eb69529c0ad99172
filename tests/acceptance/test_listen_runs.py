"""Listening runs in Dagster's own processes: launched, handed over, killed, and shown in the UI."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from dagster import AssetKey, DagsterRunStatus

from tests.support.pipelines.listen import LOG, WARM, blacksmith
from tests.support.processes.blacksmith import repeated
from tests.support.processes.dagster_processes import Deployment
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(300)

# On a busy machine, launching a run takes many times as long.
NO_GAP = 4.0
CHANGED = "shop/changed"


class Listening(Deployment):
    """The pipeline of `listen_pipeline`, with its log."""

    module = "tests.support.pipelines.listen"
    app = blacksmith
    job = "listen_shop"

    def __init__(self, store_url: str, home: Path, **warm: str) -> None:
        self.log = home / "log"
        self.log.touch()
        env = {LOG: str(self.log), WARM: json.dumps(warm)}
        super().__init__(store_url, home, env=env)
        self.sent: list[float] = []

    def send(self) -> None:
        """Append a line with the time to the log."""
        with self.log.open("a") as log:
            self.sent.append(time.monotonic())
            log.write(f"{self.sent[-1]!r}\n")

    def stream(self, rate: float = 20.0) -> AbstractContextManager[None]:
        """Append lines at a constant rate until the block ends."""
        return repeated(self.send, rate)

    def pids(self) -> list[int]:
        """The processes that have read, in the order of their first line."""
        return list(dict.fromkeys(line["pid"] for line in self.lines()))

    def reading(self, number: int = 1) -> int:
        """Wait until the run of this number has read something; returns its pid."""
        until(lambda: len(self.pids()) >= number, 90, f"run {number} reads")
        return self.pids()[number - 1]

    def judge(self) -> None:
        """Check that every appended line was ingested, once and in order."""

        def kept() -> list[float]:
            events = self.store.log.newest(CHANGED, 1_000_000)
            return [float(event.payload) for event in reversed(events)]

        until(lambda: len(kept()) >= len(self.sent), 60, "all lines are ingested")
        assert kept() == self.sent


@pytest.fixture
def deploy(postgres_url: str, tmp_path: Path) -> Iterator[Callable[..., Listening]]:
    deployments: list[Listening] = []

    def deployment(**warm: str) -> Listening:
        deployments.append(Listening(postgres_url, tmp_path, **warm))
        return deployments[-1]

    yield deployment
    for deployed in deployments:
        deployed.close()


SHOWN = """
query Shown($path: [String!]!) {
  assetOrError(assetKey: {path: $path}) {
    ... on Asset {
      assetObservations(limit: 10) {
        runId
        metadataEntries { label ... on IntMetadataEntry { intValue }
                          ... on TextMetadataEntry { text } }
      }
    }
  }
}
"""


def shown(dagster: Any) -> list[dict[str, Any]]:
    """The metadata of the asset's observations in the UI, newest first."""
    response = dagster.graphql(SHOWN, path=CHANGED.split("/"))
    return [
        {
            entry["label"]: entry.get("intValue", entry.get("text"))
            for entry in observation["metadataEntries"]
        }
        | {"run": observation["runId"]}
        for observation in response["assetOrError"]["assetObservations"]
    ]


def test_a_run_is_launched_and_handed_over_without_a_gap(
    deploy: Callable[..., Listening],
) -> None:
    """The UI shows how many events arrived, the lag, and which run listened."""
    shop = deploy(age="30s", notice="20s")
    dagster = shop.dev()
    shop.send()
    shop.reading()
    since = time.monotonic()
    with shop.stream():
        shop.reading(2)
    shop.judge()
    late = [line["at"] - line["sent"] for line in shop.lines() if line["sent"] > since]
    print(f"{len(late)} events through a handover, the latest by {max(late) * 1000:.0f} ms")
    assert max(late) < NO_GAP
    first = shop.runs()[0]
    until(lambda: shop.status(first.run_id) is DagsterRunStatus.SUCCESS, 30, "it ended well")
    until(lambda: shown(dagster), 30, "the UI shows observations")
    reported = [observation for observation in shown(dagster) if observation["run"] == first.run_id]
    assert sum(observation["events_received"] for observation in reported) > 0
    assert {
        (observation["lag"], observation["lag_unit"], observation["held_by"])
        for observation in reported
    } == {(17, "bytes", first.run_id)}


def test_a_killed_run_is_replaced(deploy: Callable[..., Listening]) -> None:
    shop = deploy()
    shop.daemon()
    shop.send()
    first = shop.reading()
    with shop.stream():
        os.kill(first, signal.SIGKILL)
        shop.reading(2)
    shop.judge()
    states = [run.status for run in shop.runs()]
    assert states == [DagsterRunStatus.FAILURE, DagsterRunStatus.STARTED]


def test_a_terminated_run_keeps_what_it_has_read(deploy: Callable[..., Listening]) -> None:
    shop = deploy()
    dagster = shop.dev()
    shop.send()
    shop.reading()
    (run,) = shop.runs()
    with shop.stream(100.0):
        dagster.terminate(run.run_id)
        until(lambda: shop.status(run.run_id) is DagsterRunStatus.CANCELED, 30, "it is canceled")
        shop.reading(2)
    shop.judge()
    records = shop.instance.fetch_observations(AssetKey(CHANGED.split("/")), limit=10).records
    assert run.run_id in {record.run_id for record in records}
    read = [line["sent"] for line in shop.lines()]
    assert len(read) == len(set(read))  # no line was read and dropped
