"""Where events come from."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar, overload

from msgspec import inspect

from blacksmith_dagster.errors import DeclarationError
from blacksmith_dagster.pipeline import limits as _limits
from blacksmith_dagster.pipeline.auth import Bearer
from blacksmith_dagster.pipeline.event import Event
from blacksmith_dagster.pipeline.flow import Receivable
from blacksmith_dagster.pipeline.limits import Limits
from blacksmith_dagster.pipeline.migration import (
    Direction,
    Migration,
    Migrations,
    checked_migrations,
    run_function,
)
from blacksmith_dagster.pipeline.retention import checked_keep
from blacksmith_dagster.pipeline.rules import (
    checked_function,
    checked_name,
    checked_owners,
    checked_tags,
)
from blacksmith_dagster.pipeline.trigger import HTTP, Reply, Trigger

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
In = TypeVar("In")
In_contra = TypeVar("In_contra", contravariant=True)
Out = TypeVar("Out")

# What an annotation raises that names what is not there, or is written wrongly.
_NOT_THERE = (NameError, AttributeError, SyntaxError, TypeError, ValueError)


class SourceEvent(Receivable[T_co], Generic[T_co, In_contra, Out]):
    """A kind of event of a source, made by `Source.event` or `Source.accept`.

    It stays callable: `departed(Request.of({...}))` runs the extract function. Its properties are
    its own where they were given, else its source's, else the defaults.
    """

    def __init__(
        self,
        source: Source,
        name: str,
        trigger: Trigger[Any],
        function: Callable[[In_contra], Out] | None,
        model: Any,
        auth: Bearer | None,
        limits: Limits | None,
        keep: str | None,
        keep_discarded: str | None,
        owners: Sequence[str] | None,
        tags: Mapping[str, str] | None,
        description: str | None,
        migrations: Migrations | None,
    ) -> None:
        path = f"{source.name}/{checked_name(f'source {source.name!r}: event', name)}"
        super().__init__(path, _checked_model(path, model))
        self.source = source
        self.name = name
        self.trigger = trigger
        self.function = function
        self.auth = auth or source.auth
        self.limits = (limits or Limits()).inherit(source.limits)
        self.keep = checked_keep(f"{path}: keep", keep) or source.keep
        discarded = checked_keep(f"{path}: keep_discarded", keep_discarded)
        self.keep_discarded = discarded or source.keep_discarded
        self.owners = source.owners if owners is None else checked_owners(path, owners) or ()
        self.tags = source.tags if tags is None else checked_tags(path, tags) or {}
        self.description = description
        self.migrations = checked_migrations(path, migrations)

    def __call__(self, given: In_contra) -> Out:
        if self.function is None:
            raise DeclarationError(
                f"{self.path} takes the body as it is; it has no function to call"
            )
        return self.function(given)


class _Extract(Protocol[In]):
    """The decorator that `Source.event` returns: it takes a function of what the trigger hands over."""

    @overload
    def __call__(self, function: Callable[[In], Event[T]], /) -> SourceEvent[T, In, Event[T]]: ...
    # A function that only replies fits two of them, and the first is as good as the other.
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[[In], Event[T] | Reply], /
    ) -> SourceEvent[T, In, Event[T] | Reply]: ...
    @overload
    def __call__(
        self, function: Callable[[In], Iterable[Event[T]]], /
    ) -> SourceEvent[T, In, Iterable[Event[T]]]: ...
    @overload
    def __call__(
        self, function: Callable[[In], Iterable[Event[T]] | Reply], /
    ) -> SourceEvent[T, In, Iterable[Event[T]] | Reply]: ...


class Source:
    """Where events come from: a site, an application, a partner.

    - `auth`: who may send to it; nobody is asked by default (the gateway listens on loopback).
    - `limits`: of a request.
    - `keep`: how long an event is kept from when it was received ('30d'), at least as long as a job
      of it waits; 'forever', the default, if nothing says otherwise.
    - `keep_discarded`: how long it is kept from when a job of it was discarded; as long as `keep`,
      by default. `blacksmith purge` removes what is past its time.
    - `owners` (e-mail addresses or `team:name`) and `tags`: shown in Dagster.
    - `migrations`: of the source's own schema; see `migrate`. Each event may have some beside them.

    Each event inherits the others and may give its own.

    >>> airport = Source("airport", owners=["team:flights"])
    >>> @airport.event(HTTP("/airport/departures"))
    ... def departed(request: Request) -> Event[dict]:
    ...     return Event(request.json())
    >>> departed.path, departed.owners
    ('airport/departed', ('team:flights',))
    """

    def __init__(
        self,
        name: str,
        *,
        auth: Bearer | None = None,
        limits: Limits | None = None,
        keep: str | None = None,
        keep_discarded: str | None = None,
        owners: Sequence[str] = (),
        tags: Mapping[str, str] | None = None,
        migrations: Migrations | None = None,
    ) -> None:
        self.name = checked_name("source", name)
        where = f"source {name!r}"
        self.auth = auth
        self.limits = (limits or Limits()).inherit(_limits.DEFAULT)
        self.keep = checked_keep(f"{where}: keep", keep)
        self.keep_discarded = checked_keep(f"{where}: keep_discarded", keep_discarded)
        self.owners = checked_owners(where, owners) or ()
        self.tags = checked_tags(where, tags) or {}
        self.migrations = checked_migrations(where, migrations)
        self._events: dict[str, SourceEvent[Any, Any, Any]] = {}

    @property
    def events(self) -> Mapping[str, SourceEvent[Any, Any, Any]]:
        """The source's events, by name."""
        return self._events

    def event(
        self,
        on: Trigger[In],
        *,
        name: str | None = None,
        auth: Bearer | None = None,
        limits: Limits | None = None,
        keep: str | None = None,
        keep_discarded: str | None = None,
        owners: Sequence[str] | None = None,
        tags: Mapping[str, str] | None = None,
        migrations: Migrations | None = None,
    ) -> _Extract[In]:
        """Make a source event of a function that turns what the trigger hands over into events.

        The function is called once per item of a JSON array or of NDJSON, and returns an `Event`,
        several, or a `Reply`. `raise Reject(why)` refuses the request (422); any other exception
        keeps the raw request in quarantine. Its return annotation, `Event[Flight]`, says what the
        kept data is decoded into for `when`, `transform` and the destinations. It is named after the
        function unless `name` is given.

        The gateway calls it on its event loop for a body of 128 KiB at most: a look-up that waits, in
        a database for example, makes all senders wait. For larger bodies it is called in threads, at
        the same time as on the loop, so that what it shares must be thread-safe.

        Raises `DeclarationError`.
        """
        if not isinstance(on, Trigger):
            raise DeclarationError(
                f"source {self.name!r}: an event is extracted on a trigger, and {on!r} is none; write "
                "@source.event(HTTP('/airport/departures')), for example"
            )

        def declare(function: Callable[[Any], Any]) -> SourceEvent[Any, Any, Any]:
            named = getattr(function, "__name__", "") if name is None else name
            where = f"{self.name}/{named}"
            event: SourceEvent[Any, Any, Any] = SourceEvent(
                self,
                named,
                on,
                checked_function(where, function, "request", may_yield=True),
                _returned_model(where, function),
                auth,
                limits,
                keep,
                keep_discarded,
                owners,
                tags,
                function.__doc__,
                migrations,
            )
            return self._add(event)

        return typing.cast("_Extract[In]", declare)

    @overload
    def accept(
        self,
        name: str,
        *,
        model: type[T],
        on: HTTP | None = None,
        auth: Bearer | None = None,
        limits: Limits | None = None,
        keep: str | None = None,
        keep_discarded: str | None = None,
        owners: Sequence[str] | None = None,
        tags: Mapping[str, str] | None = None,
        description: str | None = None,
        migrations: Migrations | None = None,
    ) -> SourceEvent[T, Any, Any]: ...
    @overload
    def accept(
        self,
        name: str,
        *,
        on: HTTP | None = None,
        auth: Bearer | None = None,
        limits: Limits | None = None,
        keep: str | None = None,
        keep_discarded: str | None = None,
        owners: Sequence[str] | None = None,
        tags: Mapping[str, str] | None = None,
        description: str | None = None,
        migrations: Migrations | None = None,
    ) -> SourceEvent[Any, Any, Any]: ...
    def accept(
        self,
        name: str,
        *,
        model: Any = Any,
        on: HTTP | None = None,
        auth: Bearer | None = None,
        limits: Limits | None = None,
        keep: str | None = None,
        keep_discarded: str | None = None,
        owners: Sequence[str] | None = None,
        tags: Mapping[str, str] | None = None,
        description: str | None = None,
        migrations: Migrations | None = None,
    ) -> SourceEvent[Any, Any, Any]:
        """A source event without a function: a JSON body is kept as it is, to the byte.

        It is sent to `/v1/<source>/<name>` unless `on` says otherwise. A body that does not fit
        `model` (any type that msgspec decodes into) is refused with 422.

        >>> Source("airport").accept("cancelled").trigger
        HTTP(path='/v1/airport/cancelled', method='POST')

        Raises `DeclarationError`.
        """
        trigger = on or HTTP(f"/v1/{self.name}/{checked_name('event', name)}")
        return self._add(
            SourceEvent(
                self,
                name,
                trigger,
                None,
                model,
                auth,
                limits,
                keep,
                keep_discarded,
                owners,
                tags,
                description,
                migrations,
            )
        )

    def migrate(self, migration: Migration, direction: Direction) -> None:
        """Run a migration of this source or of one of its events; override it to run SQL.

        As it stands it calls the migration's function, without arguments. What it raises is kept as
        the reason of the failure.
        """
        run_function(f"source {self.name!r}", migration, direction)

    def _add(self, event: SourceEvent[Any, Any, Any]) -> SourceEvent[Any, Any, Any]:
        if event.name in self._events:
            raise DeclarationError(
                f"source {self.name!r} has two events named {event.name!r}; rename one, or give name="
            )
        self._events[event.name] = event
        return event

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


