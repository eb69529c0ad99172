"""Where a broker is: its URL, parsed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from blacksmith_dagster.errors import SettingsError

PORTS: Mapping[str, int] = {"kafka": 9092, "nats": 4222, "amqp": 5672, "amqps": 5671}
"""The brokers' schemes, with their default ports."""

VARIABLE = "BLACKSMITH_PUBSUB_URL"
"""The environment variable that holds the URL, unless a subscription names another."""

_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")
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
    - `variable`: the environment variable that holds the URL, which errors tell to fix.
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
    try:
        return _read(url, variable)
    except _InvalidURL as error:
        otherwise = ", or unset it to load by the schedules" if variable == VARIABLE else ""
        raise SettingsError(
            f"{variable}: {error}. Write kafka://host:9092, nats://host:4222, amqp://host:5672 or "
            f"postgres{otherwise}"
        ) from None


def _read(url: str, variable: str) -> BrokerAddress:
    parts = urlsplit(url)
    is_postgres = (parts.scheme, parts.netloc, parts.path) == ("", "", "postgres")
    scheme = "postgres" if is_postgres else parts.scheme
    if scheme not in PORTS and not is_postgres:
        raise _InvalidURL(f"unsupported scheme {scheme or '?'}://")
    login, _, servers = parts.netloc.rpartition("@")
    username, _, password = login.partition(":")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    allowed = _OPTIONS[scheme]
    if unknown := sorted(options.keys() - allowed):
        raise _InvalidURL(
            f"{scheme} has no option {', '.join(unknown)}; it has {', '.join(sorted(allowed))}"
        )
    for name in ("topic", "subscription"):
        if not _NAME.fullmatch(options.get(name, "blacksmith")):
            raise _InvalidURL(f"{name}= is up to 100 letters, digits, '_' and '-'")
    tls = options.get("tls", "false")
    if tls not in ("true", "false"):
        raise _InvalidURL("tls= is true or false")
    ca = options.get("ca")
    if ca is not None and not Path(ca).is_file():
        raise _InvalidURL(f"ca={ca}: there is no such file")
    sasl = options.get("sasl", "PLAIN")
    if sasl not in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"):
        raise _InvalidURL("sasl= is PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512")
    return BrokerAddress(
        scheme,
        [] if is_postgres else [_host(server, scheme) for server in servers.split(",")],
        "" if is_postgres else parts.path.rstrip("/"),
        unquote(username) or None,
        unquote(password) or None,
        options.get("topic", "blacksmith"),
        options.get("subscription", "blacksmith"),
        tls == "true" or scheme == "amqps",
        ca,
        sasl,
        variable,
    )


def _host(server: str, scheme: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{server}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host:
        raise _InvalidURL(
            f"a host or a port is missing or wrong; write {scheme}://host:{PORTS[scheme]}"
        )
    return host, port or PORTS[scheme]


class _InvalidURL(ValueError):
    """What is wrong with a URL."""
