"""Triggers, how source events arrive: HTTP, Cron, Subscription, CDC, and their functions' arguments."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from threading import Event as Flag
from typing import Any, Generic, TypeVar, overload
from urllib.parse import parse_qsl
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from blacksmith_dagster.errors import BadRequest, DeclarationError, Reject, ValidationError
from blacksmith_dagster.pipeline import model
from blacksmith_dagster.pipeline.schedule import checked_interval
from blacksmith_dagster.pipeline.validation import Inheriting, checked_number
from blacksmith_dagster.redaction import Secret

In = TypeVar("In")
T = TypeVar("T")
_PATH = re.compile(r"(/(?!\.{1,2}(/|$))[A-Za-z0-9._~-]+)+")
_METHODS = frozenset({"GET", "POST", "PUT", "PATCH"})
_NO_SPACE = re.compile(r"[!-~]{1,249}")


class Trigger(Generic[In]):
    """The base class of all triggers; `In` is the argument of the extract function."""


class _JSONBody(msgspec.Struct, frozen=True):
    """What a request and a message have in common."""

    body: bytes
    headers: Mapping[str, str] = {}

    @overload
    def json(self) -> Any: ...
    @overload
    def json(self, type: type[T]) -> T: ...
    def json(self, type: Any = Any) -> Any:
        """The body decoded from JSON, into `type` if one is given: a type that msgspec decodes (Structs,
        dataclasses, TypedDicts, ...), or a model of pydantic.

        Raises `BadRequest` (400) if the body is not JSON, and `ValidationError` with the place of the
        fault if it does not fit: a request gets a 422, unless `on_invalid` says otherwise. A message
        goes to quarantine.
        """
        return decode_body(self.body, type)


class Request(_JSONBody, frozen=True):
    """An HTTP request, or one item of it if its body is a JSON array or NDJSON.

    - `body`: the item's bytes, unchanged.
    - `headers`: names in lower case.
    - `query`: the last value of each name.
    - `received_at`: when it was received, if it is retried from quarantine; else `None`, meaning now.
    """

    query: Mapping[str, str] = {}
    method: str = "POST"
    path: str = "/"
    received_at: datetime | None = None

    @classmethod
    def of(cls, data: Any, headers: Mapping[str, str] | None = None) -> Request:
        """A request whose body is `data` as JSON: to call an extract function in a test.

        >>> Request.of({"flight": 1545}).json()
        {'flight': 1545}
        """
        return cls(
            msgspec.json.encode(data),
            {"content-type": "application/json"}
            | {name.lower(): value for name, value in (headers or {}).items()},
        )

    def form(self) -> dict[str, str]:
        """The body of an HTML form (`application/x-www-form-urlencoded`), decoded.

        If a name occurs twice, the last value counts. Raises `Reject` (422) if the body is not a form.
        """
        try:
            text = model.without_mark(self.body).decode()
            return dict(parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text)))
        except ValueError as error:
            raise Reject(f"the body is not a form: {error}") from error


@dataclass(frozen=True, slots=True)
class Reply:
    """Returned by an extract function to respond at once and store nothing (a handshake).

    >>> Reply(200, "challenge").status
    200
    """

    status: int = 200
    body: str | bytes = b""
    content_type: str = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class HTTP(Trigger[Request]):
    """A request to `path`, with the method `POST`, `PUT`, `PATCH` or `GET`.

    A sender that verifies an endpoint by a GET with a challenge in the query (Meta and others) gets a
    `Reply` from a webhook on `HTTP(path, method="GET")`, beside that on the POST at the same path. A
    GET has no body that a sender could sign: where the source's `auth` is a signature, a GET needs
    none, and can create no event.

    >>> HTTP("/airport/departures")
    HTTP(path='/airport/departures', method='POST')
    """

    path: str
    method: str = "POST"

    def __post_init__(self) -> None:
        if (
            not isinstance(self.path, str)
            or not _PATH.fullmatch(self.path)
            or self.path.startswith("/_")
        ):
            raise DeclarationError(
                f"HTTP({self.path!r}): write a path of letters, digits and ._~- between slashes, as in "
                "'/airport/departures'; clients remove '.' and '..', and the gateway reserves '/_...'"
            )
        if self.method not in _METHODS:
            raise DeclarationError(
                f"HTTP({self.path!r}, method={self.method!r}): write "
                f"one of {', '.join(sorted(_METHODS))}"
            )


@dataclass(slots=True)
class Poll:
    """The argument of a `Cron` event's function.

    - `cursor`: any JSON value: how far the function has come; `None` at first. The function sets it; it
      is committed with the events that the function returns, and passed to the next poll. If the
      function raises, the cursor stays unchanged.
    - `at`: when this poll was due, in UTC; the same in its retries.

    >>> poll = Poll(cursor=41)
    >>> poll.cursor += 1
    >>> poll.cursor
    42
    """

    cursor: Any = None
    at: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass(frozen=True, slots=True)
class Cron(Trigger[Poll], Inheriting):
    """A function that is called on a schedule, in a Dagster run, and returns what is new.

    A field that is `None` is inherited: the event's field applies, else that of `Source(cron=)`, else
    the default: `@every 1h`, UTC, 3 retries.

    - `interval`: `@every <duration>` (5 s at least), a cron expression of five fields or a nickname
      (`@daily`).
    - `timezone`: the IANA name of the time zone of a cron expression. When the clocks change, a time of
      day still comes exactly once: if it is skipped, right after the change; if it is repeated, the
      second time.
    - `max_retries`: how often a poll that raised is retried, soon after; after that, the next poll
      runs when it is due. Nothing is lost, as the cursor stays unchanged.

    >>> Cron("*/5 * * * *").inherit(DEFAULT_CRON)
    Cron(interval='*/5 * * * *', timezone='UTC', max_retries=3)
    """

    interval: str | None = None
    timezone: str | None = None
    max_retries: int | None = None

    def __post_init__(self) -> None:
        if self.interval is not None:
            checked_interval("Cron", self.interval)
        if self.timezone is not None:
            try:
                ZoneInfo(self.timezone)
            except (ZoneInfoNotFoundError, ValueError, TypeError, OSError) as error:
                raise DeclarationError(
                    f"Cron(timezone={self.timezone!r}) is not a time zone; write an IANA name, "
                    "such as 'Europe/Berlin'"
                ) from error
        if self.max_retries is not None:
            checked_number("Cron: max_retries", self.max_retries, 0, 100)


DEFAULT_CRON = Cron("@every 1h", "UTC", 3)


class Message(_JSONBody, frozen=True):
    """A broker's message, the argument of a `Subscription` event's function.

    - `body`: its bytes.
    - `headers`: with the sender's names; bytes of a value that are not UTF-8 are replaced by U+FFFD.
    - `topic`: Kafka's topic, NATS' subject, RabbitMQ's routing key.
    - `key`: Kafka's key; `None` with other brokers.
    - `id`: the sender's id (`message_id` in RabbitMQ, `Nats-Msg-Id` in NATS), or `None`. A message with
      an id that was sent within the last 7 days is the same message.
    - `sent_at`: when it was sent, if the broker knows.
    - `place`: where the broker stores it, for people: `orders/3@1545`.
    """

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


@dataclass(frozen=True, slots=True)
class Subscription(Trigger[Message]):
    """Messages of a topic, each ingested exactly once, also after restarts (RabbitMQ: if it has an id).

    - `topic`: Kafka's topic; NATS' subject, which may have wildcards (`orders.>`); RabbitMQ's
      binding key on the exchange `amq.topic`, or `<exchange>/<binding key>`.
    - `subscription`: the reader's name in the broker: Kafka's consumer group, NATS' durable consumer,
      RabbitMQ's queue. `blacksmith_<source>_<event>` if `None`.
    - `url`: the broker's URL; `BLACKSMITH_PUBSUB_URL` if `None`.

    A new subscription begins with the oldest message that the broker has (RabbitMQ: that is in the
    queue).

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
                "Subscription(url=...) takes a Secret, because a broker's URL contains its password; "
                "put it into an environment variable and write url=Secret('ITS_NAME')"
            )


