"""Dagster's own processes, with a DAGSTER_HOME for each test."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
from dagster import DagsterInstance, DagsterRun, DagsterRunStatus

from blacksmith_dagster import Blacksmith
from blacksmith_dagster.store import Store, open_store
from blacksmith_dagster.store.records import NewEvent, NewJob
from tests.support.dagster_home import make_home
from tests.support.oracle import judge
from tests.support.pipelines.dagster_faults import INTERVAL, RECORD, SECONDS, blacksmith
from tests.support.process_trees import kill_tree
from tests.support.processes.blacksmith import ROOT_FOLDER
from tests.support.services import free_port
from tests.support.waiting import until_ready

FLIGHTS = "lake/flights"

_TERMINATE = """
mutation Terminate($run: String!) {
  terminateRun(runId: $run) { __typename ... on PythonError { message } }
}
"""


class Deployment:
    """The pipeline of `dagster_pipeline` on a store, a DAGSTER_HOME and a record of what it loaded."""

    module = "tests.support.pipelines.dagster_faults"
    app: Blacksmith = blacksmith
    job = "load_lake"

    def __init__(
        self,
        store_url: str,
        home: Path,
        *,
        interval: str = "@every 5s",
        seconds: float = 0.2,
        dagster_yaml: str = "",
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.home = home
        self.record = self.home / "record"
        self.record.touch()
        make_home(self.home, dagster_yaml)
        self.env = {
            **os.environ,
            "DAGSTER_HOME": str(self.home),
            "BLACKSMITH_HOME": str(self.home),
            "BLACKSMITH_STORE_URL": store_url,
            "BLACKSMITH_GATEWAY_URL": "http://127.0.0.1:1",
            RECORD: str(self.record),
            INTERVAL: interval,
            SECONDS: str(seconds),
            **(env or {}),
        }
        self.store: Store = open_store(store_url, upgrade=True)
        self.store.register(self.app)
        self.instance = DagsterInstance.from_config(str(home))  # Dagster's own storage
        self.wanted: set[str] = set()
        self._processes: list[DagsterProcess] = []

    def close(self) -> None:
        """Kill all processes that still run, and close the store."""
        for process in self._processes:
            process.kill()
        for pid in {line["pid"] for line in self.lines()}:
            kill_leftover(pid)
        self.instance.dispose()
        self.store.close()

    def receive(
        self, number: int, *, received_at: datetime | None = None, with_jobs: bool = True
    ) -> None:
        """Ingest events, each with a job unless a replay is to create it."""
        new = NewEvent("airport/departed", "{}", [NewJob(FLIGHTS)] if with_jobs else ())
        (ids,) = self.store.log.append([[new] * number], received_at=received_at)
        assert isinstance(ids, list)
        self.wanted |= set(ids)

    def daemon(self) -> DagsterProcess:
        """A running `dagster-daemon run`, with the code server that it starts."""
        process = self._start(["dagster._daemon", "run"])
        process.until_ready(lambda: "configured with the following daemons" in process.log)
        return process

    def dev(self) -> DagsterProcess:
        """A running `dagster dev` whose UI responds."""
        port = free_port()
        process = self._start(["dagster", "dev", "--port", str(port)])
        process.url = f"http://127.0.0.1:{port}"
        process.until_ready(process.responds)
        return process

    def _start(self, arguments: Sequence[str]) -> DagsterProcess:
        module = ["--module-name", self.module]
        where = ["--working-directory", str(ROOT_FOLDER)]
        process = DagsterProcess([*arguments, *module, *where], self.env, self.home)
        self._processes.append(process)
        return process

    # -- what happened
    def runs(self) -> list[DagsterRun]:
        """All runs of the deployment's job, oldest first."""
        return self.runs_of(self.job)

    def runs_of(self, job: str) -> list[DagsterRun]:
        """All runs of a job, oldest first."""
        return [run for run in reversed(self.instance.get_runs()) if run.job_name == job]

    def status(self, run_id: str) -> DagsterRunStatus:
        """The current status of a run."""
        run = self.instance.get_run_by_id(run_id)
        assert run
        return run.status

    def lines(self) -> list[dict[str, Any]]:
        """The destination's complete lines in the record, oldest first."""
        lines = self.record.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def began(self) -> bool:
        """Whether a batch has begun."""
        return bool(self.lines())

    def pending(self) -> int:
        """The number of pending jobs."""
        self.store.maintain()
        return self.store.counts.of(FLIGHTS).pending

    def judge(self) -> None:
        """Ask the oracle, once nothing is pending: all jobs have succeeded, and no two batches were
        loaded at the same time."""
        self.store.maintain()
        ended = [line for line in self.lines() if line["what"] == "end"]
        result = judge(
            self.store,
            FLIGHTS,
            self.wanted,
            {event_id for line in ended for event_id in line["ids"]},
        )
        assert result.succeeded == self.wanted
        assert overlapping(self.lines()) == []


