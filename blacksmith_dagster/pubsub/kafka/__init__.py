"""Kafka: notifications, and the messages of topics."""

from __future__ import annotations

from dataclasses import dataclass, replace

from blacksmith_dagster.pubsub.address import BrokerAddress
from blacksmith_dagster.pubsub.interface import Consumer, CursorOf, Publisher, Subscriber
from blacksmith_dagster.pubsub.kafka.consumer import KafkaConsumer
from blacksmith_dagster.pubsub.kafka.notifications import KafkaPublisher, KafkaSubscriber


@dataclass(frozen=True, slots=True)
class KafkaPubSub:
    """Notifications through the first partition of a topic; a message's key is a destination.

    The topic is made if it is missing: one partition, messages are kept for an hour. Subscribers read
    on from where the topic ends when they come, each by itself: no group assigns partitions or keeps
    offsets, and so nobody waits for a member that has died. `<subscription>.<destination>` is the
    group that a subscriber gives as its own.

    The user needs the rights to read and write the topic, to create it unless it is there, and to
    describe the groups.

    >>> from blacksmith_dagster.pubsub.address import parse_broker_url
    >>> KafkaPubSub(parse_broker_url("kafka://user:secret@one,two:9093/?topic=orders")).label
    'kafka://one:9092,two:9093, topic orders'
    """

    address: BrokerAddress

    @property
    def label(self) -> str:
        return self.address.label

    def publisher(self) -> Publisher:
        return KafkaPublisher(self.address)

    def subscriber(self, destination: str) -> Subscriber:
        return KafkaSubscriber(self.address, destination)

    def consumer(self, topic: str, subscription: str, cursor_of: CursorOf) -> Consumer:
        address = replace(self.address, topic=topic, subscription=subscription)
        return KafkaConsumer(address, cursor_of)
