"""NATS: notifications, and the messages of JetStream streams.

Notifications go through core NATS, on the subject `<topic>.<destination>`: the server stores nothing
and needs no JetStream for them. With `tls`, a server that does not offer it is sent no credentials.

The user needs the rights to publish and subscribe to `<topic>.*`.
"""

from blacksmith_dagster.pubsub.interface import Adapter
from blacksmith_dagster.pubsub.nats.consumer import NATSConsumer
from blacksmith_dagster.pubsub.nats.notifications import NATSPublisher, NATSSubscriber

ADAPTER = Adapter(NATSPublisher, NATSSubscriber, NATSConsumer)
