"""Three hosts compete for a lock, and its holder fails: killed, paused, cut off, with a wrong clock.

Each test runs with the locks in the store and in Consul. At the end the oracle judges, and the writes
of two holders have never counted at the same time.
"""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from blacksmith_dagster.errors import FencedOut
from blacksmith_dagster.store.records import Lane, LoadVerdict
from blacksmith_dagster.supervisor.address import parse_consul_url
from blacksmith_dagster.supervisor.consul import ConsulSupervisor
from tests.support.oracle import judge
from tests.support.pipelines.loading import FLIGHTS
from tests.support.processes.hosts import KEY, LOCK_DELAY, Host, Hosts, one_at_a_time
from tests.support.processes.loading_main import TTL
from tests.support.services import Unavailable
from tests.support.services.consul import ConsulServer
from tests.support.waiting import throughout

FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)


@pytest.fixture(params=["store", "consul"])
def hosts(request: pytest.FixtureRequest, postgres_url: str, tmp_path: Path) -> Iterator[Hosts]:
    """Three hosts, with the locks in the store or in the session's Consul."""
    consuls: list[ConsulServer] = []
    if request.param == "consul":
        request.getfixturevalue("consul_url")
        consuls = [request.getfixturevalue("consul")]
    with Hosts(postgres_url, tmp_path, consuls) as hosts:
        yield hosts


@pytest.fixture
def on_consul(
    consul: ConsulServer, consul_url: str, postgres_url: str, tmp_path: Path
) -> Iterator[Hosts]:
    """Three hosts, with the locks in the session's Consul."""
    with Hosts(postgres_url, tmp_path, [consul]) as hosts:
        yield hosts


def take_over(hosts: Hosts, lost: Host) -> float:
    """Seconds until another host holds the lock."""
    since = time.monotonic()
    hosts.holder(but=lost)
    return time.monotonic() - since


def test_holder_killed(hosts: Hosts) -> None:
    killed = hosts.holder_in_a_load()
    killed.loader.kill()
    hosts.let_go()
    assert take_over(hosts, killed) < hosts.take_over_seconds
    hosts.accept(5)
    hosts.judge()
    states = [transition.state for transition in hosts.store.history.transitions(hosts.accepted[0])]
    assert states[-4:] == ["executing", "unknown", "executing", "succeeded"]


def test_holder_stopped_past_ttl_then_resumed(hosts: Hosts) -> None:
    stale = hosts.holder_in_a_load()
    stale.loader.pause(hosts.store)
    hosts.let_go()
    assert take_over(hosts, stale) < hosts.take_over_seconds
    hosts.settle()
    before = [hosts.store.history.transitions(event_id) for event_id in hosts.accepted]
    stale.loader.resume()
    hosts.until(lambda: "fenced:" in stale.loader.log)
    # It has loaded the jobs that it had claimed, and its record was rejected.
    hosts.until(lambda: len(hosts.recording.loaded()) == 2 * len(hosts.accepted))
    assert [hosts.store.history.transitions(event_id) for event_id in hosts.accepted] == before
    hosts.accept(5)
    hosts.judge()


@pytest.mark.parametrize("how", ["silent", "cut"])
def test_holder_cut_off_from_consul_not_from_store(on_consul: Hosts, how: str) -> None:
    hosts, lost = on_consul, on_consul.holder_in_a_load()
    if how == "silent":
        lost.consul_link().silence()
    else:
        lost.consul_link().cut()
    assert take_over(hosts, lost) < hosts.take_over_seconds
    hosts.let_go()
    hosts.until(lambda: "fenced:" in lost.loader.log)
    # Without a lock it begins no load, while the others continue to load.
    ids = hosts.accept(20)
    hosts.settle()
    loaded_by = hosts.recording.pids()
    assert not any(lost.pid in loaded_by[event_id] for event_id in ids)
    lost.consul_link().fix()
    _holds_again(hosts, lost)
    hosts.judge()


def test_holder_cut_off_from_store_not_from_consul(on_consul: Hosts) -> None:
    hosts, lost = on_consul, on_consul.holder_in_a_load()
    lost.to_store.cut()
    hosts.let_go()
    # It tries to record for as long as it may (3 s here), and then releases the lock.
    assert take_over(hosts, lost) < 3 + hosts.take_over_seconds
    hosts.settle()
    hosts.until(lambda: "unavailable:" in lost.loader.log)
    lost.to_store.fix()
    _holds_again(hosts, lost)
    hosts.judge()


def _holds_again(hosts: Hosts, host: Host) -> None:
    """The host recovers without a restart: once the others have stopped, it loads new events."""
    for other in hosts.hosts:
        if other is not host:
            assert other.loader.stop() == 0
    ids = hosts.accept(3)
    hosts.settle()
    assert {host.pid} == {pid for event_id in ids for pid in hosts.recording.pids()[event_id]}


def test_session_expired_by_hand(on_consul: Hosts, consul: ConsulServer) -> None:
    hosts, lost = on_consul, on_consul.holder_in_a_load()
    (entry,) = consul.call("GET", f"kv/blacksmith/{KEY}")
    consul.call("PUT", f"session/destroy/{entry['Session']}")
    assert take_over(hosts, lost) < TTL + LOCK_DELAY + 1
    hosts.let_go()
    hosts.until(lambda: "fenced:" in lost.loader.log)
    hosts.accept(5)
    hosts.judge()


