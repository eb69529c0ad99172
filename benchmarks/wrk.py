"""Events posted by `wrk` to a gateway, or to a server that stores nothing."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import httpx
import msgspec
from sqlalchemy import text

from benchmarks.measure import temporary_folder
from benchmarks.pipeline import payload
from benchmarks.stores import Databases, opened
from tests.support.process_trees import kill_tree
from tests.support.processes.blacksmith import ROOT_FOLDER, GatewayProcess
from tests.support.services import Unavailable, free_port
from tests.support.waiting import until

PATH = "/v1/bench/happened"
ARRAY = 100

# uvicorn's options, as the gateway sets them.
_SERVER = [
    "--http=blacksmith_dagster.gateway.protocol:GatewayProtocol",
    "--loop=uvloop",
    "--ws=none",
    "--lifespan=on",
    "--log-level=warning",
    "--no-access-log",
    "--no-proxy-headers",
    "--no-server-header",
    "--backlog=2048",
    "--timeout-keep-alive=75",
]


class Sent(NamedTuple):
    """The events per second that a server accepted, how many in total, and its slowest responses."""

    rate: float
    events: int
    p99_ms: float


class _Responses(msgspec.Struct):
    """As post.lua prints them."""

    requests: int
    seconds: float
    failed: int
    p99_ms: float


@dataclass(frozen=True)
class Sender:
    """Posts bodies in turn over many connections; each holds `events` events."""

    bodies: Sequence[str]
    connections: int
    seconds: int
    events: int = 1
    path: str = PATH
    header: str = "Accept: */*"

    def __post_init__(self) -> None:
        if shutil.which("wrk") is None:
            raise Unavailable("wrk", "not found; run `apt-get install wrk`")

    def send(self, url: str) -> Sent:
        """Warm the server up, then post.

        Over few connections: requests still waiting when the warm-up ends would queue ahead of ours.
        """
        with temporary_folder() as folder:
            file = folder / "bodies"
            file.write_text("".join(f"{body}\n" for body in self.bodies))
            self._post(url, file, 8, 1)
            responses = self._post(url, file, self.connections, self.seconds)
        events = responses.requests * self.events
        return Sent(events / responses.seconds, events, responses.p99_ms)

    def _post(self, url: str, file: Path, connections: int, seconds: int) -> _Responses:
        script = Path(__file__).with_name("post.lua")
        options = ["-t1", f"-c{connections}", f"-d{seconds}s", "-H", self.header]
        command = ["wrk", *options, "-s", str(script), url + self.path, "--", str(file)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        responses = msgspec.json.decode(output.splitlines()[-1], type=_Responses)
        if responses.failed or not responses.requests:
            raise RuntimeError(f"requests failed:\n{output}")
        return responses


def single(connections: int, seconds: int) -> Sender:
    """Posts one event a request."""
    return Sender([payload(n) for n in range(1000)], connections, seconds)


def arrays_of(make: Callable[[int], str]) -> list[str]:
    """Ten lists of 100 documents each, joined by commas."""
    return [",".join(make(n * ARRAY + i) for i in range(ARRAY)) for n in range(10)]


def into_store(
    databases: Databases,
    sender: Sender,
    app: str = "benchmarks.pipeline:app",
    *,
    workers: int = 1,
    env: Mapping[str, str] | None = None,
) -> Callable[[], Sent]:
    """Measures how fast the gateway commits events to a new store."""

    def send() -> Sent:
        with databases.new() as url:
            with GatewayProcess(url, app, workers=workers, env=env) as running:
                databases.settle()
                sent = sender.send(running.url)
            with opened(url) as store, store.database.reading() as conn:
                stored = conn.execute(text("SELECT count(*) FROM events")).scalar_one()
        assert stored >= sent.events, f"{sent.events} accepted, {stored} stored"
        return sent

    return send


def into_nothing(sender: Sender, workers: int) -> Callable[[], float]:
    """Measures the events per second of the limit."""

    def rate() -> float:
        with _bare(workers) as url:
            return sender.send(url).rate

    return rate


@contextmanager
def _bare(workers: int) -> Iterator[str]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    arguments = ["benchmarks.bare:app", f"--port={port}", f"--workers={workers}"]
    command = [sys.executable, "-m", "uvicorn", *arguments, *_SERVER]
    process = subprocess.Popen(command, cwd=ROOT_FOLDER)
    try:
        until(lambda: _responds(url), 30, "the server without a store responds")
        yield url
    finally:
        kill_tree(process)


def _responds(url: str) -> bool:
    try:
        return httpx.post(url + PATH, json={}, trust_env=False).status_code == 202
    except httpx.TransportError:
        return False
