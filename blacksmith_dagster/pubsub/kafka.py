"""Wake-ups through Kafka."""

from __future__ import annotations

import re
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from blacksmith_dagster.errors import Unavailable
from blacksmith_dagster.pubsub.address import Address
from blacksmith_dagster.pubsub.interface import Publisher, Subscriber
from blacksmith_dagster.pubsub.messages import decode, encode

_CONNECT_SECONDS = 3.0
_ANSWER_SECONDS = 3.0
_REQUEST_SECONDS = 2.0  # less: a request on a connection that has died is sent once anew in time
_LOOK_SECONDS = 0.2  # between two looks whether the subscriber was closed or the broker is lost
_BATCH = 1000
# The only partition that is used: a wake-up is a few bytes, and who watches one partition never
# misses that another was added.
_PARTITION = 0
_TOPIC = {
    "cleanup.policy": "delete",
    "retention.ms": str(3600 * 1000),
    "segment.ms": str(900 * 1000),  # only whole segments are deleted
}
_SETTINGS: dict[str, Any] = {
    # The library prints each failed attempt; what it knows is raised as well.
    "log_level": 0,
    "reconnect.backoff.ms": 50,
    "reconnect.backoff.max.ms": 500,
    "socket.keepalive.enable": True,
    "socket.timeout.ms": int(1000 * _REQUEST_SECONDS),
    "socket.connection.setup.timeout.ms": int(1000 * _REQUEST_SECONDS),
    "api.version.request.timeout.ms": int(1000 * _REQUEST_SECONDS),
}
# An answer that is due leaves the broker at once. How long it holds back an empty one matters to
# nothing but the work of asking again, and to how soon a broker that hangs is found out.
_CONSUMER: dict[str, Any] = {
    "fetch.min.bytes": 1,
    "fetch.wait.max.ms": 1000,
    "enable.auto.commit": False,
    # A topic made anew is heard from its beginning.
    "auto.offset.reset": "earliest",
}
_PRODUCER: dict[str, Any] = {
    "linger.ms": 0,
    "acks": 1,
    "message.timeout.ms": int(1000 * _ANSWER_SECONDS),
    "topic.metadata.propagation.max.ms": int(1000 * _REQUEST_SECONDS),
}
_AFTER = re.compile(r" \(after \d+ms in state \w+\)$")
_NO_TOPIC = {
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_PARTITION,
    KafkaError._UNKNOWN_TOPIC,
}
_NO_LEADER = {KafkaError.LEADER_NOT_AVAILABLE, KafkaError.NOT_LEADER_FOR_PARTITION}
_DENIED = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
}


@dataclass(frozen=True, slots=True)
class KafkaPubSub:
    """Wake-ups through the first partition of a topic; a message's key is a destination.

    The topic is made if it is missing: one partition, messages are kept for an hour. Subscribers read
    on from where the topic ends when they come, each by itself: no group assigns partitions or keeps
    offsets, and so nobody waits for a member that has died. `<subscription>.<destination>` is the
    group that a subscriber gives as its own.

    The user needs the rights to read and write the topic, to create it unless it is there, and to
    describe the groups.

    >>> from blacksmith_dagster.pubsub.address import read
    >>> KafkaPubSub(read("kafka://user:secret@one,two:9093/?topic=orders")).label
    'kafka://one:9092,two:9093, topic orders'
    """

    address: Address

    @property
    def label(self) -> str:
        return self.address.label

    def publisher(self) -> Publisher:
        return _Publisher(self.address)

    def subscriber(self, destination: str) -> Subscriber:
        return _Subscriber(self.address, destination)


