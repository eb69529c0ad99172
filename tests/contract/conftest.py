"""Fixtures of the contract tests: stores on SQLite, on PostgreSQL and in memory; a broker."""

import contextlib
import inspect
import itertools
import os
from collections.abc import Iterator

import pytest

from blacksmith_dagster.pubsub import Publisher, PubSub, Subscriber
from blacksmith_dagster.store import Store, open_store
from blacksmith_dagster.testing import MemoryStore
from tests.support.consuming import Kept
from tests.support.notifying import SOON, Subscribe, opening
from tests.support.pipelines import store as pipeline
from tests.support.services.broker import Broker
from tests.support.services.rabbitmq import RabbitMQServer

# Their assertions fail as clearly as those of test modules.
pytest.register_assert_rewrite("tests.contract.consumers", "tests.contract.notifications")

_topics = itertools.count(1)


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The tests that get a `store` run on a third one, in memory.

    Those that get its URL too open it a second time, which needs a file or a server.
    """
    names = inspect.signature(metafunc.function).parameters
    if "store" in names and "store_url" not in names and not hasattr(metafunc.module, "store"):
        stores = pytest.mark.parametrize(
            "store_url", ["sqlite", "postgres", "memory"], indirect=True
        )
        metafunc.definition.add_marker(stores)


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    """An empty store with the contract's application registered."""
    if store_url == "memory":
        opened: Store = MemoryStore(pipeline.app)
    else:
        opened = open_store(store_url, upgrade=True)
        opened.register(pipeline.app)
    yield opened
    opened.close()


@pytest.fixture
def topic() -> str:
    """A topic for this test only."""
    return f"test-{os.getpid()}-{next(_topics)}"


@pytest.fixture
def opened() -> Iterator[contextlib.ExitStack]:
    """A stack that is closed at the end of the test."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def pubsub(broker: Broker, topic: str) -> PubSub:
    """The module's fixture `broker`, opened as an application does."""
    return opening(broker.urls(topic))


@pytest.fixture
def publisher(pubsub: PubSub, opened: contextlib.ExitStack) -> Publisher:
    """A publisher to the topic."""
    return opened.enter_context(contextlib.closing(pubsub.publisher()))


@pytest.fixture
def subscribe(pubsub: PubSub, opened: contextlib.ExitStack) -> Subscribe:
    """Creates subscribers to the topic, which receive notifications from then on."""

    def subscribe(destination: str) -> Subscriber:
        subscriber = opened.enter_context(contextlib.closing(pubsub.subscriber(destination)))
        assert not subscriber.wait(SOON)
        return subscriber

    return subscribe


@pytest.fixture
def kept() -> Kept:
    """What a store would keep of a consumer's messages."""
    return Kept()


@pytest.fixture
def user(rabbitmq: RabbitMQServer, topic: str) -> Iterator[str]:
    """A user of RabbitMQ whose password is his name, without any rights."""
    rabbitmq.control("add_user", topic, topic)
    yield topic
    rabbitmq.control("delete_user", topic)
