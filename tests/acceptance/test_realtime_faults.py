"""Brokers are killed, emptied and slowed; notifications are lost, doubled and delayed. Only the
latency changes."""

import contextlib
import itertools
import os
import random
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from blacksmith_dagster.scheduler.realtime import SWEEP, SWEEP_ALONE
from blacksmith_dagster.store import open_store
from tests.support import randomness
from tests.support.ledger import Sender
from tests.support.notifying import frozen
from tests.support.pipelines.realtime import blacksmith
from tests.support.processes.blacksmith import BlacksmithProcess, GatewayProcess
from tests.support.processes.realtime_system import (
    APP,
    Backends,
    Proxy,
    Relay,
    Sending,
    System,
    unpublished,
)
from tests.support.services.postgres import Postgres, PostgresServer
from tests.support.services.postgres_broker import PostgresBroker
from tests.support.waiting import until

MARGIN = 2.5  # on a machine of two cores that also runs the test's servers

SLOW = 0.3  # seconds that data takes to and from a slow broker
WRONG = "open-sesame"

_topics = itertools.count(1)


BROKERS = ["kafka", "nats", "rabbitmq"]
with_every_broker = pytest.mark.parametrize("broker", [*BROKERS, "postgres"], indirect=True)


@pytest.fixture
def broker(request: pytest.FixtureRequest) -> Backends:
    """A running broker and a store; with postgres they are the same server."""
    if request.param == "postgres":
        server: PostgresServer = request.getfixturevalue("durable_postgres")
        return Backends(request.param, server, server.create_database())
    return Backends(
        request.param,
        request.getfixturevalue(request.param),
        request.getfixturevalue("postgres_url"),
    )


@pytest.fixture
def system(broker: Backends, tmp_path: Path) -> System:
    """A gateway and a worker on the broker, not started yet."""
    return System(broker, tmp_path, broker.url(new_topic()))


@pytest.fixture(scope="module", params=[*BROKERS, "postgres"])
def relayed(
    request: pytest.FixtureRequest, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[System, Relay]]:
    """A gateway and a worker with a relay between them; they run through all faults of a broker."""
    is_postgres = request.param == "postgres"
    server = postgres if is_postgres else request.getfixturevalue(request.param)
    broker = Backends(request.param, server, postgres.create_database())
    source_topic, target_topic = new_topic(), new_topic()
    folder = tmp_path_factory.mktemp("relayed")
    with (
        Relay(broker, source_topic, target_topic) as relay,
        System(broker, folder, broker.url(source_topic), broker.url(target_topic)) as system,
    ):
        yield system, relay
    postgres.drop_database(broker.store_url)


def new_topic() -> str:
    return f"faults-{os.getpid()}-{next(_topics)}"


@pytest.mark.slow
@with_every_broker
def test_broker_killed_and_restarted_under_load(broker: Backends, system: System) -> None:
    with system:
        with system.load():
            system.back_to_normal()
            broker.server.kill()
            try:
                if broker.store_is_the_broker:
                    until(lambda: system.sending.ledger.errors, 10, "requests are rejected")
                    until(lambda: system.reported()[2], 10, "the worker has noticed")
                else:
                    system.more(100)
                    until(lambda: unpublished(system.gateway) > 0, 10, "the gateway reports it")
            finally:
                broker.server.start()
            system.back_to_normal()
        system.settle()
        # It recovered without help, and the logs report a single outage.
        outages, ends, unheard = system.reported()
        assert outages == ends <= 1, system.gateway.log
        assert outages == 1 or broker.store_is_the_broker, (
            "no event was accepted that the log could report"
        )
        assert unheard <= 1, system.worker.log
        unpublished(system.gateway)
    assert system.latest() < SWEEP + MARGIN
    system.judge()


