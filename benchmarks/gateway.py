"""Events over HTTP, each answered after its commit, beside a server that stores nothing."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import msgspec
from sqlalchemy import text

from benchmarks.measure import Effort, Figure, alternate, at_least, at_most, beside
from benchmarks.pipeline import payload
from benchmarks.stores import Databases, opened, postgres
from tests.acceptance.processes import ROOT_FOLDER, GatewayProcess
from tests.services import free_port, kill_tree
from tests.waiting import until

PATH = "/v1/bench/happened"
CONNECTIONS = (64, 256)
BOUNDS = {1: 0.50, 2: 0.40}
"""Fractions of the limit, by the number of workers."""
ARRAY = 100

# uvicorn's options, as the gateway sets them.
SERVER = [
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


def gateway(effort: Effort) -> Iterator[Figure]:
    """Requests per second of one event each, and their 99th percentile."""
    if shutil.which("wrk") is None:
        yield _missing("gateway, one event a request")
        return
    with postgres() as databases, _bodies([payload(n) for n in range(1000)]) as bodies:
        for workers, bound in BOUNDS.items():
            for connections in CONNECTIONS:
                sender = Sender(bodies, connections, effort.seconds)
                responses: list[Responses] = []
                rates, limits = alternate(
                    effort.rounds,
                    _into_store(databases, workers, sender, responses),
                    _into_nothing(workers, sender),
                )
                what = (
                    f"gateway, one event a request, {_workers(workers)}, {connections} connections"
                )
                yield beside(f"{what}; {databases.name}", rates, limits, "requests/s", bound)
                slowest = [response.p99_ms for response in responses]
                yield at_most(f"{what}, 99th percentile; {databases.name}", slowest, 40, "ms")


def arrays(effort: Effort) -> Iterator[Figure]:
    """Events per second in requests of 100 events."""
    if shutil.which("wrk") is None:
        yield _missing(f"gateway, arrays of {ARRAY}")
        return
    requests = [f"[{','.join(payload(n * ARRAY + i) for i in range(ARRAY))}]" for n in range(10)]
    with postgres() as databases, _bodies(requests) as bodies:
        sender = Sender(bodies, CONNECTIONS[0], effort.seconds, events=ARRAY)
        for workers in BOUNDS:
            (rates,) = alternate(effort.rounds, _into_store(databases, workers, sender, []))
            what = f"gateway, arrays of {ARRAY}, {_workers(workers)}, {CONNECTIONS[0]} connections"
            yield at_least(f"{what}; {databases.name}", rates, 60_000, "events/s")


class Responses(msgspec.Struct):
    """The responses to a run of `wrk`, as post.lua prints them."""

    requests: int
    seconds: float
    failed: int
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Sender:
    """Posts the lines of a file over many connections; a line holds `events` events."""

    bodies: Path
    connections: int
    seconds: int
    events: int = 1
    path: str = PATH
    header: str = "Accept: */*"

    def send(self, url: str) -> Responses:
        """Warm the server up, then post.

        Over few connections: requests still waiting when the warm-up ends would queue ahead of ours.
        """
        self._post(url, 8, 1)
        return self._post(url, self.connections, self.seconds)

    def _post(self, url: str, connections: int, seconds: int) -> Responses:
        script = Path(__file__).with_name("post.lua")
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", script]
        command += ["-H", self.header, url + self.path]
        output = subprocess.run(
            [*command, "--", self.bodies], check=True, capture_output=True, text=True
        ).stdout
        responses = msgspec.json.decode(output.splitlines()[-1], type=Responses)
        if responses.failed or not responses.requests:
            raise RuntimeError(f"requests failed:\n{output}")
        return responses


def _into_store(
    databases: Databases,
    workers: int,
    sender: Sender,
    responses: list[Responses],
    app: str = "benchmarks.pipeline:app",
    env: Mapping[str, str] | None = None,
) -> Callable[[], float]:
    """Measures the events per second that the gateway commits to a new store."""

    def rate() -> float:
        url = databases.create()
        with GatewayProcess(url, app, workers=workers, env=env) as running:
            databases.settle()
            response = sender.send(running.url)
        responses.append(response)
        with closing(opened(url)) as store, store.database.reading() as conn:
            stored = conn.execute(text("SELECT count(*) FROM events")).scalar_one()
        accepted = response.requests * sender.events
        assert stored >= accepted, f"{accepted} accepted, {stored} stored"
        databases.drop(url)
        return accepted / response.seconds

    return rate


def _into_nothing(workers: int, sender: Sender) -> Callable[[], float]:
    """Measures the events per second of the limit."""

    def rate() -> float:
        with _bare(workers) as url:
            response = sender.send(url)
        return response.requests * sender.events / response.seconds

    return rate


@contextmanager
def _bare(workers: int) -> Iterator[str]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    arguments = ["benchmarks.bare:app", f"--port={port}", f"--workers={workers}"]
    command = [sys.executable, "-m", "uvicorn", *arguments, *SERVER]
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


@contextmanager
def _bodies(bodies: Sequence[str]) -> Iterator[Path]:
    with tempfile.NamedTemporaryFile("w", prefix="blacksmith-bench-") as file:
        file.writelines(f"{body}\n" for body in bodies)
        file.flush()
        yield Path(file.name)


def _workers(count: int) -> str:
    return f"{count} worker{'s' if count > 1 else ''}"


def _missing(what: str) -> Figure:
    return Figure(what, "not measured: `wrk` is missing; run `apt-get install wrk`")
