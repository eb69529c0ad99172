"""Services and stores for tests, and what the session says of those it could not have."""

import contextlib
import os
import shutil
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TypeVar

import hypothesis
import pytest

from tests.support import empty_stores, markers, ordering, randomness
from tests.support.services import Unavailable
from tests.support.services.consul import ConsulServer
from tests.support.services.kafka import KafkaServer
from tests.support.services.nats import NATSServer
from tests.support.services.postgres import Postgres, PostgresServer
from tests.support.services.postgres_broker import PostgresBroker
from tests.support.services.rabbitmq import RabbitMQServer

pytest_plugins = ["tests.support.left_running", "tests.support.measuring"]

T = TypeVar("T")
CI = os.environ.get("CI") == "true"

_missing: dict[str, set[str]] = {}  # a service that cannot be had, and why -> the tests without it


# Time tells nothing on a busy machine. In CI hypothesis has a profile of its own, which agrees.
hypothesis.settings.register_profile("local", deadline=None)
if not CI:
    hypothesis.settings.load_profile("local")
if randomness.ROUNDS:
    hypothesis.settings.register_profile("soak", deadline=None, max_examples=10 * randomness.ROUNDS)
    hypothesis.settings.load_profile("soak")


def pytest_configure() -> None:
    # SIGTERM ends the session as Ctrl-C does: the fixtures still stop what they have started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before pytest deselects by them
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        markers.mark(item)
    if hasattr(config, "workerinput"):  # one of several processes
        items[:] = ordering.alternated((item.path, item) for item in items)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, T, T]:
    with markers.only({marker.name for marker in item.iter_markers()}):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, T, T]:
    with _skip_without_service(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, T, T]:
    with _skip_without_service(item):
        return (yield)


@contextlib.contextmanager
def _skip_without_service(item: pytest.Item) -> Iterator[None]:
    missing = None
    try:
        yield
    except Unavailable as error:
        missing = str(error)
    if missing:
        _missing.setdefault(missing, set()).add(item.nodeid)
        if CI:
            pytest.fail(missing, pytrace=False)
        pytest.skip(missing)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter,
) -> Generator[None, T, T]:
    result = yield  # pytest's own summary comes first: these are to be the last lines
    for service, tests in sorted(_missing.items()):
        count = f"{len(tests)} test{'s' if len(tests) > 1 else ''}"
        terminalreporter.write_line(f"{'failed' if CI else 'skipped'} {count}: {service}")
    return result


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """The session's PostgreSQL, or the one at BLACKSMITH_TEST_POSTGRES_URL."""
    if url := os.environ.get("BLACKSMITH_TEST_POSTGRES_URL"):
        yield Postgres(url)
        return
    with contextlib.closing(PostgresServer(durable=False)) as server:
        server.start()
        yield server


@pytest.fixture
def postgres_url(postgres: Postgres) -> Iterator[str]:
    """A fresh, empty database of the test's own."""
    url = postgres.create_database()
    yield url
    postgres.drop_database(url)


@pytest.fixture
def durable_postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL of the test's own, with fsync, which it may stop, kill and restart."""
    with contextlib.closing(PostgresServer(durable=True)) as server:
        server.start()
        yield server


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[RabbitMQServer]:
    """The session's RabbitMQ; a test that stops it starts it again."""
    with contextlib.closing(RabbitMQServer()) as server:
        server.start()
        yield server


@pytest.fixture(scope="session")
def nats() -> Iterator[NATSServer]:
    """The session's NATS; a test that stops it starts it again."""
    with contextlib.closing(NATSServer()) as server:
        server.start()
        yield server


@pytest.fixture(scope="session")
def kafka() -> Iterator[KafkaServer]:
    """The session's Kafka; a test that stops it starts it again."""
    with contextlib.closing(KafkaServer()) as server:
        server.start()
        yield server


@pytest.fixture(scope="session")
def postgres_broker() -> Iterator[PostgresBroker]:
    """A PostgreSQL for notifications only; a test that stops it starts it again."""
    with contextlib.closing(PostgresBroker()) as server:
        server.start()
        yield server


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of an empty store."""
    return empty_stores.make_sqlite_template(tmp_path_factory.mktemp("template"))


@pytest.fixture(scope="session")
def postgres_template(postgres: Postgres) -> Iterator[str]:
    """The database of an empty store."""
    with empty_stores.postgres_template(postgres) as url:
        yield url


@pytest.fixture
def postgres_store_url(postgres: Postgres, postgres_template: str) -> Iterator[str]:
    """An empty store in a database of the test's own."""
    url = postgres.create_database(postgres_template)
    yield url
    postgres.drop_database(url)


@pytest.fixture(params=["sqlite", "postgres"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty store: the test runs on SQLite and on PostgreSQL.

    It is "memory", which is not a URL, for the tests that the contract runs on a `MemoryStore` too.
    """
    if request.param == "postgres":
        url: str = request.getfixturevalue("postgres_store_url")
        return url
    if request.param == "memory":
        return "memory"
    return empty_stores.copy_sqlite(request.getfixturevalue("sqlite_template"), tmp_path)


@pytest.fixture(params=["sqlite", "postgres"])
def new_store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a store that has no tables yet: an empty database, or a file that is not there."""
    if request.param == "postgres":
        url: str = request.getfixturevalue("postgres_url")
        return url
    return f"sqlite:///{tmp_path}/store.db"


@pytest.fixture(params=["store", "consul"])
def locks_url(request: pytest.FixtureRequest) -> str | None:
    """The URL of the supervisor that a test of locks runs on; `None` for the store's own."""
    if request.param == "store":
        return None
    return f"{request.getfixturevalue('consul_url')}?ttl=2&lock_delay=0"


@pytest.fixture(scope="session")
def consul() -> Iterator[ConsulServer]:
    """The session's Consul, which is never stopped."""
    with contextlib.closing(ConsulServer()) as server:
        server.start()
        yield server


@pytest.fixture
def consul_url(consul: ConsulServer) -> Iterator[str]:
    """Consul with no lock held and no service registered."""
    yield consul.url
    consul.clear()


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a Chromium for browser tests."""
    path = os.environ.get("BLACKSMITH_TEST_CHROMIUM") or shutil.which("chromium")
    if path is None:
        raise Unavailable("Chromium", "not found; `apt-get install chromium` brings it")
    return path