def overlapping(lines: Sequence[Mapping[str, Any]]) -> list[tuple[Any, Any]]:
    """Pairs of batches that two processes loaded at the same time.

    A batch without an end was cut off when its process was killed. It counts as the instant of its
    beginning.
    """
    spans: list[tuple[float, float, int]] = []
    open_at: dict[int, float] = {}
    for line in lines:
        if line["what"] == "begin":
            open_at[line["pid"]] = line["at"]
        else:
            spans.append((open_at.pop(line["pid"]), line["at"], line["pid"]))
    spans += [(at, at, pid) for pid, at in open_at.items()]
    spans.sort()
    return [
        (first, second)
        for first, second in itertools.pairwise(spans)
        if second[0] < first[1] and first[2] != second[2]
    ]


def kill_leftover(pid: int) -> None:
    """SIGKILL to a test's process if it still runs."""
    try:
        process = psutil.Process(pid)
        if any(RECORD in part for part in process.environ()):
            process.kill()
    except psutil.Error:
        return


class DagsterProcess:
    """A process of Dagster, with the children that it starts. Its output is in `log`."""

    def __init__(self, arguments: Sequence[str], env: Mapping[str, str], home: Path) -> None:
        self.url = ""
        self._log = home / f"log-{len(list(home.glob('log-*')))}"
        with self._log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=dict(env),
                cwd=ROOT_FOLDER,
            )

    @property
    def log(self) -> str:
        """The output of the process and its children."""
        return self._log.read_text()

    def until_ready(self, ready: Callable[[], object]) -> None:
        """Wait until the process is ready; fails with its output if it ends instead."""
        until_ready(self.process, ready, 60, lambda: self.log)

    def kill(self) -> None:
        """SIGKILL to the process and all its descendants."""
        if self.process.poll() is None:
            kill_tree(self.process)

    def kill_all_but(self, pid: int) -> None:
        """SIGKILL to the process and all its descendants except one, which becomes an orphan."""
        parent = psutil.Process(self.process.pid)
        parent.suspend()
        for child in parent.children(recursive=True):
            if child.pid != pid:
                child.kill()
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def responds(self) -> bool:
        """Whether the UI responds."""
        try:
            return httpx.get(f"{self.url}/server_info", timeout=5, trust_env=False).is_success
        except httpx.TransportError:
            return False

    def graphql(self, query: str, **variables: Any) -> Any:
        """Call the UI's own API."""
        response = httpx.post(
            f"{self.url}/graphql",
            json={"query": query, "variables": variables},
            timeout=60,
            trust_env=False,
        )
        body = response.raise_for_status().json()
        assert not body.get("errors"), body
        return body["data"]

    def terminate(self, run_id: str) -> None:
        """Terminate a run as the UI does."""
        response = self.graphql(_TERMINATE, run=run_id)
        assert response["terminateRun"]["__typename"] == "TerminateRunSuccess"
