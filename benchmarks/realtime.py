"""Latency from an event's due time to the call of its destination event, per broker."""

import subprocess
import sys
import tempfile
import threading
from array import array
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path

from benchmarks.gateway import Sender, _bodies
from benchmarks.measure import Effort, Figure, at_most, beside
from benchmarks.pipeline import payload
from benchmarks.realtime_pipeline import LATENCIES, nothing
from benchmarks.stores import Databases, opened, postgres
from tests.acceptance.processes import ROOT_FOLDER, BlacksmithProcess, GatewayProcess
from tests.waiting import until

PATH = "/v1/bench/happened"
RATE = 500
WARM_UP = 10.0
BOUNDS = {"nats": (10, 50), "rabbitmq": (10, 50), "postgres": (10, 50), "kafka": (20, 100)}
"""Milliseconds: the median and the 99th percentile."""

_SERVERS = {"nats": "NATSServer", "rabbitmq": "RabbitMQServer", "kafka": "KafkaServer"}


def realtime(effort: Effort) -> Iterator[Figure]:
    """Latency at 500 events a second, through each broker."""
    with postgres() as databases:
        for broker, (median, slow) in BOUNDS.items():
            with _broker(broker) as url:
                late = _latencies(databases, url, effort)
            what = f"sent to called, {RATE} events/s, {broker}"
            yield at_most(f"{what}, median; {databases.name}", [late[len(late) // 2]], median, "ms")
            slowest = late[int(len(late) * 0.99)]
            yield at_most(f"{what}, 99th percentile; {databases.name}", [slowest], slow, "ms")
            yield Figure(f"{what}, slowest of {len(late):,}", f"{late[-1]:.0f} ms")


def sustained(effort: Effort) -> Iterator[Figure]:
    """Requests per second while a worker loads everything at once, and the longest wait."""
    with postgres() as databases, _bodies([payload(n) for n in range(1000)]) as bodies:
        sender = Sender(bodies, 64, effort.seconds)
        without, _ = _sustained(databases, sender, worker=False)
        rate, longest = _sustained(databases, sender, worker=True)
    what = "one event a request, 64 connections, loaded at once into nothing"
    yield beside(
        f"{what}, beside the gateway alone; {databases.name}", [rate], [without], "requests/s"
    )
    yield at_most(f"{what}, the longest wait; {databases.name}", [longest], 1, "s")


def _latencies(databases: Databases, broker: str, effort: Effort) -> list[float]:
    """The latency of each event after the warm-up in milliseconds, sorted."""
    seconds = WARM_UP + 60 * (1 if effort.scale == 1 else 0.25)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="blacksmith-bench-"))
        file = Path(folder) / "latencies"
        env = {"BLACKSMITH_PUBSUB_URL": broker, LATENCIES: str(file)}
        url = databases.create()
        gateway = stack.enter_context(
            GatewayProcess(url, "benchmarks.realtime_pipeline:app", env=env)
        )
        _worker(stack, url, "benchmarks.realtime_pipeline:app", env)
        sending = [sys.executable, "-m", "benchmarks.open_loop", "127.0.0.1", str(gateway.port)]
        subprocess.run(
            [*sending, PATH, str(RATE), str(seconds)], cwd=ROOT_FOLDER, check=True, timeout=600
        )
        until(lambda: file.exists() and file.stat().st_size == 16 * RATE * int(seconds), 30)
        times = array("d", file.read_bytes())
        stack.close()
        databases.drop(url)
    due, called = times[::2], times[1::2]
    begin = min(due) + WARM_UP
    return sorted(
        1000 * (end - start) for start, end in zip(due, called, strict=True) if start >= begin
    )


def _sustained(databases: Databases, sender: Sender, *, worker: bool) -> tuple[float, float]:
    """Requests per second, and the longest observed wait of an event in seconds."""
    longest, ended = 0.0, threading.Event()
    with ExitStack() as stack:
        url, app = databases.create(), "benchmarks.realtime_pipeline:sustained"
        env = {"BLACKSMITH_PUBSUB_URL": "postgres"} if worker else {}
        gateway = stack.enter_context(GatewayProcess(url, app, env=env))
        if worker:
            _worker(stack, url, app, env)
        store = stack.enter_context(closing(opened(url)))

        def watch() -> None:
            nonlocal longest
            while not ended.wait(0.1):
                oldest = store.counts.of(nothing.events["at_all"].path).oldest_waiting
                if oldest is not None:
                    longest = max(longest, (datetime.now(UTC) - oldest).total_seconds())

        watcher = threading.Thread(target=watch)
        if worker:
            watcher.start()
        responses = sender.send(gateway.url)
        ended.set()
        if worker:
            watcher.join()
        stack.close()
        databases.drop(url)
    return responses.requests / responses.seconds, longest


def _worker(stack: ExitStack, url: str, app: str, env: dict[str, str]) -> None:
    worker = stack.enter_context(BlacksmithProcess(["worker", f"--app={app}"], url, env))
    until(lambda: "blacksmith worker" in worker.log, 30, worker.log)


@contextmanager
def _broker(name: str) -> Iterator[str]:
    if name == "postgres":
        yield name
        return
    server = getattr(import_module(f"tests.services.{name}"), _SERVERS[name])()
    try:
        server.start()
        yield server.urls("benchmark")[0]
    finally:
        server.close()