class _Publisher:
    def __init__(self, address: Address) -> None:
        self._address = address
        self._producer: Producer | None = None
        self._trouble = _Trouble(address)

    def publish(self, paths: Collection[str]) -> None:
        messages = encode(paths)
        try:
            if self._producer is not None:
                try:
                    return self._send(self._producer, messages)
                except Unavailable:  # it may have died while nobody used it, or the topic is gone
                    self.close()
            self._send(self._connect(), messages)
        except Unavailable:
            self.close()
            raise

    def close(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.purge(blocking=False)  # else its end waits for the broker

    def _connect(self) -> Producer:
        _make_topic(self._address)
        self._trouble = _Trouble(self._address)
        self._producer = Producer(
            _settings(self._address) | _PRODUCER | {"error_cb": self._trouble.note}
        )
        return self._producer

    def _send(self, producer: Producer, messages: Mapping[str, bytes]) -> None:
        producer.poll(0)
        self._trouble.forget()  # what was wrong while nobody published is over, or comes again
        left = {destination.encode() for destination in messages}

        def confirm(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                self._trouble.note(error)
                self._trouble.is_lost = True
            left.discard(message.key())

        try:
            for destination, body in messages.items():
                producer.produce(
                    self._address.topic, body, destination, _PARTITION, on_delivery=confirm
                )
            deadline = monotonic() + _ANSWER_SECONDS
            while left and not self._trouble.is_lost and (wait := deadline - monotonic()) > 0:
                producer.poll(min(wait, _LOOK_SECONDS))
        except KafkaException as error:
            raise self._trouble.told(error.args[0]) from None
        finally:
            del producer  # as below: who keeps the error keeps no client
        if left or self._trouble.is_lost:
            raise self._trouble.told()


class _Subscriber:
    def __init__(self, address: Address, destination: str) -> None:
        self._address = address
        self._destination = destination
        self._key = destination.encode()
        self._consumer: Consumer | None = None
        self._trouble = _Trouble(address)
        self._closed = False
        self._in_use = threading.Lock()  # by `wait`, or by `close` while nobody waits

    def wait(self, timeout: float) -> Collection[str]:
        try:
            with self._in_use:
                return self._wait(monotonic() + timeout)
        finally:
            self._disconnect_when_closed()

    def close(self) -> None:
        self._closed = True
        self._disconnect_when_closed()

    def _disconnect_when_closed(self) -> None:
        # Who cannot have the lock leaves it to the other, who looks here after letting go of it.
        if self._closed and self._in_use.acquire(blocking=False):
            try:
                self._disconnect()
            finally:
                self._in_use.release()

    def _disconnect(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            consumer.close()

    def _wait(self, deadline: float) -> Collection[str]:
        try:
            if self._consumer is not None:
                heard = self._listen(self._consumer, deadline)
                if heard is not None:
                    return heard
                self._disconnect()
            if not self._closed:
                self._connect()
        except KafkaException as error:
            self._disconnect()
            raise self._trouble.told(error.args[0]) from None
        except BaseException:
            self._disconnect()
            raise
        return ()

    def _listen(self, consumer: Consumer, deadline: float) -> Collection[str] | None:
        """What is heard until the deadline; `None` when the broker or the topic is lost."""
        heard: set[str] = set()
        while not (heard or self._closed):
            left = deadline - monotonic()
            first = consumer.poll(min(max(left, 0.0), _LOOK_SECONDS))
            messages = [] if first is None else [first, *consumer.consume(_BATCH, 0)]
            if self._trouble.is_lost:
                return None
            for message in messages:
                if (error := message.error()) is not None:
                    if error.code() in _NO_TOPIC:
                        return None
                    raise self._trouble.told(error)
                if message.key() == self._key:
                    heard.update(decode(self._destination, message.value() or b""))
            if left <= 0:
                break
        return heard

    def _connect(self) -> None:
        denied = _make_topic(self._address)
        self._trouble = _Trouble(self._address)
        self._consumer = consumer = Consumer(
            _settings(self._address)
            | _CONSUMER
            | {
                "group.id": f"{self._address.subscription}.{self._destination}",
                "error_cb": self._trouble.note,
            }
        )
        # "The end" would be looked for later, when something may have been sent already.
        consumer.assign(
            [TopicPartition(self._address.topic, _PARTITION, self._end(consumer, denied))]
        )

    def _end(self, consumer: Consumer, denied: KafkaError | None) -> int:
        partition = TopicPartition(self._address.topic, _PARTITION)
        deadline = monotonic() + _ANSWER_SECONDS
        while True:
            left = max(deadline - monotonic(), 0.1)
            try:
                _, end = consumer.get_watermark_offsets(partition, timeout=left, cached=False)
                return int(end)
            except KafkaException as error:
                failed: KafkaError = error.args[0]
                if denied and failed.code() in _NO_TOPIC:
                    raise self._trouble.told(denied) from None
                # What was just made, all brokers know in a moment.
                if failed.code() not in _NO_TOPIC | _NO_LEADER or monotonic() > deadline:
                    raise self._trouble.told(failed) from None
            consumer.poll(0.02)


class _Trouble:
    """What a client says of its connections, and the error made of it."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self.is_lost = False
        self._why: KafkaError | None = None

    def note(self, error: KafkaError) -> None:
        """Called by the client, while it is polled, with each thing that goes wrong."""
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self.is_lost = True
            return
        if error.code() == KafkaError._AUTHENTICATION:
            self.is_lost = True
        # That a message was not delivered in time says less than what was wrong before.
        if self._why is None or error.code() != KafkaError._MSG_TIMED_OUT:
            self._why = error

    def told(self, error: KafkaError | None = None) -> Unavailable:
        """The error to raise: for this reason, if it is a server's answer, or for what was noted."""
        is_answer = error is not None and error.code() > 0  # the client's own codes are below
        why = error if is_answer else self._why or error
        label = self._address.label
        if why is None:
            return Unavailable(
                f"{label} does not answer; it may want tls=true or a user in BLACKSMITH_PUBSUB_URL"
            )
        if why.code() == KafkaError._AUTHENTICATION:
            return Unavailable(
                f"{label} refused the credentials; mend the user, the password or sasl= in "
                "BLACKSMITH_PUBSUB_URL"
            )
        if why.code() in _DENIED:
            return Unavailable(
                f"{label} refused the user a right ({why.name()}); it must read and write the "
                f"topic, and describe the groups {self._address.subscription}.*"
            )
        said = _AFTER.sub("", why.str())
        return Unavailable(f"{label} {'answered' if why.code() > 0 else 'does not answer'}: {said}")


def _make_topic(address: Address) -> KafkaError | None:
    """Make the topic if it is missing; returns why the user may not, who then needs it to be there.

    Raises `Unavailable`, at once when no server can be reached.
    """
    trouble = _Trouble(address)
    try:
        admin = AdminClient(_settings(address) | {"error_cb": trouble.note})
    except KafkaException as error:  # the only setting that is looked at so early
        raise Unavailable(
            f"{address.label}: the file of ca= is unusable: {error.args[0].str()}"
        ) from None
    copies = -1  # as many as is usual there
    topic = NewTopic(address.topic, 1, copies, config=dict(_TOPIC))
    try:
        made = admin.create_topics([topic], request_timeout=_CONNECT_SECONDS)[address.topic]
        deadline = monotonic() + _CONNECT_SECONDS
        while not (made.done() or trouble.is_lost or monotonic() > deadline):
            admin.poll(0.01)
        is_answered = made.done()
    finally:
        del admin  # in the traceback of an error that is kept it would live on, and keep trying
    if not is_answered:
        raise trouble.told()
    failed = made.exception()
    if not isinstance(failed, KafkaException):
        return None
    why: KafkaError = failed.args[0]
    if why.code() not in {KafkaError.TOPIC_ALREADY_EXISTS, *_DENIED}:
        raise trouble.told(why)
    return why if why.code() in _DENIED else None


def _settings(address: Address) -> dict[str, Any]:
    settings = _SETTINGS | {
        "bootstrap.servers": address.servers,
        "client.id": address.subscription,
    }
    secured = "SSL" if address.tls else "PLAINTEXT"
    settings["security.protocol"] = f"SASL_{secured}" if address.username else secured
    if address.username:
        settings["sasl.mechanism"] = address.sasl
        settings["sasl.username"] = address.username
        settings["sasl.password"] = address.password or ""
    if address.ca:
        settings["ssl.ca.location"] = address.ca
    return settings
