"""What every supervisor does: the suite that each adapter runs."""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import pytest

from blacksmith_dagster.errors import SettingsError
from blacksmith_dagster.store import open_store
from blacksmith_dagster.store.sql import SQLStore
from blacksmith_dagster.supervisor import Lease, StoreSupervisor, Supervisor, open_supervisor

KEY = "load/warehouse/flights"
TTL = 1.0

Connect: TypeAlias = Callable[[], Supervisor]


@pytest.fixture
def connect(store_url: str) -> Iterator[Connect]:
    """Makes supervisors as several processes have them: each with connections of its own."""
    with contextlib.ExitStack() as opened:

        def connect() -> Supervisor:
            store = open_store(store_url, upgrade=True)
            assert isinstance(store, SQLStore)
            opened.callback(store.close)
            supervisor = StoreSupervisor(store, ttl=TTL)
            opened.callback(supervisor.close)
            return supervisor

        yield connect


# What a process does that only holds a lock: it says so, and later whether it has lost it.
HOLDER = """
import sys
from blacksmith_dagster.store import open_store
from blacksmith_dagster.supervisor import StoreSupervisor

url, ttl, key = sys.argv[1:]
lease = StoreSupervisor(open_store(url), ttl=float(ttl)).acquire(key, "holder")
print(lease.id, flush=True)
sys.stdin.readline()
print(lease.lost.is_set(), lease.confirm(), flush=True)
lease.release()
"""


@contextlib.contextmanager
def holder(store_url: str) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, store_url, str(TTL), KEY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        assert process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


def test_one_holds_a_lock_at_a_time(connect: Connect) -> None:
    ours, theirs = connect(), connect()
    lease = ours.acquire(KEY, "we")
    assert lease is not None
    assert lease.key == KEY
    assert theirs.acquire(KEY, "they") is None
    assert ours.acquire(KEY, "we again") is None
    other = theirs.acquire("load/warehouse/alerts", "they")
    assert other is not None
    assert other.id != lease.id
    assert lease.confirm()
    assert not lease.lost.is_set()


def test_one_of_many_that_ask_at_once_gets_it(connect: Connect) -> None:
    supervisors = [connect() for _ in range(4)]
    with ThreadPoolExecutor(12) as pool:
        got = list(pool.map(lambda n: supervisors[n % 4].acquire(KEY, str(n)), range(12)))
    assert len([lease for lease in got if lease is not None]) == 1


def test_status_says_who_holds_it(connect: Connect) -> None:
    ours, theirs = connect(), connect()
    before = ours.status(KEY)
    assert (before.key, before.held, before.owner, before.since) == (KEY, False, None, None)
    lease = ours.acquire(KEY, "run 7")
    assert lease is not None
    status = theirs.status(KEY)
    assert (status.held, status.owner) == (True, "run 7")
    assert status.since is not None
    assert abs(status.since.timestamp() - time.time()) < 60
    lease.release()
    assert not theirs.status(KEY).held


def test_a_lock_is_kept_for_longer_than_its_time_to_live(connect: Connect) -> None:
    ours, theirs = connect(), connect()
    lease = ours.acquire(KEY, "we")
    assert lease is not None
    assert theirs.acquire(KEY, "they", wait=2.5 * TTL) is None
    assert lease.confirm()
    assert not lease.lost.is_set()


def test_who_waits_gets_it_within_200_ms_of_a_release(connect: Connect) -> None:
    ours, theirs = connect(), connect()
    took: list[float] = []

    def wait(_: int) -> float:
        lease = theirs.acquire(KEY, "they", wait=30)
        at = time.monotonic()
        assert lease is not None
        lease.release()
        return at

    with ThreadPoolExecutor(1) as pool:
        for turn in range(5):
            lease = ours.acquire(KEY, "we")
            assert lease is not None
            waiting = pool.submit(wait, turn)
            time.sleep(0.05)  # they have begun to wait, somewhere between two looks
            lease.release()
            released = time.monotonic()
            took.append(waiting.result(30) - released)
    assert sorted(took)[2] < 0.2, took


def test_with_gives_it_back(connect: Connect) -> None:
    ours, theirs = connect(), connect()
    lease = ours.acquire(KEY, "we")
    assert lease is not None
    with lease:
        assert theirs.acquire(KEY, "they") is None
    assert not lease.confirm()
    assert theirs.acquire(KEY, "they") is not None


def test_close_gives_back_what_is_held(connect: Connect) -> None:
    ours, theirs = connect(), connect()
    assert ours.acquire(KEY, "we") is not None
    ours.close()
    assert theirs.acquire(KEY, "they") is not None


def test_the_lock_of_a_killed_process_is_free_after_its_time_to_live(
    connect: Connect, store_url: str
) -> None:
    supervisor = connect()
    with holder(store_url) as process:
        assert supervisor.acquire(KEY, "we") is None
        process.kill()
        killed = time.monotonic()
        lease = supervisor.acquire(KEY, "we", wait=30)
        assert lease is not None
        assert time.monotonic() - killed < TTL + 1


def test_a_process_that_was_paused_knows_that_it_has_lost(connect: Connect, store_url: str) -> None:
    supervisor = connect()
    with holder(store_url) as process:
        lease = _acquire_from_paused(supervisor, process)
        out, _ = process.communicate("\n", timeout=30)
        assert out.split() == ["True", "False"]
        # It has released what it believed to hold: that changed nothing for us.
        assert lease.confirm()
        assert connect().acquire(KEY, "they") is None


def _acquire_from_paused(supervisor: Supervisor, process: "subprocess.Popen[str]") -> Lease:
    """Pause the holder until its lock is ours; wake it if it was paused within a write."""
    process.send_signal(signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(supervisor.acquire, KEY, "we", wait=30)
        with contextlib.suppress(TimeoutError):
            waiting.result(3 * TTL)
        process.send_signal(signal.SIGCONT)
        lease = waiting.result(30)
    assert lease is not None
    return lease


def test_open_supervisor_knows_the_stores_own(store_url: str) -> None:
    store = open_store(store_url, upgrade=True)
    with contextlib.closing(open_supervisor(None, store)) as supervisor:
        assert isinstance(supervisor, StoreSupervisor)
    with pytest.raises(SettingsError, match="zookeeper://"):
        open_supervisor("zookeeper://me:secret@host", store)
    store.close()
