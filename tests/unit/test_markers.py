"""A test that starts a service has that service's marker, so that it can be left out."""

import contextlib
from pathlib import Path

import pytest

from tests.support import markers
from tests.support.services.server import Server


@pytest.mark.parametrize(
    ("fixtures", "parameters", "expected"),
    [
        (["store_url", "request"], ["sqlite"], set()),
        (["store_url", "request"], ["postgres"], {"postgres"}),
        (["store_url", "locks_url", "request"], ["sqlite", "consul"], {"consul"}),
        (["broker", "request"], ["postgres_broker", 3], {"postgres"}),
        (["url"], ["kafka"], set()),
        (["durable_postgres", "chromium"], [], {"postgres", "browser"}),
        (["kafka", "nats", "rabbitmq"], [b"kafka"], {"kafka", "nats", "rabbitmq"}),
    ],
)
def test_a_test_is_marked_with_the_services_that_it_uses(
    fixtures: list[str], parameters: list[object], expected: set[str]
) -> None:
    assert markers.markers_of(fixtures, parameters) == expected


class Sleeper(Server):
    service, marker = "Sleeper", "kafka"

    def _command(self) -> list[str | Path]:
        return ["sleep", "60"]

    def ready(self) -> bool:
        return True


def test_a_service_does_not_start_in_a_test_without_its_marker() -> None:
    with contextlib.closing(Sleeper()) as server:
        with markers.only({"nats"}), pytest.raises(AssertionError, match=r"@pytest\.mark\.kafka"):
            server.start()
        assert server.process is None
        with markers.only({"nats", "kafka"}):
            server.start()
        assert server.process is not None


def test_every_marker_of_a_service_is_declared(pytestconfig: pytest.Config) -> None:
    declared = {line.partition(":")[0] for line in pytestconfig.getini("markers")}
    assert declared >= {*markers.SERVICES, "slow"}
