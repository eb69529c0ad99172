"""Consul itself fails while gateways receive and three hosts compete for a lock."""

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from click.testing import CliRunner
from sqlalchemy import func, select

from blacksmith_dagster.cli import main
from blacksmith_dagster.store.tables import loads
from blacksmith_dagster.supervisor import GATEWAY, SCHEDULER
from blacksmith_dagster.supervisor.address import parse_consul_url
from blacksmith_dagster.supervisor.consul import ConsulSupervisor
from tests.support import randomness
from tests.support.pipelines.loading import RECORDING
from tests.support.processes.blacksmith import GatewayProcess
from tests.support.processes.hosts import (
    LOCK_DELAY,
    OPTIONS,
    PIPELINE,
    Host,
    Hosts,
    Senders,
    gateways,
)
from tests.support.processes.loading_main import TTL
from tests.support.services.consul import ConsulCluster, ConsulServer
from tests.support.waiting import until

T = TypeVar("T")

pytestmark = pytest.mark.consul

DOWN = 60.0 if randomness.ROUNDS else 5 * TTL
ROUNDS = randomness.rounds(2)


@pytest.fixture
def cluster() -> Iterator[ConsulCluster]:
    """A cluster of three servers for one test."""
    cluster = ConsulCluster()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def single() -> Iterator[ConsulServer]:
    """A server for one test, which keeps its data while it is down."""
    server = ConsulServer()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module", autouse=True)
def vanished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Any]]:
    """A service that is killed when the module begins: Consul deregisters it after at least a minute."""
    folder = tmp_path_factory.mktemp("vanished")
    server = ConsulServer()
    try:
        server.start()
        store = f"sqlite:///{folder}/store.db"
        with GatewayProcess(
            store, PIPELINE, env={"BLACKSMITH_SUPERVISOR_URL": server.url + OPTIONS}
        ):
            supervisor = ConsulSupervisor(parse_consul_url(server.url + OPTIONS, {}))
            until(lambda: [service for service in supervisor.services() if service.passing], 20)
        yield supervisor.services
        supervisor.close()
    finally:
        server.close()


def test_consul_leader_killed(cluster: ConsulCluster, postgres_url: str, tmp_path: Path) -> None:
    urls = [server.url + OPTIONS for server in cluster.servers[:2]]
    with (
        gateways(postgres_url, *urls) as running,
        Hosts(postgres_url, tmp_path, cluster.servers) as hosts,
    ):
        senders = Senders(running)
        hosts.until(lambda: len(hosts.recording.loaded()) > 20)
        leader = cluster.leader()
        leader.kill()
        killed, loaded = time.monotonic(), len(hosts.recording.loaded())
        others = [server for server in cluster.servers if server is not leader]
        hosts.supervisor = ConsulSupervisor(parse_consul_url(others[0].url + OPTIONS, {}))
        until(lambda: all(map(_ready, others)), 30, "the others have a leader")
        elected = time.monotonic()
        hosts.until(lambda: len(hosts.recording.loaded()) > loaded + 20)
        print(
            f"elected in {elected - killed:.1f} s, loading after {time.monotonic() - killed:.1f} s"
        )
        assert time.monotonic() - elected < hosts.take_over_seconds + 5
        leader.start()
        hosts.accepted += senders.stop()
        hosts.judge()


def _ready(server: ConsulServer) -> bool:
    return server.ready()


