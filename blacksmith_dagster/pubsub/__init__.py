"""Brokers: notifications, so that realtime events are loaded as soon as they are committed, and the
messages that are events."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

from blacksmith_dagster.errors import SettingsError
from blacksmith_dagster.pubsub.address import VARIABLE, BrokerAddress, parse_broker_url
from blacksmith_dagster.pubsub.interface import Consumer, Publisher, PubSub, Received, Subscriber

__all__ = ["Consumer", "PubSub", "Publisher", "Received", "Subscriber", "open_pubsub"]

# By scheme: the module of the adapter, what it imports, and the extra that brings that.
_ADAPTERS = {
    "kafka": ("kafka", "KafkaPubSub", "confluent_kafka", "kafka"),
    "nats": ("nats", "NATSPubSub", "nats", "nats"),
    "amqp": ("rabbitmq", "RabbitMQPubSub", "pika", "rabbitmq"),
    "amqps": ("rabbitmq", "RabbitMQPubSub", "pika", "rabbitmq"),
}


def open_pubsub(url: str | None, store_url: str, variable: str = VARIABLE) -> PubSub | None:
    """The broker at `url`, or `None` if it is `None` or empty: then the schedules serve.

    `kafka://host:9092,...`, `nats://host:4222`, `amqp://host:5672`, or `postgres`, which is the
    store's own database at `store_url`. Nothing is connected to yet. `variable` is where the URL came
    from, which errors ask to fix.

    Raises `SettingsError` for another URL, and `ImportError` when the broker's client is not
    installed.
    """
    if not url:
        return None
    address = parse_broker_url(url, variable)
    if address.scheme == "postgres":
        if not store_url.startswith(("postgres:", "postgresql")):
            raise SettingsError(
                f"{variable} is postgres, and the store is not PostgreSQL: give the store a "
                "postgresql:// URL, or choose another broker"
            )
        from blacksmith_dagster.pubsub.postgres import PostgresPubSub

        return PostgresPubSub(store_url, address.topic)
    module, adapter, client, extra = _ADAPTERS[address.scheme]
    if find_spec(client) is None:
        raise ImportError(
            f"{address.scheme}:// needs its client; run `pip install 'blacksmith-dagster[{extra}]'`"
        )
    chosen: Callable[[BrokerAddress], PubSub] = getattr(
        import_module(f"{__name__}.{module}"), adapter
    )
    return chosen(address)