def test_slow_renewals(hosts: Hosts) -> None:
    slow = hosts.holder_in_a_load()
    slow.to_store.delay = TTL / 40  # a renewal takes several round trips, each of twice that
    if slow.to_consul:
        slow.to_consul.delay = TTL / 16
    since = hosts.status().since

    def is_held() -> bool:
        status = hosts.status()
        return slow.is_at(status.address) and status.since == since

    throughout(is_held, 3 * TTL)
    for link in slow.links():
        link.delay = TTL  # no renewal arrives in time
    assert take_over(hosts, slow) < hosts.take_over_seconds + TTL
    hosts.let_go()
    for link in slow.links():
        link.fix()
    hosts.until(lambda: "fenced:" in slow.loader.log)
    hosts.accept(5)
    hosts.judge()


def test_clock_wrong_by_ten_minutes(hosts: Hosts) -> None:
    if FAKETIME is None:
        raise Unavailable("libfaketime", "not found; `apt-get install libfaketime` brings it")
    for host in hosts.hosts:
        host.loader.kill()
    right = len(hosts.hosts)
    # Only the wall clock: the monotonic one counts the same seconds on every host.
    for shift in ("+10m", "-10m"):
        preload = {"LD_PRELOAD": str(FAKETIME), "FAKETIME": shift}
        hosts.add({**preload, "FAKETIME_DONT_FAKE_MONOTONIC": "1"})
    wrong = hosts.hosts[right:]
    killed = hosts.holder_in_a_load()
    assert killed in wrong
    throughout(lambda: killed.is_at(hosts.status().address), 2 * TTL)
    killed.loader.kill()
    hosts.let_go()
    assert take_over(hosts, killed) < hosts.take_over_seconds
    hosts.judge()
    shifts = {
        round((loaded_at - time.time()) / 600) for loaded_at in hosts.recording.times().values()
    }
    assert shifts <= {1, -1}, "the hosts' clocks were not wrong"


def test_release_by_a_stale_holder(hosts: Hosts) -> None:
    for host in hosts.hosts:
        host.loader.kill()
    stale, rightful = hosts.supervisor, hosts._connect()
    with contextlib.closing(rightful):
        old = stale.acquire(KEY, "stale", wait=30)
        assert old
        _stop_renewing(stale)
        new = rightful.acquire(KEY, "rightful", wait=30)
        assert new
        assert old.lost.is_set()
        old.release()
        assert new.confirm()
        assert hosts.status().holder == "rightful"
        assert rightful.acquire(KEY, "another") is None
    hosts.hosts[0].recover()
    hosts.accept(5)
    hosts.judge()


def test_stale_holder_cannot_fence_out_the_rightful_one(hosts: Hosts) -> None:
    """A process is paused between acquiring the lock and using it."""
    for host in hosts.hosts:
        host.loader.kill()
    stale, rightful = hosts.supervisor, hosts._connect()
    with contextlib.closing(rightful):
        old = stale.acquire(KEY, "stale", wait=30)
        assert old
        token = hosts.store.loads.take_over(FLIGHTS, Lane.LOAD, old.id, old.confirm)
        _stop_renewing(stale)
        ids = hosts.accept(5)
        new = rightful.acquire(KEY, "rightful", wait=30)
        assert new
        held = hosts.store.loads.take_over(FLIGHTS, Lane.LOAD, new.id, new.confirm)
        load = hosts.store.loads.claim(held, 10, 3)
        assert load
        with pytest.raises(FencedOut):
            hosts.store.loads.take_over(FLIGHTS, Lane.LOAD, old.id, old.confirm)
        with pytest.raises(FencedOut):
            hosts.store.loads.claim(token, 10, 3)
        hosts.store.loads.record(load, LoadVerdict())  # the current holder's record is accepted
    result = judge(hosts.store, FLIGHTS, ids, [row.id for row in load.rows])
    assert result.succeeded == set(ids)
    one_at_a_time(hosts.store)


def _stop_renewing(supervisor: object) -> None:
    """Let the leases expire, as those of a paused process do."""
    supervisor._renewals.stop()  # type: ignore[attr-defined]


def test_lock_delay_respected(
    consul: ConsulServer, consul_url: str, postgres_url: str, tmp_path: Path
) -> None:
    url = f"{consul_url}?ttl=2&lock_delay=1.5"
    with (
        contextlib.closing(ConsulSupervisor(parse_consul_url(url, {}))) as ours,
        contextlib.closing(ConsulSupervisor(parse_consul_url(url, {}))) as theirs,
    ):
        lease = ours.acquire(KEY, "we")
        assert lease
        destroyed = time.monotonic()
        consul.call("PUT", f"session/destroy/{lease.id}")
        assert not theirs.status(KEY).held
        other = theirs.acquire(KEY, "they", wait=30)
        assert other
        assert 1.5 <= time.monotonic() - destroyed < 15  # Consul's own is 15 s
        # A lock that was released is free at once.
        other.release()
        released = time.monotonic()
        again = ours.acquire(KEY, "we", wait=30)
        assert again
        assert time.monotonic() - released < 1.5
    with Hosts(postgres_url, tmp_path, [consul], 1) as hosts:
        hosts.accept(5)
        hosts.judge()