@pytest.mark.slow
@pytest.mark.soak
def test_consul_down_for_a_minute(single: ConsulServer, postgres_url: str, tmp_path: Path) -> None:
    """Down for a minute in a soak test, and for five times to live otherwise."""
    with (
        gateways(postgres_url, *[single.url + OPTIONS] * 2) as running,
        Hosts(postgres_url, tmp_path, [single]) as hosts,
    ):
        senders = Senders(running)
        hosts.until(lambda: len(hosts.recording.loaded()) > 20)
        assert _supervisor_state(running[0]) == "reachable"
        single.kill()
        down = time.monotonic()
        until(lambda: "does not respond" in _supervisor_state(running[0]), 10, "/_health says so")
        # The holder's lease has expired by then: no load begins any more.
        time.sleep(max(0.0, down + 1.5 * TTL - time.monotonic()))
        loads_before, sent = _loads(hosts), len(senders.accepted)
        time.sleep(max(0.0, down + DOWN - time.monotonic()))
        assert _loads(hosts) == loads_before
        assert hosts.pending() > 0
        # The gateways continue: they need no lock.
        assert len(senders.accepted) > sent + 50
        assert all(gateway.ready() for gateway in running)
        single.start()
        hosts.until(lambda: _loads(hosts) > loads_before, hosts.take_over_seconds + 5)
        until(lambda: _supervisor_state(running[0]) == "reachable", 10, "/_health says so")
        hosts.accepted += senders.stop()
        hosts.judge()
        assert all(host.loader.starts == 1 for host in hosts.hosts)
        # Consul has kept its data, and the services are registered again.
        names = [GATEWAY] * 2 + [SCHEDULER] * 3
        until(lambda: [service.name for service in hosts.supervisor.services()] == names)


def _supervisor_state(gateway: GatewayProcess) -> str:
    state: str = gateway.client_get("/_health").json()["supervisor"]
    return state


def _loads(hosts: Hosts) -> int:
    with hosts.store.database.reading() as connection:
        return int(connection.execute(select(func.count()).select_from(loads)).scalar_one())


def test_gateway_is_deregistered_when_it_is_stopped(
    consul: ConsulServer, consul_url: str, postgres_url: str
) -> None:
    with (
        contextlib.closing(
            ConsulSupervisor(parse_consul_url(consul_url + OPTIONS, {}))
        ) as supervisor,
        gateways(postgres_url, consul_url + OPTIONS) as (gateway,),
    ):
        until(lambda: [service.passing for service in supervisor.services()] == [True])
        (service,) = supervisor.services()
        assert service.address == f"127.0.0.1:{gateway.port}"
        assert service.tags == ("airport",)
        (check,) = consul.call("GET", f"health/checks/{GATEWAY}")
        assert check["ServiceID"] == service.id
        # It is registered as passing; then the agent checks it.
        agents = lambda: consul.call("GET", "agent/checks")[check["CheckID"]]  # noqa: E731
        until(lambda: "/_health: 200 OK" in agents()["Output"])
        assert gateway.stop() == 0
        assert supervisor.services() == []


