"""NATS with JetStream: notifications, and the messages of streams."""

from __future__ import annotations

from dataclasses import dataclass, replace

from blacksmith_dagster.pubsub.address import BrokerAddress
from blacksmith_dagster.pubsub.interface import Consumer, CursorOf, Publisher, Subscriber
from blacksmith_dagster.pubsub.nats.consumer import NATSConsumer
from blacksmith_dagster.pubsub.nats.notifications import NATSPublisher, NATSSubscriber


@dataclass(frozen=True, slots=True)
class NATSPubSub:
    """Notifications through a JetStream stream named as the topic, with a subject per destination.

    The stream is made when it is missing: `<topic>.*`, in memory, as a message serves those who
    listen when it is sent and nobody after a restart; 100 of a destination at most, for a minute. One
    that is there is used as it is. With `tls`, a server that offers none is told no credentials.

    >>> from blacksmith_dagster.pubsub.address import parse_broker_url
    >>> NATSPubSub(parse_broker_url("nats://user:secret@broker?topic=orders")).label
    'nats://broker:4222, topic orders'
    """

    address: BrokerAddress

    @property
    def label(self) -> str:
        return self.address.label

    def publisher(self) -> Publisher:
        return NATSPublisher(self.address)

    def subscriber(self, destination: str) -> Subscriber:
        return NATSSubscriber(self.address, destination)

    def consumer(self, topic: str, subscription: str, cursor_of: CursorOf) -> Consumer:
        address = replace(self.address, topic=topic, subscription=subscription)
        return NATSConsumer(address, cursor_of)
