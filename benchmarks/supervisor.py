"""Locks: the time to acquire one, to hand it over, to take it over, and the cost of renewals."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from multiprocessing import get_context
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Event

import psutil

from benchmarks.measure import Effort, Figure, figure, p99, percent_of_core, timed
from benchmarks.stores import Databases, measured_on, postgres, sqlite
from blacksmith_dagster.supervisor import Supervisor
from tests.support.services.consul import ConsulServer
from tests.support.supervising import connected

TTL, LOCK_DELAY = 2.0, 1.0
LEASES = 20
OPTIONS = f"?ttl={TTL:g}&lock_delay={LOCK_DELAY:g}"


def supervisor(effort: Effort) -> Iterator[Figure]:
    """The store's own locks on PostgreSQL and SQLite, and Consul's locks on one durable server."""
    yield from _in_store(effort)
    with closing(ConsulServer()) as server:
        server.start()
        version = server.call("GET", "agent/self")["Config"]["Version"]
        what, bound = f"locks in Consul {version}", 2 * TTL + LOCK_DELAY + 2
        terms = f"time to live {TTL:g} s, lock-delay {LOCK_DELAY:g} s"
        url = server.url + OPTIONS
        yield from _handovers(url, what, effort, terms, acquire_ms=15, take_over=bound)
        yield _renewals(server.url, 10.0, what, effort)


@measured_on(postgres, sqlite)
def _in_store(databases: Databases, effort: Effort) -> Iterator[Figure]:
    what, terms = f"locks in {databases.name}", f"time to live {TTL:g} s"
    with databases.new() as url:
        yield from _handovers(url, what, effort, terms, acquire_ms=5, take_over=TTL + 2)
        yield _renewals(url, 15.0, what, effort)


def _handovers(
    url: str, what: str, effort: Effort, terms: str, *, acquire_ms: float, take_over: float
) -> Iterator[Figure]:
    with connected(url, TTL) as ours, connected(url, TTL) as theirs:
        acquired = [_acquire(ours, number) for number in range(max(50, effort.of(1000) // 5))]
        yield figure(f"an uncontended acquire; {what}", acquired, "ms", at_most=acquire_ms)
        slowest = f"an uncontended acquire, 99th percentile; {what}"
        yield figure(slowest, [p99(acquired)], "ms")
        handed_over = [_hand_over(ours, theirs) for _ in range(4 * effort.rounds)]
        released = f"from a clean release to the next holder; {what}"
        yield figure(released, handed_over, "ms", at_most=200)
        taken_over = [_take_over(theirs, url) for _ in range(effort.rounds)]
        killed = f"from kill -9 to the next holder, {terms}; {what}"
        yield figure(killed, taken_over, "s", at_most=take_over)


def _acquire(supervisor: Supervisor, number: int) -> float:
    seconds, lease = timed(lambda: supervisor.acquire(f"load/free/{number}", "benchmark"))
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


def _renewals(url: str, ttl: float, what: str, effort: Effort) -> Figure:
    """Percent of a core per lease, with the default time to live."""
    seconds = max(120 * effort.scale, 2 * ttl)  # long enough for several renewals
    with _holder(url, ttl, LEASES) as process:
        percent = percent_of_core(psutil.Process(process.pid), seconds) / LEASES
    title = f"renewals, of {LEASES} leases, each; {what}"
    return figure(title, [percent], "% of a core", at_most=0.1)


@contextmanager
def _holder(url: str, ttl: float, leases: int) -> Iterator[SpawnProcess]:
    """A process that holds leases until it is killed."""
    spawn = get_context("spawn")
    held = spawn.Event()
    process = spawn.Process(target=_hold, args=(url, ttl, leases, held), daemon=True)
    process.start()
    assert held.wait(60)
    yield process
    process.kill()
    process.join()


def _hold(url: str, ttl: float, leases: int, held: Event) -> None:
    with connected(url, ttl) as supervisor:
        for number in range(leases):
            assert supervisor.acquire(f"load/held/{number}", "holder")
        held.set()
        time.sleep(3600)