def test_status_has_tables_of_services_and_locks(
    consul: ConsulServer,
    consul_url: str,
    postgres_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BLACKSMITH_HOME", str(tmp_path))
    monkeypatch.setenv("BLACKSMITH_STORE_URL", postgres_url)
    monkeypatch.setenv("BLACKSMITH_SUPERVISOR_URL", consul_url + OPTIONS)
    monkeypatch.setenv(RECORDING, str(tmp_path))
    with (
        gateways(postgres_url, consul_url + OPTIONS),
        Hosts(postgres_url, tmp_path, [consul], 1) as hosts,
    ):
        host = hosts.holder_in_a_load()
        until(lambda: len(hosts.supervisor.services()) == 2, 20)
        output = CliRunner().invoke(main, ["status", f"--app={PIPELINE}"]).stdout
        hosts.let_go()
        hosts.judge()
    rows = [line.split() for line in output.splitlines()]
    assert ["service", "address", "state", "version", "serves"] in rows
    assert {GATEWAY, SCHEDULER} <= {row[0] for row in rows if row}
    (lock,) = [row for row in rows if row[:1] == ["load/warehouse/flights"]]
    assert lock[1:3] == ["process", str(host.pid)]
    assert host.is_at(lock[3])
    (flights,) = [row for row in rows if row[:1] == ["warehouse/flights"]]
    assert flights[1:7] == ["0", "5", "0", "0", "0", "5"]  # the last is the lag


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(120 + 60 * ROUNDS)
def test_random_rounds(cluster: ConsulCluster, postgres_url: str, tmp_path: Path) -> None:
    """Two gateways under load, three hosts, three servers, and random faults.

    It prints the `make soak SEED=... ROUNDS=...` that repeats the same faults, at other moments.
    """
    seed = randomness.new_seed()
    print(f"make soak SEED={seed} ROUNDS={ROUNDS}")
    dice = random.Random(seed)
    urls = [server.url + OPTIONS for server in cluster.servers[:2]]
    with (
        gateways(postgres_url, *urls) as running,
        Hosts(postgres_url, tmp_path, cluster.servers) as hosts,
    ):
        faults = Faults(dice, cluster, running, hosts)
        senders = Senders(running, gap=0.05)
        for number in range(ROUNDS):
            before = len(hosts.recording.loaded())
            print(f"round {number}: {faults.strike()}", flush=True)
            time.sleep(dice.uniform(0.2, 2 * TTL + LOCK_DELAY))
            faults.undo()
            recovery = 2 * hosts.take_over_seconds + 15
            hosts.until(lambda seen=before: len(hosts.recording.loaded()) > seen, recovery)
        hosts.accepted += senders.stop()
        hosts.judge()


class Faults:
    """The faults of a round: one or two of these at the same time."""

    def __init__(
        self,
        dice: random.Random,
        cluster: ConsulCluster,
        running: list[GatewayProcess],
        hosts: Hosts,
    ) -> None:
        self._dice, self._cluster, self._gateways, self._hosts = dice, cluster, running, hosts
        self._faults: list[Callable[[], str]] = [
            self._kill_host,
            self._stop_host,
            self._cut_from_consul,
            self._silence_consul,
            self._cut_from_store,
            self._slow_host,
            self._destroy_a_session,
            self._kill_server,
            self._kill_gateway,
        ]

    def strike(self) -> str:
        """Cause one or two faults; returns their descriptions."""
        return ", ".join(
            fault() for fault in self._dice.sample(self._faults, self._dice.choice([1, 2]))
        )

    def undo(self) -> None:
        """Undo all faults."""
        for server in self._cluster.servers:
            if not server.is_running:
                server.launch()
        for host in self._hosts.hosts:
            host.recover()
        for gateway in self._gateways:
            if gateway.process is None:
                gateway.start()

    def _host(self) -> Host:
        """A host, in most cases the holder of the lock."""
        holder_if_any, other = self._dice.random() < 0.7, self._one_of(self._hosts.hosts)
        address = self._hosts.status().address
        holders = [host for host in self._hosts.hosts if host.is_at(address)]
        return holders[0] if holders and holder_if_any else other

    def _one_of(self, things: Sequence[T]) -> T:
        """Choose with one random number, so that a seed repeats the same faults."""
        return things[int(self._dice.random() * len(things))]

    def _kill_host(self) -> str:
        self._host().loader.kill()
        return "a host is killed"

    def _stop_host(self) -> str:
        host = self._host()
        if host.loader.process.poll() is None:
            host.loader.pause(self._hosts.store)
        return "a host is paused"

    def _cut_from_consul(self) -> str:
        self._host().consul_link().cut()
        return "a host is cut off from Consul"

    def _silence_consul(self) -> str:
        self._host().consul_link().silence()
        return "Consul is silent to a host"

    def _cut_from_store(self) -> str:
        self._host().to_store.cut()
        return "a host is cut off from the store"

    def _slow_host(self) -> str:
        for link in self._host().links():
            link.delay = self._dice.uniform(0.0, TTL / 2)
        return "a host is slow"

    def _destroy_a_session(self) -> str:
        chance = self._dice.random()
        with contextlib.suppress(httpx.HTTPError):  # there may be no leader
            server = next(server for server in self._cluster.servers if server.is_running)
            sessions = server.call("GET", "session/list")
            if sessions:
                chosen = sessions[int(chance * len(sessions))]["ID"]
                server.call("PUT", f"session/destroy/{chosen}")
        return "a session is destroyed"

    def _kill_server(self) -> str:
        self._one_of(self._cluster.servers).kill()
        return "a server of Consul is killed"

    def _kill_gateway(self) -> str:
        self._one_of(self._gateways).kill()
        return "a gateway is killed"


@pytest.mark.slow
def test_service_vanishes_and_is_deregistered(vanished: Callable[[], Any]) -> None:
    """At the end of the module: Consul takes at least a minute, which passes in the other tests."""
    until(lambda: not any(service.passing for service in vanished()), 20, "nothing is passing")
    until(lambda: vanished() == [], 120, "Consul has deregistered it")
