"""RabbitMQ: notifications, and the messages of queues."""

from __future__ import annotations

from dataclasses import dataclass, replace

from blacksmith_dagster.pubsub.address import BrokerAddress
from blacksmith_dagster.pubsub.interface import Consumer, CursorOf, Publisher, Subscriber
from blacksmith_dagster.pubsub.rabbitmq.consumer import RabbitMQConsumer
from blacksmith_dagster.pubsub.rabbitmq.notifications import RabbitMQPublisher, RabbitMQSubscriber


@dataclass(frozen=True, slots=True)
class RabbitMQPubSub:
    """Notifications through a durable topic exchange named as the topic; a destination is a routing key.

    Each subscriber has a durable queue of its own, `<subscription>.<destination>.<random>`: it
    outlives a restart of the broker, holds 100 messages at most, and goes a minute after its
    subscriber. The user needs the rights to configure, write and read the exchange and the queues.

    >>> from blacksmith_dagster.pubsub.address import parse_broker_url
    >>> RabbitMQPubSub(parse_broker_url("amqp://user:secret@broker/production?topic=orders")).label
    'amqp://broker:5672/production, topic orders'
    """

    address: BrokerAddress

    @property
    def label(self) -> str:
        return self.address.label

    def publisher(self) -> Publisher:
        return RabbitMQPublisher(self.address)

    def subscriber(self, destination: str) -> Subscriber:
        return RabbitMQSubscriber(self.address, destination)

    def consumer(
        self,
        topic: str,
        subscription: str,
        cursor_of: CursorOf,  # noqa: ARG002 - it numbers no messages
    ) -> Consumer:
        address = replace(self.address, topic=topic, subscription=subscription)
        return RabbitMQConsumer(address)
