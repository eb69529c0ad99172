"""Helpers for tests of notifications: publish and receive them, and break the broker."""

import contextlib
import socket
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TypeAlias

import psutil

from blacksmith_dagster.errors import Unavailable
from blacksmith_dagster.pubsub import Publisher, PubSub, Subscriber, open_pubsub
from tests.support.services.broker import Broker
from tests.support.waiting import until

SOON = 20.0  # seconds within which publishers and subscribers recover

FLIGHTS, DELAYS, LATE = "warehouse/flights", "warehouse/delays", "alerts/late"

Subscribe: TypeAlias = Callable[[str], Subscriber]
"""Creates a subscriber to a destination, which receives notifications from then on."""


def opening(urls: tuple[str, str]) -> PubSub:
    opened = open_pubsub(*urls)
    assert opened is not None
    return opened


def heard(subscriber: Subscriber, wanted: Collection[str]) -> set[str]:
    """What a subscriber receives until it has received all `wanted` paths, and a moment longer."""
    paths: set[str] = set()

    def complete() -> bool:
        paths.update(subscriber.wait(1.0))
        return paths.issuperset(wanted)

    until(complete, SOON, lambda: f"{paths} of {wanted} were heard")
    paths.update(subscriber.wait(0.2))
    return paths


def works(pubsub: PubSub) -> bool:
    """Whether a notification arrives."""
    publisher, subscriber = pubsub.publisher(), pubsub.subscriber("warehouse")
    with contextlib.closing(publisher), contextlib.closing(subscriber):
        assert not subscriber.wait(SOON)
        publisher.publish([FLIGHTS])
        return heard(subscriber, [FLIGHTS]) == {FLIGHTS}


def assert_recovers(publisher: Publisher, subscriber: Subscriber) -> None:
    """Publisher and subscriber recover without help: what is published is received again."""
    again, after = "warehouse/again", "warehouse/after"  # not to be confused with earlier ones

    def is_heard() -> bool:
        with contextlib.suppress(Unavailable):
            publisher.publish([again])
        with contextlib.suppress(Unavailable):  # at once, while the port is closed
            return again in subscriber.wait(0.5)
        return False

    until(is_heard, SOON, "a notification is received")
    # From here on nothing is lost and nothing fails.
    publisher.publish([after])
    assert after in heard(subscriber, [after])


@contextlib.contextmanager
def down(broker: Broker, how: str) -> Iterator[None]:
    """An outage of the broker: `how` is 'stop' or 'kill'."""
    getattr(broker, how)()
    try:
        yield
    finally:
        broker.start()


def _runs(process: psutil.Process) -> bool:
    """Whether a thread of a stopping process still runs: threads stop one by one."""
    states = [file.read_text() for file in Path(f"/proc/{process.pid}/task").glob("*/stat")]
    return any(state.rpartition(")")[2].split()[0] not in "TZ" for state in states)


@contextlib.contextmanager
def frozen(broker: Broker) -> Iterator[None]:
    """Freeze the broker: it keeps its connections and does nothing."""
    assert broker.process is not None
    parent = psutil.Process(broker.process.pid)
    processes = [parent, *parent.children(recursive=True)]
    try:
        for process in processes:
            process.suspend()
        until(lambda: not any(map(_runs, processes)))
        yield
    finally:
        for process in processes:
            process.resume()


@contextlib.contextmanager
def listener(*, silent: bool) -> Iterator[int]:
    """A port of the loopback that accepts connections and then stays silent, or that is closed."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        if silent:
            s.listen(50)
        yield s.getsockname()[1]
