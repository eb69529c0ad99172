"""Several hosts that load the same destination event, and how their result is judged.

A host is a process with its own links to the store and to Consul, which a test cuts, silences or
slows. All run on the loopback interface.
"""

import contextlib
import itertools
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
from sqlalchemy import select

from blacksmith_dagster.errors import BlacksmithError, Unavailable
from blacksmith_dagster.store import Store, open_store
from blacksmith_dagster.store.records import Lane
from blacksmith_dagster.store.tables import loads
from blacksmith_dagster.supervisor import LockStatus, StoreSupervisor, Supervisor
from blacksmith_dagster.supervisor.address import parse_consul_url
from blacksmith_dagster.supervisor.consul import ConsulSupervisor
from tests.support.ingesting import accept
from tests.support.oracle import JobSets, judge
from tests.support.pipelines.loading import FLIGHTS, Recording, blacksmith
from tests.support.processes.blacksmith import GatewayProcess
from tests.support.processes.loading_main import TTL
from tests.support.processes.loading_process import LoaderProcess
from tests.support.services.consul import ConsulServer
from tests.support.services.proxy import Link
from tests.support.waiting import until

KEY = f"load/{FLIGHTS}"
LOCK_DELAY = 0.5
OPTIONS = f"?ttl={TTL:g}&lock_delay={LOCK_DELAY:g}"
PIPELINE = "tests.support.pipelines.loading:blacksmith"