@pytest.mark.slow
@with_every_broker
def test_broker_down_for_the_whole_run(broker: Backends, system: System, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        if broker.store_is_the_broker:
            # The store responds; sessions that listen or notify are cut off.
            parts = urlsplit(broker.store_url)
            proxy = stack.enter_context(Proxy(parts.port or 0, b"LISTEN ", b"pg_notify"))
            address = f"{parts.username}@127.0.0.1:{proxy.port}"
            through = parts._replace(netloc=address).geturl()
            system = System(broker, tmp_path, broker.url(new_topic()), store_url=through)
        else:
            broker.server.kill()
            stack.callback(broker.server.start)
        with system:
            with system.load():
                system.more(100)
            system.settle()
            assert not system.sending.ledger.errors
            assert unpublished(system.gateway) > 0
            assert system.reported() == (1, 0, 1), system.gateway.log + system.worker.log
        assert system.latest() < SWEEP_ALONE + MARGIN
        system.judge()


def test_messages_lost(relayed: tuple[System, Relay]) -> None:
    system, relay = relayed
    with system.load():
        system.back_to_normal()
        relay.fault = relay.lose
        lost = relay.messages
        system.more(100)
        until(lambda: relay.messages > lost, 10, "messages are lost")
    system.settle()
    assert system.latest() < SWEEP + MARGIN
    relay.fault = None
    with system.load():
        system.back_to_normal()
    system.settle()
    assert system.reported() == (0, 0, 0)
    system.judge()


def test_messages_doubled_and_reordered(relayed: tuple[System, Relay]) -> None:
    seed = randomness.new_seed()
    random.seed(seed)
    system, relay = relayed
    with system.load():
        system.back_to_normal()
        relay.fault = relay.double_and_reorder
        doubled = relay.messages
        system.more(150)
        until(lambda: relay.messages > doubled + 10, 10, "messages are doubled")
        assert statistics.median(list(system.latencies().values())[-50:]) < 0.3
        relay.fault = None
        system.back_to_normal()
    system.settle()
    assert system.times_loaded() == {1}
    assert system.reported() == (0, 0, 0)
    system.judge()


def test_messages_delayed(relayed: tuple[System, Relay]) -> None:
    system, relay = relayed
    with system.load():
        system.back_to_normal()
        relay.fault = relay.delay
        delayed = relay.messages
        system.more(100)
        until(lambda: relay.messages > delayed + 1, 10, "messages are delayed")
        assert max(list(system.latencies().values())[-50:]) > 0.3  # so the fault has an effect
        relay.fault = None
        system.back_to_normal()
    system.settle()
    assert system.latest() < SWEEP + MARGIN
    assert system.times_loaded() == {1}
    assert system.reported() == (0, 0, 0)
    system.judge()


@pytest.mark.slow
@pytest.mark.parametrize("broker", BROKERS, indirect=True)
def test_topic_or_queue_deleted(broker: Backends, system: System) -> None:
    with system:
        with system.load():
            for _ in range(2):
                system.back_to_normal()
                broker.server.delete(system.topic)
                system.more(50)
            system.back_to_normal()
        system.settle()
    assert system.latest() < SWEEP + MARGIN
    assert max(system.reported()) <= 2, system.gateway.log + system.worker.log
    system.judge()


@pytest.mark.parametrize("broker", BROKERS, indirect=True)
def test_wrong_credentials_fail_clearly(broker: Backends, tmp_path: Path) -> None:
    url = broker.url(new_topic(), password=WRONG)
    with System(broker, tmp_path, url) as system:
        with system.load():
            system.more(50)
        system.settle()
        assert not system.sending.ledger.errors
        until(lambda: system.reported() == (1, 0, 1), 20, "both have reported it once")
        assert unpublished(system.gateway) > 0
        health = system.gateway.client_get("/_health").text
        for log in (system.gateway.log, system.worker.log):
            assert re.search(r"refused.*fix.*BLACKSMITH_PUBSUB_URL", log), log
            assert log.count("refused") == 1, log
    assert WRONG not in health + system.gateway.log + system.worker.log
    assert system.latest() < SWEEP_ALONE + MARGIN
    system.judge()


@pytest.mark.parametrize("command", ["gateway", "worker"])
def test_wrong_credentials_of_the_store_fail_clearly(
    postgres_broker: PostgresBroker, command: str
) -> None:
    url, store_url = postgres_broker.urls(new_topic(), password=WRONG)
    env = {"BLACKSMITH_PUBSUB_URL": url}
    with BlacksmithProcess([command, f"--app={APP}"], store_url, env) as process:
        assert process.wait() == 1
    assert "password authentication failed" in process.log
    assert "Traceback" not in process.log
    assert WRONG not in process.log


@pytest.mark.slow
@pytest.mark.parametrize("broker", BROKERS, indirect=True)
def test_slow_broker_never_slows_a_request(broker: Backends) -> None:
    sending, topic = Sending(), new_topic()

    def requests(gateway: GatewayProcess) -> float:
        """The 99th percentile of the duration of requests, in seconds."""
        before = len(sending.took)
        sender = Sender(gateway, sending.ledger, sending.numbers(100.0), retry=True)
        until(lambda: len(sending.took) >= before + 120, 60)
        sender.end()
        sender.join()
        assert not sending.ledger.errors
        return sorted(list(sending.took.values())[before:])[-2]

    def gateway(**changed: int) -> GatewayProcess:
        env = {"BLACKSMITH_PUBSUB_URL": broker.url(topic, **changed)}
        return GatewayProcess(broker.store_url, APP, env=env)

    latencies: dict[str, float] = {}
    with gateway() as direct:
        latencies["none"] = requests(direct)
        assert unpublished(direct) == 0
        with frozen(broker.server):
            latencies["frozen"] = requests(direct)
            until(lambda: unpublished(direct), 20, "the broker does not respond")
    with Proxy(urlsplit(broker.url(topic)).port or 0) as proxy:
        proxy.delay = SLOW
        with gateway(port=proxy.port) as slowed:
            latencies["slow"] = requests(slowed)
        proxy.delay = None
        with gateway(port=proxy.port) as stalled:
            latencies["stalled"] = requests(stalled)
            until(lambda: unpublished(stalled), 20, "the broker does not respond")
    print(latencies)
    # A request that waited for the broker would take at least twice that, there and back.
    assert max(latencies.values()) < max(3 * latencies["none"], SLOW), latencies
    with contextlib.closing(open_store(broker.store_url)) as store:
        store.register(blacksmith)
        sending.ledger.check(store)
