"""Which services a test needs, as pytest's markers: `-m "not kafka"` leaves no test that starts Kafka.

A test gets the markers of the fixtures that it uses, and of those that its parameters name. One that
starts a server itself is marked by hand; if it is not, the server refuses to start.
"""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager

import pytest

_MARKERS = {
    "postgres": "postgres",
    "durable_postgres": "postgres",
    "postgres_broker": "postgres",
    "kafka": "kafka",
    "nats": "nats",
    "rabbitmq": "rabbitmq",
    "consul": "consul",
    "chromium": "browser",
}
SERVICES = frozenset(_MARKERS.values())

_allowed: Collection[str] = SERVICES  # outside a test, as in a benchmark, every service may start


def markers_of(fixtures: Iterable[str], parameters: Iterable[object]) -> set[str]:
    """The markers of a test by the names of all its fixtures, and by the values of its parameters.

    A parameter that is a fixture's name is one that is looked up, if anything has a `request`.
    """
    named = set(fixtures)
    if "request" in named:
        named |= {value for value in parameters if isinstance(value, str)}
    return {_MARKERS[name] for name in named & _MARKERS.keys()}


def mark(item: pytest.Item) -> None:
    """Give a collected test its markers."""
    if isinstance(item, pytest.Function):
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        for marker in sorted(markers_of(item.fixturenames, parameters)):
            item.add_marker(marker)


@contextmanager
def only(allowed: Collection[str]) -> Iterator[None]:
    """While this is open, only services with these markers may start."""
    global _allowed
    before, _allowed = _allowed, allowed
    try:
        yield
    finally:
        _allowed = before


def check(marker: str) -> None:
    """Fail if the running test may not start the service with this marker."""
    assert marker in _allowed, f"the test starts a service: mark it with @pytest.mark.{marker}"
