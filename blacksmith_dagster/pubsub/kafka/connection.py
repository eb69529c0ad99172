"""How a client of Kafka connects, and what it tells of what goes wrong."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import Future
from time import monotonic
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from blacksmith_dagster.errors import Unavailable
from blacksmith_dagster.pubsub.address import BrokerAddress

RESPONSE_SECONDS = 3.0
REQUEST_SECONDS = 2.0  # less: a request on a connection that has died is sent once anew in time
POLL_SECONDS = 0.2  # between two looks whether a reader was closed or the broker is lost
_SETTINGS: dict[str, Any] = {
    # The library prints each failed attempt; what it knows is raised as well.
    "log_level": 0,
    "reconnect.backoff.ms": 50,
    "reconnect.backoff.max.ms": 500,
    "socket.keepalive.enable": True,
    "socket.timeout.ms": int(1000 * REQUEST_SECONDS),
    "socket.connection.setup.timeout.ms": int(1000 * REQUEST_SECONDS),
    "api.version.request.timeout.ms": int(1000 * REQUEST_SECONDS),
}
CONSUMER: dict[str, Any] = {
    # A response that is due leaves the broker at once. How long it holds back an empty one matters to
    # nothing but the work of asking again, and to how soon a broker that hangs is found out.
    "fetch.min.bytes": 1,
    "fetch.wait.max.ms": 1000,
    "enable.auto.commit": False,
}
NO_TOPIC = {
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_PARTITION,
    KafkaError._UNKNOWN_TOPIC,
}
DENIED = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
}
_AFTER = re.compile(r" \(after \d+ms in state \w+\)$")


class ClientErrors:
    """What a client says of its connections, and the error made of it.

    `rights` are those that its user needs.
    """

    def __init__(self, address: BrokerAddress, rights: str) -> None:
        self._address = address
        self._rights = rights
        self.clear()

    def clear(self) -> None:
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

    def unavailable(self, error: KafkaError | None = None) -> Unavailable:
        """The error to raise: for this reason, if it is a server's response, or for what was noted."""
        is_response = error is not None and error.code() > 0  # the client's own codes are below
        why = error if is_response else self._why or error
        label, variable = self._address.label, self._address.variable
        if why is None:
            return Unavailable(
                f"{label} does not respond; it may want tls=true or a user in {variable}"
            )
        if why.code() == KafkaError._AUTHENTICATION:
            return Unavailable(
                f"{label} refused the credentials; fix the user, the password or sasl= in {variable}"
            )
        if why.code() in DENIED:
            return Unavailable(
                f"{label} refused the user a right ({why.name()}); it must {self._rights}"
            )
        said = _AFTER.sub("", why.str())
        return Unavailable(
            f"{label} {'responded' if why.code() > 0 else 'does not respond'}: {said}"
        )


def admin_client(address: BrokerAddress, errors: ClientErrors) -> AdminClient:
    """A client for questions about topics. Raises `Unavailable` for an unusable certificate."""
    try:
        return AdminClient(settings(address) | {"error_cb": errors.note})
    except KafkaException as error:  # the only setting that is looked at so early
        raise Unavailable(
            f"{address.label}: the file of ca= is unusable: {error.args[0].str()}"
        ) from None


def wait_for(admin: AdminClient, asked: Sequence[Future[Any]], errors: ClientErrors) -> None:
    """Wait until a server has responded to all that was asked.

    Raises `Unavailable`, at once when no server can be reached.
    """
    deadline = monotonic() + RESPONSE_SECONDS
    try:
        while not (all(each.done() for each in asked) or errors.is_lost or monotonic() > deadline):
            admin.poll(0.01)
    finally:
        del admin  # in the traceback of an error that is kept it would live on, and keep trying
    if not all(each.done() for each in asked):
        raise errors.unavailable()


def settings(address: BrokerAddress) -> dict[str, Any]:
    """What every client is made with."""
    chosen = _SETTINGS | {
        "bootstrap.servers": address.servers,
        "client.id": address.subscription,
    }
    secured = "SSL" if address.tls else "PLAINTEXT"
    chosen["security.protocol"] = f"SASL_{secured}" if address.username else secured
    if address.username:
        chosen["sasl.mechanism"] = address.sasl
        chosen["sasl.username"] = address.username
        chosen["sasl.password"] = address.password or ""
    if address.ca:
        chosen["ssl.ca.location"] = address.ca
    return chosen
