"""A gateway and a worker with a broker between them, and faults on the way of notifications."""

import contextlib
import itertools
import random
import socket
import statistics
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from blacksmith_dagster.errors import Unavailable
from blacksmith_dagster.pubsub import open_pubsub
from blacksmith_dagster.store import open_store
from tests.support.ledger import Ledger, Sender
from tests.support.oracle import judge
from tests.support.pipelines.realtime import FULL, ODD, RECORD, blacksmith, loaded
from tests.support.processes.blacksmith import BlacksmithProcess, GatewayProcess
from tests.support.waiting import until

APP = "tests.support.pipelines.realtime:blacksmith"
RATE = 50.0  # events a second
NORMAL = 0.1  # seconds from sending to loading, the median
HEALED = 20.0


@dataclass(frozen=True)
class Backends:
    """A broker that tests stop and start, and a store; with postgres they are the same server."""

    name: str
    server: Any
    store_url: str

    @property
    def store_is_the_broker(self) -> bool:
        return self.name == "postgres"

    def url(self, topic: str, **changed: Any) -> str:
        """A `BLACKSMITH_PUBSUB_URL` with this topic, and another port or password if given."""
        if self.name == "postgres":
            return f"postgres?topic={topic}"
        url: str = self.server.urls(topic, **changed)[0]
        return url


@dataclass
class Sending:
    """What a client sent, by number: when, and how long it took until it was accepted."""

    ledger: Ledger = field(default_factory=Ledger)
    sent: dict[int, float] = field(default_factory=dict)
    took: dict[int, float] = field(default_factory=dict)

    def numbers(self, rate: float) -> Iterator[int]:
        """The numbers of further events, `rate` a second."""
        due = time.monotonic()
        for number in itertools.count(len(self.sent)):
            time.sleep(max(0.0, due - time.monotonic()))
            began = self.sent[number] = time.monotonic()
            due = max(due, began - 1) + 1 / rate
            yield number
            self.took[number] = time.monotonic() - began

    def count(self) -> int:
        return len(self.ledger.accepted)


class System:
    """A gateway and a worker on one store, with the topics of their notifications."""

    def __init__(
        self,
        backends: Backends,
        folder: Path,
        url: str,
        worker_url: str | None = None,
        *,
        store_url: str | None = None,
    ) -> None:
        """The gateway publishes to `url`; the worker subscribes to `worker_url`, by default the same.
        `store_url`: another route to the store."""
        self.backends = backends
        self.topic = url.partition("topic=")[2]
        self.sending = Sending()
        self._file = folder / "record"
        store = store_url or backends.store_url
        self.gateway = GatewayProcess(store, APP, env={"BLACKSMITH_PUBSUB_URL": url})
        self.worker = BlacksmithProcess(
            ["worker", f"--app={APP}"],
            store,
            {"BLACKSMITH_PUBSUB_URL": worker_url or url, RECORD: str(self._file)},
        )

    def __enter__(self) -> Self:
        self.gateway.start()
        self.worker.start()
        until(lambda: "blacksmith worker: " in self.worker.log, 30, "the worker is ready")
        return self

    def __exit__(self, *_: object) -> None:
        self.gateway.kill()
        self.worker.kill()

    @contextlib.contextmanager
    def load(self) -> Iterator[None]:
        """Send at a constant rate until the block ends, each event until it is accepted."""
        numbers = self.sending.numbers(RATE)
        sender = Sender(self.gateway, self.sending.ledger, numbers, retry=True)
        try:
            yield
        except BaseException:
            print(f"gateway:\n{self.gateway.log}\nworker:\n{self.worker.log}")
            sender.end(at_once=True)
            raise
        sender.end()
        sender.join()

    def more(self, events: int, seconds: float = 30.0) -> None:
        """Return when `events` more events are accepted."""
        wanted = self.sending.count() + events
        until(lambda: self.sending.count() >= wanted, seconds, f"{events} more events")

    def latencies(self) -> dict[int, float]:
        """Seconds from sending each event to its first load, by number, in order."""
        first: dict[str, float] = {}
        for job in loaded(self._file):
            if job.path == FULL:
                first.setdefault(job.id, job.at)
        accepted = sorted(dict(self.sending.ledger.accepted).items())
        sent = self.sending.sent
        return {n: first[event_id] - sent[n] for n, event_id in accepted if event_id in first}

    def back_to_normal(self, events: int = 20) -> None:
        """Return when events sent from now on are loaded without delay."""

        def normal() -> bool:
            late = [seconds for n, seconds in self.latencies().items() if n > before]
            return len(late) >= events and statistics.median(late[-events:]) < NORMAL

        before = max(self.sending.sent, default=0)
        until(normal, HEALED, "latency is back to normal")

    def settle(self) -> None:
        """Return when every accepted event is loaded."""
        with contextlib.closing(open_store(self.backends.store_url)) as store:
            store.register(blacksmith)
            until(lambda: not any(store.counts.of(path).pending for path in (FULL, ODD)), HEALED)

    def judge(self) -> None:
        """Ask the oracle; no job may be pending."""
        ledger = self.sending.ledger
        ids = {FULL: set(ledger.accepted.values())}
        ids[ODD] = {event_id for n, event_id in ledger.accepted.items() if n % 2 == 1}
        assert ids[ODD], "nothing was sent"
        with contextlib.closing(open_store(self.backends.store_url)) as store:
            store.register(blacksmith)
            ledger.check(store)
            for path, wanted in ids.items():
                recorded = {job.id for job in loaded(self._file) if job.path == path}
                result = judge(store, path, wanted, recorded)
                assert (result.pending, result.discarded) == (set(), set())
        late = sorted(self.latencies().values())
        assert late[0] > 0
        print(f"{len(late)} loaded, median {late[len(late) // 2]:.3f} s, latest {late[-1]:.3f} s")

    def times_loaded(self) -> Collection[int]:
        """The different numbers of times that jobs were loaded."""
        times: dict[tuple[str, str], int] = {}
        for job in loaded(self._file):
            times[job.path, job.id] = times.get((job.path, job.id), 0) + 1
        return set(times.values())

    def latest(self) -> float:
        """The longest that an accepted event waited until it was loaded, in seconds."""
        took = self.sending.took
        return max(late - took.get(n, 0.0) for n, late in self.latencies().items())

    def reported(self) -> tuple[int, int, int]:
        """How often the logs report that notifications cannot be published, that they can again, and
        that none arrive."""
        gateway, worker = self.gateway.log, self.worker.log
        return (
            gateway.count("notifications cannot be published"),
            gateway.count("accepts notifications again"),
            worker.count("no notifications arrive"),
        )


