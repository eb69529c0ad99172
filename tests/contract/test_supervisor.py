"""What every supervisor does: the suite that each adapter runs."""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import TypeAlias

import pytest

from blacksmith_dagster.errors import SettingsError
from blacksmith_dagster.store import open_store
from blacksmith_dagster.supervisor import (
    GATEWAY,
    SCHEDULER,
    Lease,
    LockStatus,
    Service,
    StoreSupervisor,
    Supervisor,
    here,
    open_supervisor,
    registered,
    this_process,
)
from blacksmith_dagster.supervisor.consul import ConsulSupervisor
from tests.support.processes.blacksmith import ROOT_FOLDER
from tests.support.supervising import connected
from tests.support.waiting import throughout, until

KEY = "load/warehouse/flights"
TTL = 1.0

Connect: TypeAlias = Callable[[], Supervisor]


@pytest.fixture(params=["sqlite", "postgres", "consul"])
def supervisor_url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty supervisor: a store's, or Consul's."""
    if request.param == "consul":
        return f"{request.getfixturevalue('consul_url')}?ttl={TTL}&lock_delay=0"
    if request.param == "postgres":
        url: str = request.getfixturevalue("postgres_url")
        return url
    return f"sqlite:///{request.getfixturevalue('tmp_path')}/store.db"


@pytest.fixture
def free_after(supervisor_url: str) -> float:
    """Seconds within which another process has the lock of one that has vanished."""
    return 2 * TTL + 2 if supervisor_url.startswith("consul:") else TTL + 1


@pytest.fixture
def connect(supervisor_url: str) -> Iterator[Connect]:
    """Makes supervisors with connections of their own, as several processes have them."""
    with contextlib.ExitStack() as opened:
        yield lambda: opened.enter_context(connected(supervisor_url, TTL))


# A process that holds a lock. It prints the lease's id, and later whether it has lost the lock.
HOLDER = """
import sys
from tests.support.supervising import connected

url, ttl, key = sys.argv[1:]
with connected(url, float(ttl)) as supervisor:
    lease = supervisor.acquire(key, "holder")
    print(lease.id, flush=True)
    sys.stdin.readline()
    print(lease.lost.is_set(), lease.confirm(), flush=True)
    lease.release()