def _returned_model(where: str, function: Callable[..., Any]) -> Any:
    """The T of the `Event[T]` that `function` is annotated to return; `Any` if it is not."""
    if not hasattr(function, "__annotations__"):
        return Any
    try:
        returned = typing.get_type_hints(function).get("return", Any)
    except _NOT_THERE as error:
        raise DeclarationError(
            f"{where}: its function's annotations cannot be read at import: {error}; define or "
            "import what they name at the top of the module"
        ) from error
    models = _models_of(returned)
    # Any of several types: of two Structs, msgspec asks for their tags.
    return Any if not models or Any in models else typing.Union[tuple(models)]  # noqa: UP007


def _models_of(returned: Any) -> list[Any]:
    """The T of every `Event[T]` in an annotation, such as `Iterator[Event[T]] | Reply`."""
    if returned is Event:
        return [Any]
    arguments = typing.get_args(returned)
    if typing.get_origin(returned) is Event:
        return [arguments[0]]
    return [model for argument in arguments for model in _models_of(argument)]


def _checked_model(path: str, model: Any) -> Any:
    why = "msgspec knows no way from JSON to it"
    try:
        if model is object or not isinstance(inspect.type_info(model), inspect.CustomType):
            return model
    except _NOT_THERE as error:
        why = str(error)
    raise DeclarationError(
        f"{path}: its data cannot be decoded into {model!r}: {why}; give a msgspec.Struct, a "
        "dataclass, a TypedDict or another type that msgspec decodes"
    )
