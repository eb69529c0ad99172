"""Sources, where events come from, and their source events."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, Literal, Protocol, TypeAlias, TypedDict, TypeVar, Unpack, overload

from blacksmith_dagster.errors import DeclarationError
from blacksmith_dagster.pipeline import limits as _limits
from blacksmith_dagster.pipeline.access import CORS, Auth, Network, checked_networks
from blacksmith_dagster.pipeline.event import Event, InvalidItem, TypedEvent
from blacksmith_dagster.pipeline.flow import Receivable
from blacksmith_dagster.pipeline.limits import Limits
from blacksmith_dagster.pipeline.migration import (
    Direction,
    Migration,
    Migrations,
    checked_migrations,
    run_function,
)
from blacksmith_dagster.pipeline.model import JSONSchema, checked_model, json_schema
from blacksmith_dagster.pipeline.retention import checked_retention
from blacksmith_dagster.pipeline.triggers import (
    CDC,
    DEFAULT_CRON,
    HTTP,
    Child,
    Cron,
    Reply,
    Request,
    Subscription,
    Trigger,
)
from blacksmith_dagster.pipeline.validation import (
    ANY_VERSION,
    Duration,
    Versions,
    checked_function,
    checked_keywords,
    checked_name,
    checked_owners,
    checked_tags,
    checked_versions,
    either,
    inherited,
)

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
In = TypeVar("In")
In_contra = TypeVar("In_contra", contravariant=True)
Out = TypeVar("Out")

_ARGUMENT_NAMES: Mapping[type, str] = {Cron: "poll", Subscription: "message", CDC: "listener"}

WebhookResult: TypeAlias = TypedEvent | Iterable[TypedEvent | InvalidItem] | Reply
"""The result of a webhook's function."""

# Raised for an annotation that is invalid or uses undefined names.
_ANNOTATION_ERRORS = (NameError, AttributeError, SyntaxError, TypeError, ValueError)


class SourceProperties(TypedDict, total=False):
    """The properties of a source and of its events; an event inherits those that it does not set.

    - `auth`: how senders authenticate; by default they need not (the gateway listens on loopback).
    - `networks`: the addresses that may send: '192.0.2.0/24', '2001:db8::/32', or an address; all by
      default. Behind a proxy, name it to the gateway: `StandardGateway(trusted_proxies=)`.
    - `cors`: the sites whose pages may send; none by default.
    - `limits`: the limits of a request.
    - `on_invalid`: the response to data that does not fit its event's model. 'reject', the default,
      returns 422 with the place of the fault; 'quarantine' accepts the request and stores the data in
      quarantine.
    - `retention`: how long an event is kept after it was received ('30d'), and at least while one of
      its jobs waits; 'forever' by default.
    - `discarded_retention`: how long an event is kept after one of its jobs was discarded; as long as
      `retention` by default. `blacksmith purge` removes what is past its time.
    - `quarantine_retention`: how long what could not be ingested stays in quarantine after it was
      received; as long as `retention` by default.
    - `versions`: the versions of the source's API, each with the day from which it is deprecated, or
      `None`.
    - `default_version`: the version of an event that names none.
    - `owners` (e-mail addresses or `team:name`) and `tags`: shown in Dagster.
    - `migrations`: the migrations of the source's own schema; an event has its own and inherits none.
    """

    auth: Auth | None
    networks: Sequence[str] | None
    cors: CORS | None
    limits: Limits | None
    on_invalid: Literal["reject", "quarantine"] | None
    retention: Duration | None
    discarded_retention: Duration | None
    quarantine_retention: Duration | None
    versions: Mapping[str, date | None] | None
    default_version: str | None
    owners: Sequence[str] | None
    tags: Mapping[str, str] | None
    migrations: Migrations | None


