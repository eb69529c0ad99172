"""Polls by a real Dagster daemon, from the source to a destination."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from dagster import AssetKey, DagsterRun

from tests.support.pipelines import cron as cron_pipeline
from tests.support.processes.dagster_processes import Deployment
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(300)


class Polling(Deployment):
    """The pipeline of `cron_pipeline`, polled every 15 seconds."""

    module = cron_pipeline.__name__
    app = cron_pipeline.blacksmith
    job = "poll_tower__seen"

    def see(self, first: int, last: int) -> None:
        """Add lines to the polled file."""
        with (self.home / "origin").open("a") as file:
            file.writelines(f"{number}\n" for number in range(first, last + 1))

    def has_loaded(self, last: int) -> Callable[[], bool]:
        """Whether all numbers up to `last` have reached the destination."""
        wanted = {str(number) for number in range(1, last + 1)}
        return lambda: {item for line in self.lines() for item in line["data"]} == wanted

    def all_runs(self) -> list[DagsterRun]:
        """The runs of the poll and of the load."""
        return [*self.runs(), *self.runs_of("load_lake")]

    def seen(self) -> list[int]:
        """The received numbers, oldest first."""
        events = self.store.log.newest("tower/seen", limit=10_000)
        return [int(json.loads(event.payload)) for event in reversed(events)]


@pytest.fixture
def tower(store_url: str, tmp_path: Path) -> Iterator[Polling]:
    env = {
        cron_pipeline.ORIGIN: str(tmp_path / "origin"),
        cron_pipeline.KILL: str(tmp_path / "kill"),
        cron_pipeline.INTERVAL: "@every 15s",
    }
    (tmp_path / "origin").touch()
    with closing(Polling(store_url, tmp_path, env=env)) as polling:
        yield polling


def test_polled_events_reach_a_destination(tower: Polling) -> None:
    tower.see(1, 10)
    daemon = tower.daemon()
    until(tower.has_loaded(10), 120, "the first lines are loaded")
    until(lambda: all(run.is_finished for run in tower.all_runs()), 60, "all runs have ended")
    daemon.kill()
    tower.see(11, 500)  # while the daemon is down
    tower.daemon()
    until(tower.has_loaded(500), 120, "the missed lines are loaded")
    assert tower.seen() == list(range(1, 501))  # none lost, none twice
    key = AssetKey(["tower", "seen"])
    observed = tower.instance.fetch_observations(key, limit=10, ascending=True).records
    reported = {record.run_id: record.asset_observation for record in observed}
    received = [
        materialization.metadata["events_received"].value
        for materialization in reported.values()
        if materialization is not None
    ]
    assert received == [10, 490]  # one run has polled everything that was missed
    assert reported.keys() <= {run.run_id for run in tower.runs()}
