"""Notifications by PostgreSQL. What only it does: its URLs, its channels, its keepalives."""

import contextlib
import socket

import pytest

from blacksmith_dagster.errors import SettingsError
from blacksmith_dagster.pubsub import open_pubsub
from tests.contract.notifications import NotificationsContract
from tests.support.notifying import FLIGHTS, opening
from tests.support.services.postgres_broker import PostgresBroker


@pytest.fixture
def broker(postgres_broker: PostgresBroker) -> PostgresBroker:
    return postgres_broker


class TestPostgresNotifications(NotificationsContract):
    """What every broker does."""


@pytest.mark.parametrize(
    "url", ["postgresql+psycopg://{}", "postgres://{}?application_name=woken&connect_timeout=99"]
)
def test_every_url_of_a_store_serves(postgres_url: str, url: str) -> None:
    pubsub = opening(("postgres", url.format(postgres_url.removeprefix("postgresql://"))))
    with (
        contextlib.closing(pubsub.publisher()) as publisher,
        contextlib.closing(pubsub.subscriber("warehouse")) as subscriber,
    ):
        assert not subscriber.wait(10)
        publisher.publish([FLIGHTS])
        assert set(subscriber.wait(10)) == {FLIGHTS}


def test_a_store_that_is_not_postgresql_is_refused() -> None:
    with pytest.raises(SettingsError, match="the store is not PostgreSQL"):
        open_pubsub("postgres", "sqlite:///store.db")


def test_a_topic_is_no_longer_than_a_channel() -> None:
    open_pubsub("postgres?topic=" + "t" * 63, "postgresql://db/blacksmith")
    with pytest.raises(SettingsError, match="63 characters; shorten it"):
        open_pubsub("postgres?topic=" + "t" * 64, "postgresql://db/blacksmith")


def test_the_password_is_not_shown() -> None:
    pubsub = open_pubsub("postgres?topic=orders", "postgresql://me:open-sesame@db/blacksmith")
    assert pubsub is not None
    assert "sesame" not in f"{pubsub!r} {pubsub.label}"
    for url in (
        "me:open-sesame@db",
        "postgresql://me:open@sesame@db",
        "postgresql://me:o@pen:sesame@db",
    ):
        with pytest.raises(SettingsError) as refused:
            open_pubsub("postgres?topic=orders", url)
        assert "sesame" not in str(refused.value)


def test_a_peer_that_vanished_is_noticed(postgres_url: str) -> None:
    pubsub = open_pubsub("postgres?topic=orders", postgres_url)
    assert pubsub is not None
    with contextlib.closing(pubsub.subscriber("warehouse")) as subscriber:
        subscriber.wait(10)
        assert subscriber._connection is not None
        connected = socket.socket(fileno=subscriber._connection.fileno())
        try:
            seconds = [
                connected.getsockopt(socket.IPPROTO_TCP, option)
                for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            ]
            assert connected.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert seconds[0] + seconds[1] * seconds[2] <= 20
            assert connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 5000
        finally:
            connected.detach()


def test_a_database_has_no_messages() -> None:
    pubsub = open_pubsub("postgres", "postgresql://me:open-sesame@db/blacksmith")
    assert pubsub is not None
    with pytest.raises(SettingsError, match=r"Kafka, NATS or RabbitMQ.*PostgresSource") as raised:
        pubsub.consumer("orders", "night", dict[str, str]().get)
    assert "open-sesame" not in str(raised.value)
