"""Notifications by Kafka. What only it does: its topic, partitions, servers, rights, SCRAM, TLS."""

import contextlib
from pathlib import Path

import pytest
from confluent_kafka.admin import (
    AclOperation,
    ConfigResource,
    NewPartitions,
    NewTopic,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from blacksmith_dagster.errors import Unavailable
from blacksmith_dagster.pubsub import Publisher, PubSub, Subscriber
from tests.contract.notifications import NotificationsContract
from tests.support.notifying import (
    DELAYS,
    FLIGHTS,
    LATE,
    SOON,
    Subscribe,
    assert_recovers,
    heard,
    opening,
    works,
)
from tests.support.services import free_port
from tests.support.services.kafka import GUEST, GUESTS_PASSWORD, PASSWORD, USER, KafkaServer
from tests.support.waiting import until


@pytest.fixture
def broker(kafka: KafkaServer) -> KafkaServer:
    return kafka


def pubsub_at(
    where: str, topic: str, login: str = f"{USER}:{PASSWORD}", options: str = ""
) -> PubSub:
    return opening((f"kafka://{login}@{where}?topic={topic}{options}", "sqlite://"))


def publishes(pubsub: PubSub) -> bool:
    with contextlib.closing(pubsub.publisher()) as publisher:
        try:
            publisher.publish([FLIGHTS])
        except Unavailable:
            return False
        return True


def wait_until_raised(subscriber: Subscriber) -> None:
    for _ in range(3):
        subscriber.wait(SOON)


def refusal(pubsub: PubSub) -> str:
    """The error that a publisher raises; a subscriber raises the same."""
    publisher, subscriber = pubsub.publisher(), pubsub.subscriber("warehouse")
    with contextlib.closing(publisher), contextlib.closing(subscriber):
        with pytest.raises(Unavailable) as raised:
            publisher.publish([FLIGHTS])
        with pytest.raises(Unavailable) as raised_too:
            subscriber.wait(SOON)
    assert str(raised.value) == str(raised_too.value)
    return str(raised.value)


def make_topic(broker: KafkaServer, topic: str, partitions: int) -> None:
    admin = broker.admin()
    admin.create_topics([NewTopic(topic, partitions)])[topic].result(10)


class TestKafkaNotifications(NotificationsContract):
    """What every broker does."""


def test_notifications_are_deleted_after_an_hour(
    broker: KafkaServer, topic: str, publisher: Publisher
) -> None:
    publisher.publish([FLIGHTS])
    admin = broker.admin()
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
    (described,) = admin.describe_configs([resource]).values()
    config = described.result(10)
    assert config["cleanup.policy"].value == "delete"
    assert int(config["retention.ms"].value) + int(config["segment.ms"].value) <= 75 * 60_000


def test_a_topic_with_several_partitions(
    broker: KafkaServer, topic: str, pubsub: PubSub, subscribe: Subscribe
) -> None:
    make_topic(broker, topic, 5)
    warehouse, alerts = subscribe("warehouse"), subscribe("alerts")
    with contextlib.closing(pubsub.publisher()) as publisher:
        publisher.publish([FLIGHTS, LATE])
        assert heard(warehouse, [FLIGHTS]) == {FLIGHTS}
        assert heard(alerts, [LATE]) == {LATE}
        admin = broker.admin()
        admin.create_partitions([NewPartitions(topic, 9)])[topic].result(10)
        publisher.publish([DELAYS])
        assert heard(warehouse, [DELAYS]) == {DELAYS}


def test_a_topic_created_again_by_others_is_heard(
    broker: KafkaServer, topic: str, publisher: Publisher, subscribe: Subscribe
) -> None:
    subscriber = subscribe("warehouse")
    for _ in range(20):  # its end is far behind that of the next one
        publisher.publish([FLIGHTS])
    broker.delete(topic)
    make_topic(broker, topic, 1)
    assert_recovers(publisher, subscriber)


def test_a_server_that_is_down_beside_one_that_serves(broker: KafkaServer, topic: str) -> None:
    for down in (f"127.0.0.1:{free_port()}", "no-such-host.invalid"):
        assert works(pubsub_at(f"{down},127.0.0.1:{broker.port}", topic))


def test_who_may_not_make_topics_uses_the_one_that_is_there(
    broker: KafkaServer, topic: str
) -> None:
    pubsub = pubsub_at(f"127.0.0.1:{broker.port}", topic, f"{GUEST}:{GUESTS_PASSWORD}")
    assert "TOPIC_AUTHORIZATION_FAILED" in refusal(pubsub)
    make_topic(broker, topic, 1)
    assert "TOPIC_AUTHORIZATION_FAILED" in refusal(pubsub)
    broker.allow(ResourceType.TOPIC, topic, AclOperation.READ, AclOperation.WRITE)
    until(lambda: publishes(pubsub))
    with (
        contextlib.closing(pubsub.subscriber("warehouse")) as subscriber,
        pytest.raises(Unavailable, match="GROUP_AUTHORIZATION_FAILED"),
    ):
        wait_until_raised(subscriber)
    broker.allow(ResourceType.GROUP, "blacksmith.", AclOperation.DESCRIBE)
    until(lambda: works(pubsub))


def test_who_keeps_an_error_keeps_no_client(broker: KafkaServer, topic: str) -> None:
    def threads() -> int:
        return len([*Path("/proc/self/task").iterdir()])

    where, before, kept = f"127.0.0.1:{broker.port}", threads(), []
    for login in (f"{USER}:open-sesame", f"{GUEST}:{GUESTS_PASSWORD}"):
        pubsub = pubsub_at(where, topic, login)
        publisher, subscriber = pubsub.publisher(), pubsub.subscriber("warehouse")
        with contextlib.closing(publisher), pytest.raises(Unavailable) as raised:
            publisher.publish([FLIGHTS])
        with contextlib.closing(subscriber), pytest.raises(Unavailable) as raised_too:
            subscriber.wait(SOON)
        kept += [raised, raised_too]
    until(lambda: threads() <= before)


def test_scram(broker: KafkaServer, topic: str) -> None:
    admin = broker.admin()
    how = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_256, 4096)
    wanted = UserScramCredentialUpsertion(USER, how, b"another/one")
    admin.alter_user_scram_credentials([wanted])[USER].result(10)
    where, scram = f"127.0.0.1:{broker.port}", "&sasl=SCRAM-SHA-256"
    assert works(pubsub_at(where, topic, f"{USER}:another%2Fone", scram))
    assert "refused the credentials" in refusal(pubsub_at(where, topic, options=scram))
    assert "sasl=" in refusal(pubsub_at(where, topic, options="&sasl=SCRAM-SHA-512"))


def test_tls(broker: KafkaServer, topic: str) -> None:
    where = f"127.0.0.1:{broker.tls_port}"
    assert works(pubsub_at(where, topic, options=f"&tls=true&ca={broker.certificate}"))
    assert "certificate verify failed" in refusal(pubsub_at(where, topic, options="&tls=true"))
    assert "ca= is unusable" in refusal(pubsub_at(where, topic, options=f"&tls=true&ca={__file__}"))
    assert "tls=true" in refusal(pubsub_at(where, topic))


def test_a_server_that_wants_a_user(broker: KafkaServer, topic: str) -> None:
    anonymous = opening((f"kafka://127.0.0.1:{broker.port}?topic={topic}", "sqlite://"))
    assert "a user in BLACKSMITH_PUBSUB_URL" in refusal(anonymous)