class _SourceConfig:
    """What a source, its events and its webhooks have in common; the class's values are the defaults."""

    auth: Auth | None = None
    networks: tuple[Network, ...] | None = None
    cors: CORS | None = None
    limits: Limits = _limits.DEFAULT
    on_invalid: Literal["reject", "quarantine"] = "reject"
    retention: Duration | None = None
    discarded_retention: Duration | None = None
    quarantine_retention: Duration | None = None
    versions: Versions = ANY_VERSION
    owners: tuple[str, ...] = ()
    tags: Mapping[str, str] = MappingProxyType({})
    migrations: Path | tuple[Migration, ...] = ()

    def _configure(self, where: str, own: SourceProperties, parent: _SourceConfig) -> None:
        checked_keywords(where, own, SourceProperties)
        self.auth = either(own.get("auth"), parent.auth)
        networks = checked_networks(f"{where}: networks", own.get("networks"))
        self.networks = either(networks, parent.networks)
        self.cors = either(_checked_cors(where, own.get("cors")), parent.cors)
        self.limits = inherited(f"{where}: limits", own.get("limits"), parent.limits)
        self.on_invalid = either(own.get("on_invalid"), parent.on_invalid)
        if self.on_invalid not in ("reject", "quarantine"):
            raise DeclarationError(
                f"{where}: on_invalid={self.on_invalid!r}: write 'reject' or 'quarantine'"
            )
        retention = checked_retention(f"{where}: retention", own.get("retention"))
        self.retention = either(retention, parent.retention)
        discarded = checked_retention(
            f"{where}: discarded_retention", own.get("discarded_retention")
        )
        self.discarded_retention = either(discarded, parent.discarded_retention)
        quarantined = checked_retention(
            f"{where}: quarantine_retention", own.get("quarantine_retention")
        )
        self.quarantine_retention = either(quarantined, parent.quarantine_retention)
        versions = checked_versions(where, own.get("versions"), own.get("default_version"))
        self.versions = either(versions, parent.versions)
        self.owners = either(checked_owners(where, own.get("owners")), parent.owners)
        self.tags = either(checked_tags(where, own.get("tags")), parent.tags)
        self.migrations = checked_migrations(where, own.get("migrations"))


class SourceEvent(Receivable[T_co], _SourceConfig, Generic[T_co, In_contra, Out]):
    """A kind of event of a source, made by `Source.event` or `Source.accept`.

    It stays callable: `departed(Request.of({...}))` runs the extract function. A property that was not
    set is its source's, else the default.
    """

    def __init__(
        self,
        source: Source,
        name: str,
        trigger: Trigger[Any],
        function: Callable[[In_contra], Out] | None,
        model: Any,
        description: str | None,
        **own: Unpack[SourceProperties],
    ) -> None:
        path = f"{source.name}/{checked_name(f'source {source.name!r}: event', name)}"
        super().__init__(path, checked_model(path, model))
        self._configure(path, own, source)
        self.source = source
        self.name = name
        self.trigger = trigger.inherit(source.cron) if isinstance(trigger, Cron) else trigger
        self.function = function
        self.description = description

    @property
    def schema(self) -> Mapping[str, str]:
        """A reference to the model's JSON Schema in the OpenAPI description; `{}` if it has none."""
        if not json_schema(self.model):
            return {}
        return {"$ref": f"#/components/schemas/{self.path.replace('/', '.')}"}

    def __call__(self, input: In_contra) -> Out:
        if self.function is None:
            raise DeclarationError(
                f"{self.path} accepts the body as it is; it has no function to call"
            )
        return self.function(input)

    def of(
        self,
        data: T_co,  # type: ignore[misc]
        *,
        key: str | None = None,
        sent_at: datetime | None = None,
        context: Mapping[str, Any] | None = None,
        version: str | None = None,
        children: Sequence[TypedEvent] = (),
    ) -> TypedEvent:
        """An event of this type, as a child of another event or as the result of a webhook endpoint of
        the source. The arguments are those of `Event`.

        >>> shop = Source("shop")
        >>> line = shop.child("line")
        >>> line.of({"sku": "A1"}).event_type
        'shop/line'
        """
        event = Event(data, key, sent_at, context or {}, version, children=children)
        return TypedEvent(self.path, event)


AnySourceEvent: TypeAlias = SourceEvent[Any, Any, Any]
"""A source event, whatever its types."""


class _Extract(Protocol[In]):
    """The decorator that `Source.event` returns, for a function of the trigger's input."""

    @overload
    def __call__(self, function: Callable[[In], Event[T]], /) -> SourceEvent[T, In, Event[T]]: ...
    # A function that only replies, or yields nothing, fits two overloads: either is right.
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[[In], Event[T] | Reply], /
    ) -> SourceEvent[T, In, Event[T] | Reply]: ...
    @overload
    def __call__(
        self, function: Callable[[In], Iterable[Event[T]]], /
    ) -> SourceEvent[T, In, Iterable[Event[T]]]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[[In], Iterable[Event[T]] | Reply], /
    ) -> SourceEvent[T, In, Iterable[Event[T]] | Reply]: ...
    # A listener that commits its cursor by yielding an empty list.
    @overload
    def __call__(
        self, function: Callable[[In], Iterable[Event[T] | Sequence[Event[T]]]], /
    ) -> SourceEvent[T, In, Iterable[Event[T] | Sequence[Event[T]]]]: ...


class Webhook(_SourceConfig):
    """An HTTP path of a source where events of several types arrive, made by `Source.webhook`.

    `response` is sent once a request's events are stored; by default 202 with their ids. `path`, the
    event type of its requests in quarantine, is the source's name; its properties are the source's.
    `describe` returns what the OpenAPI description says of its requests.
    """

    def __init__(
        self,
        source: Source,
        on: HTTP,
        function: Callable[[Request], Any],
        response: Reply | None,
        describe: Callable[[], Mapping[str, Any]],
    ) -> None:
        self._configure(source.name, {}, source)
        self.path = source.name
        self.source = source
        self.on = on
        self.function = function
        self.response = response
        self.describe = describe


