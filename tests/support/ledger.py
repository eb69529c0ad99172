"""Clients that record every 2xx in a ledger, and check the store against it."""

import contextlib
import http.client
import itertools
import json
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from blacksmith_dagster.store import Store
from tests.support.processes.blacksmith import GatewayProcess

CONNECTION_ERRORS = (OSError, http.client.HTTPException)


@dataclass
class Ledger:
    """The responses that the senders got, by the number in each event's data."""

    accepted: dict[int, str] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)
    unsure: set[int] = field(default_factory=set)

    def has_accepted(self, more_than: int) -> bool:
        """Whether more than this number of events was accepted."""
        return len(self.accepted) > more_than

    def check(self, store: Store) -> None:
        """Assert that each accepted event is in the store once, under the id of the response, and
        that every other event is one whose sender got no clear response."""
        events = store.log.newest(limit=1_000_000)
        numbers = Counter(json.loads(event.payload)["n"] for event in events)
        ids = {event.id: json.loads(event.payload)["n"] for event in events}
        assert len(ids) == len(events)
        lost = {n for n, event_id in self.accepted.items() if ids.get(event_id) != n}
        assert not lost, f"{len(lost)} accepted events are not in the store: {sorted(lost)[:9]}"
        assert [n for n, times in numbers.items() if times > 1] == []
        assert numbers.keys() - self.accepted.keys() <= self.unsure


class Sender:
    """A client that sends one event after another, as fast as the responses arrive.

    With `retry` each event has an Idempotency-Key and is sent until it is accepted, as by a client
    that must not lose events.
    """

    def __init__(
        self, gateway: GatewayProcess, ledger: Ledger, numbers: Iterator[int], *, retry: bool
    ) -> None:
        self._gateway = gateway
        self._ledger = ledger
        self._numbers = numbers
        self._retry = retry
        self._connection: http.client.HTTPConnection | None = None
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        for number in self._numbers:
            accepted = self._send(number)
            while not accepted and self._retry:
                self._ending.wait(0.02)
                accepted = self._send(number)
            if self._ending.is_set():
                return

    def _send(self, number: int) -> bool:
        headers = {"Content-Type": "application/json"}
        if self._retry:
            headers["Idempotency-Key"] = f"key-{number}"
        body = b'{"wanted": true, "n": %d}' % number
        try:
            if self._connection is None:
                self._connection = http.client.HTTPConnection(
                    "127.0.0.1", self._gateway.port, timeout=30
                )
            self._connection.request("POST", "/v1/inbox/accepted", body, headers)
            response = self._connection.getresponse()
            document = json.loads(response.read())
        except CONNECTION_ERRORS as error:
            self._ledger.errors[type(error).__name__] += 1
            self._ledger.unsure.add(number)
            self._close()
            return False
        if response.status == 202:
            (self._ledger.accepted[number],) = document["ids"]
            return True
        self._ledger.errors[f"{response.status} {document['type']}"] += 1
        if document["type"] == "urn:blacksmith:outcome-unknown":
            self._ledger.unsure.add(number)
        return False

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def end(self, *, at_once: bool = False) -> None:
        """End after the current event; unless `at_once`, a retrying sender first gets it accepted."""
        self._retry = self._retry and not at_once
        self._ending.set()

    def join(self) -> None:
        """Wait until the sender has ended."""
        self._thread.join(60)
        assert not self._thread.is_alive(), "an event was never accepted"
        self._close()


@contextlib.contextmanager
def load_on(gateway: GatewayProcess, senders: int = 8) -> Iterator[Ledger]:
    """Put load on the gateway until the block ends: senders, of which every second one retries."""
    ledger = Ledger()
    # The threads share the numbers: next() of a count is atomic.
    numbers = itertools.count()
    running = [Sender(gateway, ledger, numbers, retry=n % 2 == 0) for n in range(senders)]
    try:
        yield ledger
    except BaseException:
        for sender in running:
            sender.end(at_once=True)
        raise
    for sender in running:
        sender.end()
    for sender in running:
        sender.join()
    print(f"{len(ledger.accepted)} accepted, {dict(ledger.errors)}")
