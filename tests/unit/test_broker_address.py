"""A broker's URL says where it is and what it is called there; a wrong one says how to fix it."""

from pathlib import Path

import pytest

from blacksmith_dagster.errors import SettingsError
from blacksmith_dagster.pubsub import open_pubsub
from blacksmith_dagster.pubsub.address import parse_broker_url

STORE = "postgresql://user:hidden@127.0.0.1/events"


@pytest.mark.parametrize(
    ("url", "servers"),
    [
        ("kafka://one", "one:9092"),
        ("kafka://one:1,two,[::1]:3", "one:1,two:9092,[::1]:3"),
        ("nats://broker/", "broker:4222"),
        ("amqp://broker", "broker:5672"),
        ("amqps://broker", "broker:5671"),
        ("postgres", ""),
    ],
)
def test_servers_have_their_usual_ports(url: str, servers: str) -> None:
    assert parse_broker_url(url).servers == servers


def test_names_are_blacksmith_unless_given() -> None:
    given = parse_broker_url("nats://broker?topic=orders&subscription=night")
    assert (given.topic, given.subscription) == ("orders", "night")
    default = parse_broker_url("nats://broker")
    assert (default.topic, default.subscription) == ("blacksmith", "blacksmith")


def test_credentials_are_read_and_shown_nowhere() -> None:
    address = parse_broker_url("amqp://night%40shift:se%2Fcret@broker/vhost")
    assert (address.username, address.password) == ("night@shift", "se/cret")
    assert "se/cret" not in repr(address)
    assert address.label == "amqp://broker:5672/vhost, topic blacksmith"


def test_encryption_is_asked_for(tmp_path: Path) -> None:
    authority = tmp_path / "ca.pem"
    authority.touch()
    assert not parse_broker_url("kafka://broker").tls
    assert parse_broker_url(f"kafka://broker?tls=true&ca={authority}").ca == str(authority)
    assert parse_broker_url("amqps://broker").tls


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("redis://user:hidden@broker", "unsupported scheme redis://"),
        ("broker:9092", "unsupported scheme broker://"),
        ("nats://user:hidden@", "a host is missing"),
        ("nats://user:hidden@broker:port", "the port is not a number"),
        ("kafka://user:hidden@one,,two", "a host is missing"),
        ("nats://broker?sasl=PLAIN", "nats has no option sasl"),
        ("amqp://broker?tls=true", "amqp has no option tls; it has ca, subscription, topic"),
        ("nats://broker?topic=a.b", "topic= is up to 100 letters"),
        ("kafka://broker?tls=yes", "tls= is true or false"),
        ("kafka://broker?sasl=GSSAPI", "sasl= is PLAIN"),
        ("kafka://broker?ca=/no/such.pem", "ca=/no/such.pem: there is no such file"),
        ("postgres://user:hidden@db/events", "it has no address"),
        ("postgres?subscription=x", "postgres has no option subscription"),
    ],
)
def test_a_wrong_url_is_refused_with_the_fix(url: str, problem: str) -> None:
    with pytest.raises(SettingsError, match="BLACKSMITH_PUBSUB_URL") as refused:
        parse_broker_url(url)
    assert problem in str(refused.value)
    assert "nats://host:4222" in str(refused.value)
    assert "hidden" not in str(refused.value)


def test_the_variable_of_a_subscription_is_named() -> None:
    for url in ("nats://user:hidden@", "postgres"):
        with pytest.raises(SettingsError, match="ORDERS_URL") as refused:
            open_pubsub(url, "sqlite:///store.db", "ORDERS_URL")
        assert "BLACKSMITH_PUBSUB_URL" not in str(refused.value)
        assert "schedules" not in str(refused.value)


@pytest.mark.parametrize("url", [None, ""])
def test_without_a_url_there_is_no_broker(url: str | None) -> None:
    assert open_pubsub(url, STORE) is None


def test_postgres_is_the_store() -> None:
    pubsub = open_pubsub("postgres", STORE)
    assert pubsub is not None
    assert "hidden" not in pubsub.label
    with pytest.raises(SettingsError, match="the store is not PostgreSQL"):
        open_pubsub("postgres", "sqlite:///store.db")


@pytest.mark.parametrize(
    ("url", "extra"),
    [("kafka://broker", "kafka"), ("nats://broker", "nats"), ("amqps://broker", "rabbitmq")],
)
def test_a_missing_client_names_its_extra(
    url: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blacksmith_dagster.pubsub.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=rf"blacksmith-dagster\[{extra}\]"):
        open_pubsub(url, STORE)
