"""How a source event arrives: the triggers, and what each hands to the extract function."""

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

from blacksmith_dagster.errors import DeclarationError, Reject, ValidationError
from blacksmith_dagster.pipeline import model
from blacksmith_dagster.pipeline.schedule import checked_interval
from blacksmith_dagster.pipeline.validation import Inheriting
from blacksmith_dagster.redaction import Secret

In = TypeVar("In")
T = TypeVar("T")
_PATH = re.compile(r"(/(?!\.{1,2}(/|$))[A-Za-z0-9._~-]+)+")
_METHODS = frozenset({"POST", "PUT", "PATCH"})
_NO_SPACE = re.compile(r"[!-~]{1,249}")


class Trigger(Generic[In]):
    """The base of all triggers; `In` is what the extract function is handed."""


class Request(msgspec.Struct, frozen=True):
    """An HTTP request, or one item of it if its body is a JSON array or NDJSON.

    - `body`: the item's bytes, as they came.
    - `headers`: names in lower case.
    - `query`: of a name that occurs twice, the last value.
    - `received_at`: when it came, if it is retried from quarantine; else `None`: it comes now.
    """

    body: bytes
    headers: Mapping[str, str] = {}
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

    @overload
    def json(self) -> Any: ...
    @overload
    def json(self, type: type[T]) -> T: ...
    def json(self, type: Any = Any) -> Any:
        """The body decoded as JSON, into `type` if one is given: a type that msgspec decodes
        (Structs, dataclasses, TypedDicts, ...), or a model of pydantic.

        Raises `Reject` (422) with the place of the fault when it does not fit; see `invalid` of
        `Properties`.
        """
        return decode_body(self.body, type)

    def form(self) -> dict[str, str]:
        """The body of an HTML form (`application/x-www-form-urlencoded`), decoded.

        Of a name that occurs twice, the last value. Raises `Reject` (422) for another body.
        """
        try:
            text = self.body.decode()
            return dict(parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text)))
        except ValueError as error:
            raise Reject(f"the body is no form: {error}") from error


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
    """A request to `path`, by one of `POST`, `PUT` and `PATCH`.

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
                "'/airport/departures'; clients remove '.' and '..', and '/_...' is the gateway's own"
            )
        if self.method not in _METHODS:
            raise DeclarationError(
                f"HTTP({self.path!r}, method={self.method!r}): write "
                f"one of {', '.join(sorted(_METHODS))}"
            )


@dataclass(slots=True)
class Poll:
    """What the function of a `Cron` event is handed.

    - `cursor`: any JSON value: how far the function has come; `None` at first. What it is set to is
      committed with the events that the function returns, and handed over the next time. A function
      that raises leaves it as it was.
    - `at`: when this poll was due, in UTC; the same when the poll is tried again.

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

    A field that is `None` is inherited: the event's is taken, else that of `Source(cron=)`, else the
    default: `@every 1h`, UTC, 3 retries.

    - `interval`: `@every <duration>` (5 s at least), a cron expression of five fields or a nickname
      (`@daily`).
    - `timezone`: that a cron expression is meant in, by its IANA name. At a change of the clocks a time
      of day comes once all the same: one that is skipped comes right after, of two the later counts.
    - `max_retries`: how often a poll that raised is tried again, soon after; then the next is waited
      for. Nothing is lost by that, as the cursor stays where it was.

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
                    f"Cron(timezone={self.timezone!r}): there is no such time zone; write an IANA "
                    "name, such as 'Europe/Berlin'"
                ) from error
        retries = self.max_retries
        if retries is not None and not (isinstance(retries, int) and 0 <= retries <= 100):
            raise DeclarationError(
                f"Cron(max_retries={retries!r}): write a number from 0 (no retry) to 100"
            )


DEFAULT_CRON = Cron("@every 1h", "UTC", 3)


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


class Listener:
    """What the generator of a `CDC` event is handed.

    The generator sets `cursor` and then yields the event that it belongs to: what it was set to
    when an event is yielded is committed with this event. It looks at `stopping`, or waits by
    `wait`, every few seconds at least, and returns when asked to. It yields an empty list to keep a
    cursor that no event belongs to.

    - `cursor`: any JSON value: how far the listener had come when it was last committed; `None` at
      first.
    - `committed`: the newest cursor that is safe in the store: what came up to it may be forgotten
      at its origin.
    - `lag`: set it to tell how many bytes, or whatever `unit` says, wait at the origin.

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
        """Whether the generator is to return."""
        return self._stop.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait so long, or until the generator is to return: then it is `True`."""
        return self._stop.wait(seconds)


@dataclass(frozen=True, slots=True)
class CDC(Trigger[Listener]):
    """A generator that listens and yields events, without an end.

    One instance runs at a time, under the lock `listen/<source>/<event>`. Events are committed as
    soon as they are yielded, many at once when many come. A generator that raises or returns is
    started again from the cursor that was committed last, a little later each time.

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
    """No trigger of its own: the event comes with others; see `Source.child`."""


def decode_body(body: bytes, type: Any) -> Any:
    """A body of JSON decoded into `type`.

    Raises `ValidationError` with the place of the fault, and `Reject` for what is not JSON.
    """
    try:
        return model.decode_json(body, type)
    except msgspec.ValidationError as error:
        raise ValidationError(f"the body does not fit: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Reject(f"the body does not fit: {error}") from error