class Source(_SourceConfig):
    """Where events come from: a site, an application, a partner.

    - `cron`: inherited by its `Cron` events; `@every 1h` by default.
    - the others are `SourceProperties`, which each event inherits and may override.

    >>> airport = Source("airport", owners=["team:flights"])
    >>> @airport.event(HTTP("/airport/departures"))
    ... def departed(request: Request) -> Event[dict]:
    ...     return Event(request.json())
    >>> departed.path, departed.owners
    ('airport/departed', ('team:flights',))

    Raises `DeclarationError`.
    """

    def __init__(
        self, name: str, *, cron: Cron | None = None, **own: Unpack[SourceProperties]
    ) -> None:
        where = f"source {name!r}"
        self.name = checked_name("source", name)
        self.cron = inherited(f"{where}: cron", cron, DEFAULT_CRON)
        self._configure(where, own, self)  # which has the defaults
        self._events: dict[str, AnySourceEvent] = {}
        self._webhooks: list[Webhook] = []

    @property
    def events(self) -> Mapping[str, AnySourceEvent]:
        """The source's events, by name."""
        return self._events

    @property
    def webhooks(self) -> Sequence[Webhook]:
        """The source's paths where events of several types arrive."""
        return self._webhooks

    def event(
        self, on: Trigger[In], *, name: str | None = None, **own: Unpack[SourceProperties]
    ) -> _Extract[In]:
        """Declare a source event: the decorated function turns the trigger's input into events.

        The function returns an `Event` or several; for an HTTP request it may also return a
        `Reply`. It is called once per item of a JSON array or of NDJSON, and once per message.
        `raise Reject(reason)` rejects the request (422); any other exception puts it into quarantine. A
        message that is rejected goes to quarantine too. The function's return annotation,
        `Event[Flight]`, is the type that the stored data is decoded into for `when`, `transform` and
        the destinations. The event has the function's name unless `name` is given.

        For a body of 128 KiB at most, the gateway calls the function on its event loop: a look-up that
        waits, in a database for example, makes all senders wait. For a larger body it calls the
        function in a thread, at the same time as on the loop, so anything shared must be thread-safe.

        Raises `DeclarationError`.
        """
        if not isinstance(on, Trigger):
            raise DeclarationError(
                f"source {self.name!r}: {on!r} is not a trigger; write "
                "@source.event(HTTP('/airport/departures')), for example"
            )

        def declare(function: Callable[[Any], Any]) -> AnySourceEvent:
            event_name = getattr(function, "__name__", "") if name is None else name
            where = f"{self.name}/{event_name}"
            argument = _ARGUMENT_NAMES.get(type(on), "request")
            checked_function(where, function, argument, may_yield=True)
            model = _returned_model(where, function)
            return self._add(
                SourceEvent(self, event_name, on, function, model, function.__doc__, **own)
            )

        return typing.cast("_Extract[In]", declare)

    @overload
    def accept(
        self,
        name: str,
        *,
        model: type[T],
        on: HTTP | Subscription | None = None,
        description: str | None = None,
        **own: Unpack[SourceProperties],
    ) -> SourceEvent[T, Any, Any]: ...
    @overload
    def accept(
        self,
        name: str,
        *,
        model: JSONSchema = ...,
        on: HTTP | Subscription | None = None,
        description: str | None = None,
        **own: Unpack[SourceProperties],
    ) -> AnySourceEvent: ...
    def accept(
        self,
        name: str,
        *,
        model: Any = Any,
        on: HTTP | Subscription | None = None,
        description: str | None = None,
        **own: Unpack[SourceProperties],
    ) -> AnySourceEvent:
        """A source event without a function: a JSON body is stored byte for byte.

        By default it is sent to `/v1/<source>/<name>`. A body that does not fit `model` (a type that
        msgspec decodes, a model of pydantic, or a `JSONSchema`) is rejected with 422, or stored in
        quarantine; see `on_invalid` of `SourceProperties`.

        >>> Source("airport").accept("cancelled").trigger
        HTTP(path='/v1/airport/cancelled', method='POST')

        Raises `DeclarationError`.
        """
        trigger = on or HTTP(f"/v1/{self.name}/{checked_name('event', name)}")
        if isinstance(trigger, HTTP) and trigger.method == "GET":
            raise DeclarationError(
                f"source {self.name!r}: {name} on a GET needs a function, because a GET has no body; "
                f"decorate one with @{self.name}.event({trigger!r})"
            )
        return self._add(SourceEvent(self, name, trigger, None, model, description, **own))

    @overload
    def child(
        self,
        name: str,
        *,
        model: type[T],
        description: str | None = None,
        **own: Unpack[SourceProperties],
    ) -> SourceEvent[T, Any, Any]: ...
    @overload
    def child(
        self,
        name: str,
        *,
        model: JSONSchema = ...,
        description: str | None = None,
        **own: Unpack[SourceProperties],
    ) -> AnySourceEvent: ...
    def child(
        self,
        name: str,
        *,
        model: Any = Any,
        description: str | None = None,
        **own: Unpack[SourceProperties],
    ) -> AnySourceEvent:
        """A source event that arrives only as the child of an event, or through a webhook endpoint.

        >>> shop = Source("shop")
        >>> line = shop.child("line")
        >>> @shop.event(HTTP("/orders"))
        ... def ordered(request: Request) -> Event[dict]:
        ...     order = request.json()
        ...     return Event(order, children=[line.of(item) for item in order["lines"]])

        Raises `DeclarationError`.
        """
        return self._add(SourceEvent(self, name, Child(), None, model, description, **own))

    def webhook(
        self,
        on: HTTP,
        *,
        response: Reply | None = None,
        describe: Callable[[], Mapping[str, Any]] = dict,
    ) -> Callable[[Callable[[Request], WebhookResult]], Callable[[Request], WebhookResult]]:
        """An HTTP path where events of several types arrive; its function gives each its type.

        The function is called once per request, even if the body is an array, and returns typed events
        of this source (`SourceEvent.of`), or a `Reply`. It may reject or fail like that of an event.
        The source's own properties apply to the path.

        - `response`: sent once the events are stored; by default 202 with their ids.
        - `describe`: returns fields of the path's Operation Object in the gateway's OpenAPI description,
          such as `parameters` and `requestBody`; by default any body is described as accepted. The
          models of the source's events are in it as `SourceEvent.schema`.

        >>> shop = Source("shop")
        >>> opened, closed = shop.child("opened"), shop.child("closed")
        >>> @shop.webhook(HTTP("/shop"))
        ... def arrived(request: Request) -> list[TypedEvent]:
        ...     return [(opened if item["open"] else closed).of(item) for item in request.json()]
        >>> [event.event_type for event in arrived(Request.of([{"open": True}, {"open": False}]))]
        ['shop/opened', 'shop/closed']

        Raises `DeclarationError`.
        """
        if not isinstance(on, HTTP):
            raise DeclarationError(
                f"source {self.name!r}: a webhook needs an HTTP trigger, and {on!r} is another; write "
                "@source.webhook(HTTP('/shop'))"
            )

        def declare(
            function: Callable[[Request], WebhookResult],
        ) -> Callable[[Request], WebhookResult]:
            where = f"source {self.name!r}: webhook {on.path}"
            checked_function(where, function, "request", may_yield=True)
            self._webhooks.append(Webhook(self, on, function, response, describe))
            return function

        return declare

    def migrate(self, migration: Migration, direction: Direction) -> None:
        """Run a migration of this source or of one of its events; override it to run SQL.

        By default it calls the migration's function, without arguments. The error that it raises is
        stored as the reason for the failure.
        """
        run_function(f"source {self.name!r}", migration, direction)

    def _add(self, event: AnySourceEvent) -> AnySourceEvent:
        if event.name in self._events:
            raise DeclarationError(
                f"source {self.name!r} has two events named {event.name!r}; rename one, or give name="
            )
        self._events[event.name] = event
        return event

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


