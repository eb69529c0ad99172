"""Brokers: notifications, which wake realtime loaders, and messages that become events."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec

from blacksmith_dagster.errors import SettingsError
from blacksmith_dagster.pubsub.address import VARIABLE, parse_broker_url
from blacksmith_dagster.pubsub.interface import Consumer, Publisher, PubSub, Received, Subscriber
from blacksmith_dagster.store import read_url

__all__ = ["Consumer", "PubSub", "Publisher", "Received", "Subscriber", "open_pubsub"]

# By scheme: the module of the adapter, which is also the name of its extra, and the client it imports.
_ADAPTERS = {
    "kafka": ("kafka", "confluent_kafka"),
    "nats": ("nats", "nats"),
    "amqp": ("rabbitmq", "pika"),
    "amqps": ("rabbitmq", "pika"),
    "postgresql": ("postgres", "psycopg"),
}


def open_pubsub(url: str | None, store_url: str, variable: str = VARIABLE) -> PubSub | None:
    """The broker at `url`, or `None` if it is `None` or empty: then the schedules load.

    `kafka://host:9092,...`, `nats://host:4222`, `amqp://host:5672`, or `postgres`, which is the
    store's own database at `store_url`. Connects to nothing yet. `variable` is the
    environment variable that holds the URL, named in errors.

    Raises `SettingsError` for another URL, and `ImportError` when the broker's client is not
    installed.

    >>> open_pubsub("nats://user:secret@broker?topic=orders", "sqlite:///store.db").label
    'nats://broker:4222, topic orders'
    """
    if not url:
        return None
    address = parse_broker_url(url, variable)
    if address.scheme == "postgres":
        if not store_url.startswith(("postgres:", "postgresql")):
            raise SettingsError(
                f"{variable} is postgres, but the store is not PostgreSQL: give the store a "
                "postgresql:// URL, or choose another broker"
            )
        url_of_store = read_url(store_url)
        address = replace(
            address,
            scheme="postgresql",
            hosts=[(url_of_store.host or "", url_of_store.port or 5432)],
            path=f"/{url_of_store.database or ''}",
            store_url=store_url,
        )
    module, client = _ADAPTERS[address.scheme]
    if find_spec(client) is None:
        raise ImportError(
            f"{address.scheme}:// needs its client; run `pip install 'blacksmith-dagster[{module}]'`"
        )
    return PubSub(address, import_module(f"{__name__}.{module}").ADAPTER)
