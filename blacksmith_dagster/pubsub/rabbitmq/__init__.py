"""RabbitMQ: notifications, and the messages of queues.

Notifications go through the exchange `amq.direct`, which every virtual host has, with the routing key
`<topic>.<destination>`. Each subscriber has a queue of its own, `<subscription>.<destination>.<random>`,
which holds 100 messages at most and which the broker deletes when the subscriber's connection ends.

The user needs the rights to configure, write and read these queues, and to write and read `amq.direct`.
"""

from blacksmith_dagster.pubsub.interface import Adapter
from blacksmith_dagster.pubsub.rabbitmq.consumer import RabbitMQConsumer
from blacksmith_dagster.pubsub.rabbitmq.notifications import RabbitMQPublisher, RabbitMQSubscriber

ADAPTER = Adapter(RabbitMQPublisher, RabbitMQSubscriber, RabbitMQConsumer)
