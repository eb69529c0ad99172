"""Kafka: notifications, and the messages of topics.

Notifications go through the first partition of a topic; a message's key is its destination. The topic
is created if it is missing, with one partition; messages are kept for an hour. Each subscriber reads
from the end that the topic has when it connects: no group assigns partitions or keeps offsets, so none
waits for a member that has died. A subscriber gives `<subscription>.<destination>` as its group.

The user needs the rights to read and write the topic, to create it unless it exists, and to describe
the groups.
"""

from blacksmith_dagster.pubsub.interface import Adapter
from blacksmith_dagster.pubsub.kafka.consumer import KafkaConsumer
from blacksmith_dagster.pubsub.kafka.notifications import KafkaPublisher, KafkaSubscriber

ADAPTER = Adapter(KafkaPublisher, KafkaSubscriber, KafkaConsumer)
