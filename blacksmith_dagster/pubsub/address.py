"""Where a broker is: its URL, parsed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from blacksmith_dagster.settings import parse_url

PORTS: Mapping[str, int] = {"kafka": 9092, "nats": 4222, "amqp": 5672, "amqps": 5671}
"""The brokers' schemes, with their default ports."""

VARIABLE = "BLACKSMITH_PUBSUB_URL"
"""The environment variable that holds the URL, unless a subscription names another."""

_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")
_LONGEST_CHANNEL = 63  # PostgreSQL's
_OPTIONS: Mapping[str, frozenset[str]] = {
    "kafka": frozenset({"topic", "subscription", "tls", "ca", "sasl"}),
    "nats": frozenset({"topic", "subscription", "tls", "ca"}),
    "amqp": frozenset({"topic", "subscription", "ca"}),
    "amqps": frozenset({"topic", "subscription", "ca"}),
    "postgres": frozenset({"topic"}),
}


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Where a broker is, and which names we use there.

    - `topic`: where notifications are sent, `subscription`: the name of its subscribers.
    - `username`, `password`: `None` if the URL has none; a NATS token is a username without a password.
    - `tls`: whether the connection is encrypted, `ca`: a PEM file of the authority to trust, `None`
      for the system's.
    - `sasl`: Kafka's mechanism, used if there is a username.
    - `variable`: the environment variable that holds the URL, named in errors.
    - `store_url`: the store's URL, if its database is the broker.
    """

    scheme: str
    hosts: Sequence[tuple[str, int]]
    path: str = ""
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    topic: str = "blacksmith"
    subscription: str = "blacksmith"
    tls: bool = False
    ca: str | None = None
    sasl: str = "PLAIN"
    variable: str = VARIABLE
    store_url: str = field(default="", repr=False)

    @property
    def servers(self) -> str:
        """The hosts with their ports, as `host:port,host:port`."""
        return ",".join(
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts
        )

    @property
    def label(self) -> str:
        """The URL without credentials.

        >>> parse_broker_url("nats://user:secret@broker/?topic=orders").label
        'nats://broker:4222, topic orders'
        """
        url = f"{self.scheme}://{self.servers}{self.path}" if self.hosts else self.scheme
        return f"{url}, topic {self.topic}"


def parse_broker_url(url: str, variable: str = VARIABLE) -> BrokerAddress:
    """Parse a broker's URL: `kafka://`, `nats://`, `amqp://`, `amqps://`, or `postgres`.

    Commas separate servers. The options after a `?` are `topic` and `subscription` (default
    `blacksmith`), `tls=true` (RabbitMQ has the scheme amqps for it), `ca` (a PEM file) and, for
    Kafka, `sasl` (PLAIN, SCRAM-SHA-256, SCRAM-SHA-512).

    Raises `SettingsError`, which names the `variable` that holds the URL and shows no credentials.

    >>> parse_broker_url("kafka://one,two:9093?topic=orders").servers
    'one:9092,two:9093'
    """
    hint = "Write kafka://host:9092, nats://host:4222, amqp://host:5672 or postgres" + (
        ", or unset it to load by the schedules" if variable == VARIABLE else ""
    )
    bare = url.partition("?")[0] == "postgres"
    parsed = parse_url(
        url.replace("postgres", "postgres://", 1) if bare else url, variable, hint, _OPTIONS
    )
    scheme, options = parsed.scheme, parsed.options
    if scheme == "postgres" and not bare:
        raise parsed.invalid("postgres is the store's own database: it has no address")
    if not parsed.hosts and not bare:
        raise parsed.invalid("a host is missing")
    for name in ("topic", "subscription"):
        if not _NAME.fullmatch(options.get(name, "blacksmith")):
            raise parsed.invalid(f"{name}= is up to 100 letters, digits, '_' and '-'")
    if bare and len(options.get("topic", "")) > _LONGEST_CHANNEL:
        raise parsed.invalid(
            f"with postgres, topic= has up to {_LONGEST_CHANNEL} characters; shorten it"
        )
    ca = options.get("ca")
    if ca is not None and not Path(ca).is_file():
        raise parsed.invalid(f"ca={ca}: there is no such file")
    tls = parsed.choice("tls", ("true", "false"), "false")
    sasl = parsed.choice("sasl", ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"), "PLAIN")
    return BrokerAddress(
        scheme,
        [(host, port or PORTS[scheme]) for host, port in parsed.hosts],
        parsed.path.rstrip("/"),
        parsed.username,
        parsed.password,
        options.get("topic", "blacksmith"),
        options.get("subscription", "blacksmith"),
        tls == "true" or scheme == "amqps",
        ca,
        sasl,
        variable,
    )
