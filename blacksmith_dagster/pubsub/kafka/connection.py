"""How Kafka's clients connect, and how their errors become ours."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from time import monotonic
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from blacksmith_dagster.errors import Unavailable
from blacksmith_dagster.pubsub.address import BrokerAddress
from blacksmith_dagster.pubsub.interface import ConnectionLost

RESPONSE_SECONDS = 3.0
REQUEST_SECONDS = 2.0  # shorter: leaves time to repeat a request whose connection has died
POLL_SECONDS = 0.2  # between two checks whether a reader was closed or the broker is lost
_SETTINGS: dict[str, Any] = {
    # The library prints each failed attempt, and raises the same as errors.
    "log_level": 0,
    "reconnect.backoff.ms": 50,
    "reconnect.backoff.max.ms": 500,
    "socket.keepalive.enable": True,
    "socket.timeout.ms": int(1000 * REQUEST_SECONDS),
    "socket.connection.setup.timeout.ms": int(1000 * REQUEST_SECONDS),
    "api.version.request.timeout.ms": int(1000 * REQUEST_SECONDS),
}
CONSUMER: dict[str, Any] = {
    # The broker sends messages at once. How long it holds back an empty response decides only how
    # often the client asks again, and how soon it notices a broker that hangs.
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
    """Collects the connection errors that a client reports, and turns them into `Unavailable`.

    `rights` are those that its user needs. `settings` make a client report them.
    """

    def __init__(self, address: BrokerAddress, rights: str) -> None:
        self._address = address
        self._rights = rights
        self.label = address.label
        self.clear()

    def settings(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a client, its `own` included."""
        address = self._address
        secured = "SSL" if address.tls else "PLAINTEXT"
        chosen = _SETTINGS | {
            "bootstrap.servers": address.servers,
            "client.id": address.subscription,
            "security.protocol": f"SASL_{secured}" if address.username else secured,
            "error_cb": self.note,
        }
        if address.username:
            chosen["sasl.mechanism"] = address.sasl
            chosen["sasl.username"] = address.username
            chosen["sasl.password"] = address.password or ""
        if address.ca:
            chosen["ssl.ca.location"] = address.ca
        return {**chosen, **own}

    def clear(self) -> None:
        """Forget what was reported."""
        self.is_lost = False
        self._reported: KafkaError | None = None

    def note(self, error: KafkaError) -> None:
        """Called by the client, while it is polled, with each error."""
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self.is_lost = True
            return
        if error.code() == KafkaError._AUTHENTICATION:
            self.is_lost = True
        # Keep an earlier error: it says more than that a message was not delivered in time.
        if self._reported is None or error.code() != KafkaError._MSG_TIMED_OUT:
            self._reported = error

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        """Raise `Unavailable` for what Kafka's client raises."""
        try:
            yield
        except KafkaException as error:
            raise self.unavailable(error.args[0]) from None

    def lost(self, error: KafkaError | None = None) -> ConnectionLost:
        """The same error as `unavailable`, where a new connection may help."""
        return ConnectionLost(str(self.unavailable(error)))

    def unavailable(self, error: KafkaError | None = None) -> Unavailable:
        """The error to raise: for `error`, if a server responded so, else for what was reported."""
        is_response = error is not None and error.code() > 0  # the client's own codes are negative
        cause = error if is_response else self._reported or error
        label, variable = self.label, self._address.variable
        if cause is None:
            return Unavailable(
                f"{label} does not respond; it may need tls=true or a user in {variable}"
            )
        if cause.code() == KafkaError._AUTHENTICATION:
            return Unavailable(
                f"{label} refused the credentials; fix the user, the password or sasl= in {variable}"
            )
        if cause.code() in DENIED:
            return Unavailable(
                f"{label} refused the user a right ({cause.name()}); it must {self._rights}"
            )
        text = _AFTER.sub("", cause.str())
        return Unavailable(
            f"{label} {'responded' if cause.code() > 0 else 'does not respond'}: {text}"
        )


def admin_client(errors: ClientErrors) -> AdminClient:
    """A client for requests about topics. Raises `Unavailable` for an unusable certificate."""
    try:
        return AdminClient(errors.settings({}))
    except KafkaException as error:  # the client checks no other setting before it connects
        raise Unavailable(
            f"{errors.label}: the file of ca= is unusable: {error.args[0].str()}"
        ) from None


def wait_for(admin: AdminClient, requests: Sequence[Future[Any]], errors: ClientErrors) -> None:
    """Wait until a server has responded to all requests.

    Raises `Unavailable`, at once when no server can be reached.
    """
    deadline = monotonic() + RESPONSE_SECONDS
    while not all(request.done() for request in requests):
        if errors.is_lost or monotonic() > deadline:
            raise errors.unavailable()
        admin.poll(0.01)