"""


@contextlib.contextmanager
def holder(supervisor_url: str) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, supervisor_url, str(TTL), KEY],
        cwd=ROOT_FOLDER,
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


def test_one_of_many_simultaneous_requests_gets_the_lock(connect: Connect) -> None:
    supervisors = [connect() for _ in range(4)]
    with ThreadPoolExecutor(12) as pool:
        leases = list(pool.map(lambda n: supervisors[n % 4].acquire(KEY, str(n)), range(12)))
    assert len([lease for lease in leases if lease is not None]) == 1


def test_status_names_the_holder(connect: Connect) -> None:
    ours, theirs = connect(), connect()
    before = ours.status(KEY)
    assert before == LockStatus(KEY, held=False)
    lease = ours.acquire(KEY, "run 7")
    assert lease is not None
    status = theirs.status(KEY)
    assert (status.held, status.holder, status.address) == (True, "run 7", here())
    assert status.held_by == f"run 7 at {here()}"
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


def test_a_waiting_process_gets_the_lock_within_200_ms_of_a_release(connect: Connect) -> None:
    ours, theirs = connect(), connect()
    waits: list[float] = []

    def wait(_: int) -> float:
        lease = theirs.acquire(KEY, "they", wait=30)
        acquired = time.monotonic()
        assert lease is not None
        lease.release()
        return acquired

    with ThreadPoolExecutor(1) as pool:
        for turn in range(5):
            lease = ours.acquire(KEY, "we")
            assert lease is not None
            waiting = pool.submit(wait, turn)
            time.sleep(0.05)  # they have begun to wait, somewhere between two checks
            lease.release()
            released = time.monotonic()
            waits.append(waiting.result(30) - released)
    assert sorted(waits)[2] < 0.2, waits


def test_the_end_of_a_with_block_releases_the_lock(connect: Connect) -> None:
    ours, theirs = connect(), connect()
    lease = ours.acquire(KEY, "we")
    assert lease is not None
    with lease:
        assert theirs.acquire(KEY, "they") is None
    assert not lease.confirm()
    assert theirs.acquire(KEY, "they") is not None


def test_close_releases_the_held_locks(connect: Connect) -> None:
    ours, theirs = connect(), connect()
    assert ours.acquire(KEY, "we") is not None
    ours.close()
    assert theirs.acquire(KEY, "they") is not None


def test_the_lock_of_a_killed_process_is_free_after_its_time_to_live(
    connect: Connect, supervisor_url: str, free_after: float
) -> None:
    supervisor = connect()
    with holder(supervisor_url) as process:
        assert supervisor.acquire(KEY, "we") is None
        process.kill()
        killed = time.monotonic()
        lease = supervisor.acquire(KEY, "we", wait=30)
        assert lease is not None
        assert time.monotonic() - killed < free_after


def test_a_process_that_was_paused_knows_that_it_has_lost(
    connect: Connect, supervisor_url: str
) -> None:
    supervisor, other = connect(), connect()
    with holder(supervisor_url) as process:
        lease = _acquire_from_paused(supervisor, process)
        out, _ = process.communicate("\n", timeout=30)
        assert out.split() == ["True", "False"]
        # It released the lock that it believed to hold, which changed nothing for us.
        assert lease.confirm()
        assert other.acquire(KEY, "they") is None


def _acquire_from_paused(supervisor: Supervisor, process: "subprocess.Popen[str]") -> Lease:
    """Pause the holder until we have its lock; resume it if it was paused in a write."""
    process.send_signal(signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(supervisor.acquire, KEY, "we", wait=30)
        with contextlib.suppress(TimeoutError):
            waiting.result(3 * TTL)
        process.send_signal(signal.SIGCONT)
        lease = waiting.result(30)
    assert lease is not None
    return lease


def test_locks_lists_the_held_ones(connect: Connect) -> None:
    ours, theirs = connect(), connect()
    assert theirs.locks() == []
    other = ours.acquire("load/warehouse/alerts", "we")
    lease = ours.acquire(KEY, "we")
    assert lease
    assert other
    assert [lock.key for lock in theirs.locks()] == [other.key, lease.key]
    assert theirs.locks()[1] == theirs.status(KEY)
    lease.release()
    assert [lock.key for lock in theirs.locks()] == [other.key]


def test_a_registered_service_is_listed_until_it_is_deregistered(connect: Connect) -> None:
    ours, theirs = connect(), connect()
    with registered(ours, this_process(SCHEDULER, ["lake", "mail"])):
        until(theirs.services)
        (service,) = theirs.services()
        described = (service.name, service.passing, service.version)
        assert described == (SCHEDULER, True, version("blacksmith-dagster"))
        assert service.tags == ("lake", "mail")
        assert here() in service.id
        ours.register(Service(GATEWAY, "gateway-1", "10.0.0.7", 8420))
        until(lambda: len(theirs.services()) == 2)
        gateway, scheduler = theirs.services()
        assert scheduler == service
        assert (gateway.name, gateway.address) == (GATEWAY, "10.0.0.7:8420")
    assert [service.id for service in theirs.services()] == ["gateway-1"]
    ours.close()
    assert theirs.services() == []


def test_a_service_is_kept_for_longer_than_its_time_to_live(connect: Connect) -> None:
    ours, theirs = connect(), connect()
    ours.register(this_process(SCHEDULER))
    until(theirs.services)
    throughout(lambda: [service.passing for service in theirs.services()] == [True], 6 * TTL)


def test_a_service_that_is_not_renewed_is_not_healthy(connect: Connect) -> None:
    ours, theirs = connect(), connect()
    ours.register(this_process(SCHEDULER))
    until(lambda: any(service.passing for service in theirs.services()))
    assert isinstance(ours, StoreSupervisor | ConsulSupervisor)
    ours._renewals.stop()
    until(lambda: not any(service.passing for service in theirs.services()))


def test_ready_raises_nothing_while_locks_can_be_acquired(connect: Connect) -> None:
    connect().ready()


def test_open_supervisor_opens_the_stores_own_and_consul(store_url: str) -> None:
    with contextlib.closing(open_store(store_url, upgrade=True)) as store:
        with contextlib.closing(open_supervisor(None, store.database)) as supervisor:
            assert isinstance(supervisor, StoreSupervisor)
            assert supervisor.label == store.label
        with contextlib.closing(
            open_supervisor("consul://:secret@host", store.database)
        ) as supervisor:
            assert supervisor.label == "consul://host:8500"
        with pytest.raises(SettingsError, match="zookeeper://"):
            open_supervisor("zookeeper://me:secret@host", store.database)


def test_a_missing_client_names_its_extra(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blacksmith_dagster.supervisor.find_spec", lambda _: None)
    with (
        contextlib.closing(open_store(store_url, upgrade=True)) as store,
        pytest.raises(ImportError, match=r"blacksmith-dagster\[consul\]"),
    ):
        open_supervisor("consul://host", store.database)
