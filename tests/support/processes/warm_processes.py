"""Warm runs in Dagster's own processes, with a gateway that receives events."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from dagster import DagsterRun, DagsterRunStatus

from tests.support.oracle import judge
from tests.support.pipelines.warm import SECONDS, VERSION, WARM, blacksmith
from tests.support.processes.blacksmith import GatewayProcess, repeated
from tests.support.processes.dagster_processes import Deployment, overlapping
from tests.support.waiting import until

LATE, STUCK = "alerts/late", "alerts/stuck"


class WarmDeployment(Deployment):
    """The pipeline of `warm_pipeline`, with a gateway; notifications through the store's database."""

    module = "tests.support.pipelines.warm"
    app = blacksmith
    job = "realtime_alerts"

    def __init__(
        self,
        store_url: str,
        home: Path,
        *,
        seconds: float = 0.0,
        idle: str = "10m",
        age: str = "15m",
        notice: str = "60s",
    ) -> None:
        self.version = home / "version"
        self.version.write_text("1")
        env = {
            "BLACKSMITH_PUBSUB_URL": "postgres",
            WARM: json.dumps({"idle": idle, "age": age, "notice": notice}),
            SECONDS: str(seconds),
            VERSION: str(self.version),
        }
        super().__init__(store_url, home, env=env)
        self._gateway = GatewayProcess(store_url, f"{self.module}:blacksmith", env=env)
        self._gateway.start()
        self._client = self._gateway.client()

    def close(self) -> None:
        self._client.close()
        self._gateway.kill()
        super().close()

    def send(self, **data: Any) -> str:
        """Send an event to the gateway; returns its id."""
        body = {"sent": time.monotonic(), **data}
        response = self._client.post("/v1/airport/departed", json=body)
        (event_id,) = response.raise_for_status().json()["ids"]
        self.wanted.add(event_id)
        return str(event_id)

    def stream(self, rate: float = 20.0) -> AbstractContextManager[None]:
        """Send events at a constant rate until the block ends."""
        return repeated(self.send, rate)

    # -- what happened
    def notes(self, what: str = "begin", event: str = "late") -> list[dict[str, Any]]:
        """The lines of a destination event's batches that began, or that ended."""
        return [line for line in self.lines() if (line["what"], line["event"]) == (what, event)]

    def pids(self) -> list[int]:
        """The processes that have loaded, in the order of their first load."""
        return list(dict.fromkeys(note["pid"] for note in self.notes()))

    def warm(self, number: int = 1) -> int:
        """Wait until the run of this number has loaded something; returns its pid."""
        until(lambda: len(self.pids()) >= number, 90, f"warm run {number} loads")
        return self.pids()[number - 1]

    def latencies(self, since: float = 0.0, event: str = "late") -> list[float]:
        """For each event sent after `since` (monotonic): seconds until its first load began."""
        first: dict[str, float] = {}
        for line in self.notes(event=event):
            for event_id, sent in zip(line["ids"], line["sent"], strict=True):
                if sent >= since:
                    first.setdefault(event_id, line["at"] - sent)
        return list(first.values())

    def active(self) -> Sequence[DagsterRun]:
        """The warm runs that have not ended."""
        return [run for run in self.runs() if not run.is_finished]

    def pending(self) -> int:
        self.store.maintain()
        return sum(self.store.counts.of(path).pending for path in (LATE, STUCK))

    def is_settled(self) -> bool:
        """Whether nothing is pending and a new event is loaded within a second."""
        if self.pending():
            return False
        sent = time.monotonic()
        self.send()
        until(lambda: self.latencies(sent) and self.pending() == 0, 30, "an event is loaded")
        return max(self.latencies(sent)) < 1.0

    def judge(self) -> None:
        """Ask the oracle about both destination events: every accepted event has succeeded."""
        self.store.maintain()
        for path in (LATE, STUCK):
            ended = self.notes("end", path.split("/")[1])
            recorded = {event_id for line in ended for event_id in line["ids"]}
            result = judge(self.store, path, self.wanted, recorded)
            assert result.succeeded == self.wanted

    def overlaps(self) -> list[tuple[Any, Any]]:
        """Batches of one destination event that two processes loaded at the same time."""
        lines = self.lines()
        return [
            pair
            for event in ("late", "stuck")
            for pair in overlapping([line for line in lines if line["event"] == event])
        ]

    def status_of(self, number: int) -> DagsterRunStatus:
        """The status of the warm run of this number, from 1."""
        return self.runs()[number - 1].status
