"""Locks: the time to acquire one, to hand it over, to take it over, and the cost of renewals."""

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import psutil

from benchmarks.measure import Effort, Figure, at_most
from benchmarks.stores import postgres, sqlite
from blacksmith_dagster.supervisor import Supervisor
from tests.acceptance.processes import ROOT_FOLDER
from tests.contract.supervising import connected
from tests.services.consul import ConsulServer

TTL = 2.0
LOCK_DELAY = 1.0
LEASES = 20
OPTIONS = f"?ttl={TTL:g}&lock_delay={LOCK_DELAY:g}"
HANDED_OVER = 200  # milliseconds

_HOLDER = """
import sys, time
from tests.contract.supervising import connected

url, ttl, leases = sys.argv[1:]
with connected(url, float(ttl)) as supervisor:
    for number in range(int(leases)):
        assert supervisor.acquire(f"load/held/{number}", "holder")
    print("held", flush=True)
    sys.stdin.readline()
"""


def supervisor(effort: Effort) -> Iterator[Figure]:
    """The store's own locks on PostgreSQL and SQLite, and Consul's locks on one durable server."""
    with ExitStack() as stack:
        for backend in (postgres, sqlite):
            databases = stack.enter_context(backend())
            url = databases.create()
            yield from _measure(f"locks in {databases.name}", url, effort, 5, TTL + 2)
            databases.drop(url)
        server = ConsulServer()
        stack.callback(server.close)
        server.start()
        version = server.call("GET", "agent/self")["Config"]["Version"]
        bound = 2 * TTL + LOCK_DELAY + 2
        yield from _measure(f"locks in Consul {version}", server.url + OPTIONS, effort, 15, bound)


def _measure(
    what: str, url: str, effort: Effort, acquire_ms: float, take_over: float
) -> Iterator[Figure]:
    with ExitStack() as stack:
        ours, theirs = (stack.enter_context(connected(url, TTL)) for _ in range(2))
        acquired = [_acquire(ours, number) for number in range(max(50, effort.of(1000) // 5))]
        slow = sorted(acquired)[int(len(acquired) * 0.99)]
        yield at_most(f"an uncontended acquire; {what}", acquired, acquire_ms, "ms")
        yield Figure(f"an uncontended acquire, 99th percentile; {what}", f"{slow:.3g} ms")
        handed_over = [_hand_over(ours, theirs) for _ in range(4 * effort.rounds)]
        yield at_most(
            f"from a clean release to the next holder; {what}", handed_over, HANDED_OVER, "ms"
        )
        taken_over = [_take_over(theirs, url) for _ in range(effort.rounds)]
        terms = f"time to live {TTL:g} s" + (
            f", lock-delay {LOCK_DELAY:g} s" if url.startswith("consul") else ""
        )
        yield at_most(
            f"from kill -9 to the next holder, {terms}; {what}", taken_over, take_over, "s"
        )
        spent = _renewals(url, 120 * effort.scale)
        yield at_most(f"renewals, of {LEASES} leases, each; {what}", [spent], 0.1, "% of a core")


def _acquire(supervisor: Supervisor, number: int) -> float:
    began = time.perf_counter()
    lease = supervisor.acquire(f"load/free/{number}", "benchmark")
    seconds = time.perf_counter() - began
    assert lease
    lease.release()
    return 1000 * seconds


def _hand_over(ours: Supervisor, theirs: Supervisor) -> float:
    lease = ours.acquire("load/wanted/one", "we")
    assert lease
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(_next, theirs, "load/wanted/one")
        time.sleep(0.15)  # until it waits
        began = time.perf_counter()
        lease.release()
        return 1000 * (waiting.result() - began)


def _next(supervisor: Supervisor, key: str) -> float:
    lease = supervisor.acquire(key, "next", wait=60)
    acquired_at = time.perf_counter()
    assert lease
    lease.release()
    return acquired_at


def _take_over(theirs: Supervisor, url: str) -> float:
    with _holder(url, TTL, 1) as process:
        process.kill()
        killed = time.perf_counter()
        return _next(theirs, "load/held/0") - killed


def _renewals(url: str, seconds: float) -> float:
    """Percent of a core per lease, with the default times to live."""
    ttl = 10.0 if url.startswith("consul:") else 15.0
    seconds = max(seconds, 2 * ttl)  # long enough for several renewals
    with _holder(url.removesuffix(OPTIONS), ttl, LEASES) as process:
        spent = _cpu(process.pid)
        time.sleep(seconds)
        used = _cpu(process.pid) - spent
        process.communicate("\n")
    return 100 * used / seconds / LEASES


def _cpu(pid: int) -> float:
    return sum(psutil.Process(pid).cpu_times()[:2])


def _holder(url: str, ttl: float, leases: int) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, url, str(ttl), str(leases)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT_FOLDER,
    )
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    return process