def unpublished(gateway: GatewayProcess) -> int:
    """`notifications_unpublished` of the gateway's health, which stays ready in any case."""
    response = gateway.client_get("/_health")
    assert response.status_code == 200, response.text
    unpublished: int = response.json()["notifications_unpublished"]
    return unpublished


class Relay:
    """Passes notifications from one topic to another, unchanged or with a `fault`."""

    def __init__(self, backends: Backends, source: str, target: str) -> None:
        incoming = open_pubsub(backends.url(source), backends.store_url)
        outgoing = open_pubsub(backends.url(target), backends.store_url)
        assert incoming is not None
        assert outgoing is not None
        self._subscriber, self._publisher = incoming.subscriber("sink"), outgoing.publisher()
        self.fault: Callable[[list[str]], None] | None = None
        self.messages = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def publish(self, *paths: str) -> None:
        self._publisher.publish(paths)

    def lose(self, messages: list[str]) -> None:
        """Drop all messages."""

    def double_and_reorder(self, messages: list[str]) -> None:
        """Gather for a moment, then pass each message on twice, in random order."""
        gathered = list(messages)
        give_up = time.monotonic() + 0.05
        while (left := give_up - time.monotonic()) > 0:
            gathered += self._subscriber.wait(left)
        gathered *= 2
        random.shuffle(gathered)
        for path in gathered:
            self.publish(path)

    def delay(self, messages: list[str]) -> None:
        """Delay the messages, and those that arrive meanwhile."""
        self._ended.wait(0.7)
        self.publish(*messages)

    def _run(self) -> None:
        while not self._ended.is_set():
            with contextlib.suppress(Unavailable):
                if messages := sorted(self._subscriber.wait(0.2)):
                    self.messages += 1
                    if self.fault is None:
                        self.publish(*messages)
                    else:
                        self.fault(messages)

    def __enter__(self) -> Self:
        self._subscriber.wait(HEALED)  # until it is subscribed
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(30)
        self._subscriber.close()
        self._publisher.close()


class Proxy:
    """A TCP proxy on the loopback that delays, blocks or cuts connections.

    `delay`: seconds before anything is forwarded; `None` blocks. `refuse`: a connection over which
    one of these texts is sent is cut.
    """

    def __init__(self, port: int, *refuse: bytes) -> None:
        self._target = port
        self._refuse = refuse
        self.delay: float | None = 0.0
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                self._open |= {client, server}
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=self._forward, args=(source, sink), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if any(text in data for text in self._refuse):
                    break
                while self.delay is None:
                    time.sleep(0.05)
                time.sleep(self.delay)
                sink.sendall(data)
        for connection in (source, sink):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self.delay = 0.0
        for connection in self._open:
            connection.close()
