"""Latency from an event's due time to the call of its destination event, per broker."""

import os
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measure import Effort, Figure, figure, p99, temporary_folder
from benchmarks.stores import Databases, measured_on, opened, postgres
from benchmarks.wrk import PATH, single
from blacksmith_dagster import Batch, Blacksmith, Destination, Schedule, Source
from blacksmith_dagster.store import Store
from tests.support.processes.blacksmith import ROOT_FOLDER, BlacksmithProcess, GatewayProcess
from tests.support.waiting import until

RATE, WARM_UP = 500, 10.0
BOUNDS = {"nats": (10, 50), "rabbitmq": (10, 50), "postgres": (10, 50), "kafka": (20, 100)}
"""Milliseconds: the median and the 99th percentile."""

LATENCIES = "BENCHMARK_LATENCIES"
"""The environment variable that names a file of doubles: due, called, in monotonic seconds."""

_SERVERS = {"nats": "NATSServer", "rabbitmq": "RabbitMQServer", "kafka": "KafkaServer"}

_source = Source("bench")
_happened = _source.accept("happened")
_sink = Destination("sink", schedule=Schedule(realtime=True))
_nothing = Destination("nothing", schedule=Schedule(realtime=True))


@_sink.event(receives=_happened)
def recorded(batch: Batch[Any]) -> None:
    """Record when each event was due and when it arrived."""
    now = time.monotonic()
    with Path(os.environ[LATENCIES]).open("ab") as file:
        array("d", [t for job in batch for t in (job.data["due"], now)]).tofile(file)


@_sink.event(receives=_happened, schedule=Schedule(realtime=False))
def later(batch: Batch[Any]) -> None:
    """Loaded by its schedule only."""


@_nothing.event(receives=_happened)
def at_all(batch: Batch[Any]) -> None:
    """Do nothing."""


app = Blacksmith(sources=[_source], destinations=[_sink])
into_nothing = Blacksmith(sources=[_source], destinations=[_nothing])


@measured_on(postgres)
def realtime(databases: Databases, effort: Effort) -> Iterator[Figure]:
    """Latency at 500 events a second, through each broker."""
    for broker, (middle, slow) in BOUNDS.items():
        with _broker(broker) as url:
            late = _latencies(databases, url, effort)
        what = f"sent to called, {RATE} events/s, {broker}"
        yield figure(f"{what}, median; {databases.name}", [median(late)], "ms", at_most=middle)
        slowest = f"{what}, 99th percentile; {databases.name}"
        yield figure(slowest, [p99(late)], "ms", at_most=slow)
        yield figure(f"{what}, slowest of {len(late):,}", [max(late)], "ms")


@measured_on(postgres)
def sustained(databases: Databases, effort: Effort) -> Iterator[Figure]:
    """Requests per second while a worker loads everything at once, and the longest observed wait."""
    sender, longest, ended = single(64, effort.seconds), 0.0, threading.Event()
    with databases.new() as url, _processes(url, "into_nothing") as gateway:
        without = sender.send(gateway.url)

    def watch(store: Store) -> None:
        nonlocal longest
        while not ended.wait(0.1):
            oldest = store.counts.of("nothing/at_all").oldest_waiting
            if oldest is not None:
                longest = max(longest, (datetime.now(UTC) - oldest).total_seconds())

    with (
        databases.new() as url,
        _processes(url, "into_nothing", "postgres") as gateway,
        opened(url) as store,
    ):
        watcher = threading.Thread(target=watch, args=(store,))
        watcher.start()
        sent = sender.send(gateway.url)
        ended.set()
        watcher.join()
    what = "one event a request, 64 connections, loaded at once into nothing"
    beside = f"{what}, beside the gateway by itself; {databases.name}"
    yield figure(beside, [sent.rate], "requests/s", limits=[without.rate])
    yield figure(f"{what}, the longest wait; {databases.name}", [longest], "s", at_most=1)


def _latencies(databases: Databases, broker: str, effort: Effort) -> list[float]:
    """The latency of each event after the warm-up in milliseconds."""
    seconds = WARM_UP + 60 * (1 if effort.scale == 1 else 0.25)
    with temporary_folder() as folder, databases.new() as url:
        file = folder / "latencies"
        with _processes(url, "app", broker, {LATENCIES: str(file)}) as gateway:
            to = [str(gateway.port), PATH, str(RATE), str(seconds)]
            command = [sys.executable, "-m", "benchmarks.open_loop", *to]
            subprocess.run(command, cwd=ROOT_FOLDER, check=True, timeout=600)
            until(lambda: file.exists() and file.stat().st_size == 16 * RATE * int(seconds), 30)
        times = array("d", file.read_bytes())
    due, called = times[::2], times[1::2]
    begin = min(due) + WARM_UP
    return [1000 * (end - start) for start, end in zip(due, called, strict=True) if start >= begin]


@contextmanager
def _processes(
    url: str, name: str, broker: str | None = None, env: dict[str, str] | None = None
) -> Iterator[GatewayProcess]:
    """A gateway, and with a broker a worker."""
    app = f"benchmarks.realtime:{name}"
    env = {**(env or {}), **({"BLACKSMITH_PUBSUB_URL": broker} if broker else {})}
    worker = BlacksmithProcess(["worker", f"--app={app}"], url, env)
    with GatewayProcess(url, app, env=env) as gateway, worker if broker else nullcontext():
        if broker:
            until(lambda: "blacksmith worker" in worker.log, 30, worker.log)
        yield gateway


@contextmanager
def _broker(name: str) -> Iterator[str]:
    if name == "postgres":
        yield name
        return
    with closing(
        getattr(import_module(f"tests.support.services.{name}"), _SERVERS[name])()
    ) as server:
        server.start()
        yield server.urls("benchmark")[0]