class Host:
    """A host that loads. `consul` is its agent; if it is `None`, the store keeps the locks."""

    def __init__(
        self,
        store_url: str,
        folder: Path,
        consul: ConsulServer | None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        port = urlsplit(store_url).port
        assert port
        self.to_store = Link(port)
        self.to_consul = Link(consul.port) if consul else None
        settings = {"BLACKSMITH_TEST_RECORD_FOR": "3", **(env or {})}
        if self.to_consul:
            url = f"consul://127.0.0.1:{self.to_consul.port}{OPTIONS}"
            settings["BLACKSMITH_SUPERVISOR_URL"] = url
        linked_url = store_url.replace(f":{port}/", f":{self.to_store.port}/")
        self.loader = LoaderProcess(linked_url, folder, env=settings)

    @property
    def pid(self) -> int:
        return self.loader.process.pid

    def is_at(self, address: str | None) -> bool:
        """Whether this is the process that an address names."""
        return address is not None and address.endswith(f":{self.pid}")

    def consul_link(self) -> Link:
        assert self.to_consul
        return self.to_consul

    def links(self) -> list[Link]:
        return [self.to_store] + ([self.to_consul] if self.to_consul else [])

    def recover(self) -> None:
        """Undo every fault: fix the links, resume the process, start it again if it was killed."""
        for link in self.links():
            link.fix()
        if self.loader.process.poll() is None:
            self.loader.resume()
        self.loader.start_again_if_ended()

    def close(self) -> None:
        self.loader.kill()
        for link in self.links():
            link.cut()


class Hosts:
    """The hosts, the store that they share, and the ids of the accepted events."""

    def __init__(
        self, store_url: str, folder: Path, consuls: Sequence[ConsulServer] = (), number: int = 3
    ) -> None:
        self.store_url, self.folder, self.consuls = store_url, folder, consuls
        store = open_store(store_url, upgrade=True)
        self.store = store
        self.store.register(blacksmith)
        self.recording = Recording(folder)
        self.accepted: list[str] = []
        self.supervisor = self._connect()
        self.hosts: list[Host] = []
        for _ in range(number):
            self.add()

    def add(self, env: Mapping[str, str] | None = None) -> Host:
        """Start another host; its agent is the next of the servers."""
        consul = self.consuls[len(self.hosts) % len(self.consuls)] if self.consuls else None
        self.hosts.append(Host(self.store_url, self.folder, consul, env))
        return self.hosts[-1]

    def _connect(self) -> Supervisor:
        """The test's own supervisor, which bypasses the links."""
        if self.consuls:
            return ConsulSupervisor(parse_consul_url(self.consuls[0].url + OPTIONS, {}))
        return StoreSupervisor(self.store.database, ttl=TTL)

    @property
    def take_over_seconds(self) -> float:
        """Seconds within which another host has the lock of a holder that has vanished."""
        return 2 * TTL + LOCK_DELAY + 2 if self.consuls else TTL + 2

    # -- what comes in
    def accept(self, number: int, **data: Any) -> list[str]:
        """Ingest events, each with a job; returns their ids."""
        ids = accept(self.store, [{"n": n, **data} for n in range(number)])
        self.accepted += ids
        return ids

    # -- who holds the lock
    def status(self) -> LockStatus:
        """The lock's status; not held while the supervisor does not respond."""
        try:
            return self.supervisor.status(KEY)
        except BlacksmithError:
            return LockStatus(KEY, held=False)

    def holder(self, but: Host | None = None) -> Host:
        """Wait until one of the hosts, other than `but`, holds the lock."""
        holders: list[Host] = []

        def holds() -> bool:
            address = self.status().address
            holders[:] = [host for host in self.hosts if host is not but and host.is_at(address)]
            return bool(holders)

        self.until(holds, 60)
        return holders[0]

    def holder_in_a_load(self) -> Host:
        """The host that is in the middle of a load, which continues once `let_go` is called."""
        self.recording.hold.touch()
        (event_id, *_) = self.accept(5, do="wait")
        self.until(lambda: self.recording.calls(event_id) > 0, 30)
        return self.holder()

    def let_go(self) -> None:
        """Let the load of `holder_in_a_load` continue."""
        self.recording.hold.unlink()

    def until(self, condition: Any, seconds: float = 60.0) -> None:
        """Wait for a condition; fails with what the hosts have printed."""

        def printed() -> str:
            logs = "\n--\n".join(host.loader.log[-2500:] for host in self.hosts)
            return f"{self.status()}\n{logs}"

        until(condition, seconds, printed)

    def pending(self) -> int:
        """The number of pending jobs; -1 while the store does not respond."""
        try:
            return self.store.counts.of(FLIGHTS).pending
        except Unavailable:
            return -1

    def settle(self, seconds: float = 60.0) -> None:
        """Wait until nothing is pending."""
        self.until(lambda: self.pending() == 0, seconds)

    # -- the end
    def judge(self) -> JobSets:
        """Ask the oracle, and check that the writes of two holders never both count."""
        self.settle()
        result = judge(self.store, FLIGHTS, self.accepted, self.recording.loaded(), histories=20)
        assert result.succeeded == set(self.accepted)
        one_at_a_time(self.store)
        return result

    def close(self) -> None:
        self.recording.hold.unlink(missing_ok=True)
        for host in self.hosts:
            host.close()
        with contextlib.suppress(Unavailable):
            self.supervisor.close()
        self.recording.close()
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def one_at_a_time(store: Store, path: str = FLIGHTS) -> None:
    """Check that each load ended before the next began and that fencing tokens only rise: no two
    holders have written at the same time."""
    is_load = (
        loads.c.destination == store.database.destination(path),
        loads.c.lane == Lane.LOAD,
    )
    columns = (loads.c.id, loads.c.token, loads.c.started_at, loads.c.finished_at)
    with store.database.reading() as connection:
        rows = connection.execute(select(*columns).where(*is_load).order_by(loads.c.id)).all()
    assert rows, "nothing was loaded"
    for earlier, later in itertools.pairwise(rows):
        assert earlier.token <= later.token, (earlier, later)
        assert earlier.finished_at is not None, (earlier, later)
        assert earlier.finished_at <= later.started_at, (earlier, later)


class Senders:
    """A client per gateway, which sends one event after another and collects the ids of accepted ones.

    It sends an event again, with its key, to the next gateway until one accepts it.
    """

    def __init__(self, gateways: Sequence[GatewayProcess], gap: float = 0.02) -> None:
        self.accepted: list[str] = []
        self._gateways = gateways
        self._gap = gap
        self._ending = threading.Event()
        self._threads = [
            threading.Thread(target=self._send, args=(number,), daemon=True)
            for number in range(len(gateways))
        ]
        for thread in self._threads:
            thread.start()

    def _send(self, sender: int) -> None:
        for number in itertools.count():
            self.accepted += self._until_accepted(f"{sender}-{number}", number, sender)
            if self._ending.wait(self._gap):
                return

    def _until_accepted(self, key: str, number: int, first: int) -> list[str]:
        for turn in itertools.count(first):
            gateway = self._gateways[turn % len(self._gateways)]
            with contextlib.suppress(httpx.TransportError):
                response = httpx.post(
                    f"{gateway.url}/v1/airport/departed",
                    json={"n": number},
                    headers={"Idempotency-Key": key},
                    timeout=10,
                    trust_env=False,
                )
                if response.status_code == 202:
                    ids: list[str] = response.json()["ids"]
                    return ids
            time.sleep(0.05)
        raise AssertionError

    def stop(self) -> list[str]:
        """Stop once the events in progress are accepted; returns the ids of all."""
        self._ending.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "an event was never accepted"
        return self.accepted


@contextlib.contextmanager
def gateways(store_url: str, *supervisor_urls: str) -> Iterator[list[GatewayProcess]]:
    """A gateway per supervisor URL, all with the same store."""
    with contextlib.ExitStack() as opened:
        yield [
            opened.enter_context(
                GatewayProcess(
                    store_url, PIPELINE, env={"BLACKSMITH_SUPERVISOR_URL": url} if url else None
                )
            )
            for url in supervisor_urls
        ]