def _checked_cors(where: str, cors: CORS | None) -> CORS | None:
    if cors is not None and not isinstance(cors, CORS):
        raise DeclarationError(
            f"{where}: cors={cors!r}: write CORS(origins=['https://shop.example'])"
        )
    return cors


def _returned_model(where: str, function: Callable[..., Any]) -> Any:
    """The T of the `Event[T]` in the return annotation of `function`; `Any` without one."""
    if not hasattr(function, "__annotations__"):
        return Any
    try:
        returned = typing.get_type_hints(function).get("return", Any)
    except _ANNOTATION_ERRORS as error:
        raise DeclarationError(
            f"{where}: its function's annotations cannot be read at import: {error}; define or "
            "import what they name at the top of the module"
        ) from error
    models = _models_of(returned)
    # One of several types: to tell two Structs apart, msgspec requires tags.
    return Any if not models or Any in models else typing.Union[tuple(models)]  # noqa: UP007


def _models_of(returned: Any) -> list[Any]:
    """The T of every `Event[T]` in an annotation, such as `Iterator[Event[T]] | Reply`."""
    if returned is Event:
        return [Any]
    arguments = typing.get_args(returned)
    if typing.get_origin(returned) is Event:
        return [arguments[0]]
    return [model for argument in arguments for model in _models_of(argument)]