class Listener:
    """The argument of a `CDC` event's generator function.

    The generator sets `cursor` and then yields the event that belongs to it: the two are committed
    together. To commit a cursor without an event, it yields an empty list. At least every few seconds
    it checks `stopping`, or calls `wait`, and returns if the listener must stop.

    - `cursor`: any JSON value: how far the listener had come when it was last committed; `None` at
      first.
    - `committed`: the newest cursor that is safely stored: the origin may discard everything up to it.
    - `lag`: set it to report how many bytes (or the `unit` that you set) are waiting at the origin.

    >>> listener = Listener(cursor=7)
    >>> listener.committed, listener.stopping, listener.wait(0)
    (7, False, False)
    """

    def __init__(self, cursor: Any = None, stop: Flag | None = None) -> None:
        self.cursor = cursor
        self.committed = cursor
        self.lag: int | None = None
        self.unit = "bytes"
        self._stop = stop or Flag()

    @property
    def stopping(self) -> bool:
        """Whether the generator must return."""
        return self._stop.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait for `seconds`, or until the generator must return; returns whether it must."""
        return self._stop.wait(seconds)


@dataclass(frozen=True, slots=True)
class CDC(Trigger[Listener]):
    """A generator that listens and yields events endlessly.

    One instance runs at a time, under the lock `listen/<source>/<event>`. Events are committed as soon
    as they are yielded, in groups under load. A generator that raises or returns is started again from
    the last committed cursor, after a delay that grows each time.

    ```python
    @shop.event(CDC())
    def changed(listener: Listener) -> Iterator[Event[Row]]:
        while not listener.wait(1):
            for number, row in read_after(listener.cursor or 0):
                listener.cursor = number
                yield Event(row)
    ```
    """


@dataclass(frozen=True, slots=True)
class Child(Trigger[Any]):
    """The event has no trigger: it comes with other events; see `Source.child`."""


def decode_body(body: bytes, type: Any) -> Any:
    """A JSON body decoded into `type`.

    Raises `ValidationError` with the place where the body does not fit, `BadRequest` if it is not JSON.
    """
    try:
        body = model.without_mark(body)
        try:
            return model.decode_json(body, type)
        except msgspec.ValidationError as error:
            model.check_json(body)
            raise ValidationError(f"the body does not fit: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from error
