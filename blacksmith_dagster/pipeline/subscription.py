"""Events that come as messages of a broker's topic."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar, overload

import msgspec

from blacksmith_dagster.errors import DeclarationError
from blacksmith_dagster.pipeline.triggers import Trigger, decode_body
from blacksmith_dagster.redaction import Secret

T = TypeVar("T")

_NO_SPACE = re.compile(r"[!-~]{1,249}")


class Message(msgspec.Struct, frozen=True):
    """A message of a broker, as the function of a `Subscription` event is handed it.

    - `body`: its bytes.
    - `headers`: as the sender named them; values that are not UTF-8 have U+FFFD in place of what is not.
    - `topic`: Kafka's topic, NATS' subject, RabbitMQ's routing key.
    - `key`: Kafka's key, `None` elsewhere.
    - `id`: what its sender calls it (`message_id` of RabbitMQ, `Nats-Msg-Id` of NATS): it makes the
      message once, however often it is sent within 7 days. `None` if the sender gave none.
    - `sent_at`: when it was sent, if the broker knows.
    - `place`: where the broker has it, for people: `orders/3@1545`.
    """

    body: bytes
    headers: Mapping[str, str] = {}
    topic: str = ""
    key: str | None = None
    id: str | None = None
    sent_at: datetime | None = None
    place: str = ""

    @classmethod
    def of(cls, data: Any, headers: Mapping[str, str] | None = None) -> Message:
        """A message whose body is `data` as JSON: to call an extract function in a test.

        >>> Message.of({"order": 7}).json()
        {'order': 7}
        """
        return cls(msgspec.json.encode(data), headers or {})

    @overload
    def json(self) -> Any: ...
    @overload
    def json(self, type: type[T]) -> T: ...
    def json(self, type: Any = Any) -> Any:
        """The body decoded as JSON, into `type` if one is given.

        Raises `Reject` with the place of the fault when it does not fit: the message goes to
        quarantine.
        """
        return decode_body(self.body, type)


@dataclass(frozen=True, slots=True)
class Subscription(Trigger[Message]):
    """Messages of a topic, each ingested once, whatever is restarted.

    - `topic`: Kafka's topic; NATS' subject, which may have wildcards (`orders.>`); RabbitMQ's
      binding key on the exchange `amq.topic`, or `<exchange>/<binding key>`.
    - `subscription`: whom the broker knows as the reader: Kafka's consumer group, NATS' durable
      consumer, RabbitMQ's queue. `blacksmith_<source>_<event>` if `None`.
    - `url`: the broker; the one of `BLACKSMITH_PUBSUB_URL` if `None`.

    A new subscription begins with the oldest message that the broker has (RabbitMQ: with the first
    after the queue was made).

    >>> Subscription("orders")
    Subscription(topic='orders', subscription=None, url=None)

    Raises `DeclarationError`.
    """

    topic: str
    subscription: str | None = None
    url: Secret | None = None

    def __post_init__(self) -> None:
        for name, value in (("topic", self.topic), ("subscription", self.subscription)):
            if value is not None and not (isinstance(value, str) and _NO_SPACE.fullmatch(value)):
                raise DeclarationError(
                    f"Subscription({name}={value!r}): write 1 to 249 printable ASCII characters "
                    "without a space"
                )
        if self.url is not None and not isinstance(self.url, Secret):
            raise DeclarationError(
                "Subscription(url=...) takes a Secret: a broker's URL holds its password; put it "
                "into an environment variable and write url=Secret('ITS_NAME')"
            )
