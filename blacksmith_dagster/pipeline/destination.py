"""Destinations, where events are loaded, and their destination events."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, Protocol, TypeAlias, TypedDict, TypeVar, Unpack, overload

from blacksmith_dagster.errors import DeclarationError, Unprocessable
from blacksmith_dagster.pipeline import schedule as _schedule
from blacksmith_dagster.pipeline.event import Batch
from blacksmith_dagster.pipeline.flow import Flow, Outcome, Receivable, Receives
from blacksmith_dagster.pipeline.migration import (
    Direction,
    Migration,
    Migrations,
    checked_migrations,
    run_function,
)
from blacksmith_dagster.pipeline.schedule import RetryPolicy, Schedule, checked_cron
from blacksmith_dagster.pipeline.validation import (
    ANY_VERSION,
    Duration,
    checked_function,
    checked_keywords,
    checked_name,
    checked_number,
    checked_owners,
    checked_tags,
    checked_versions,
    duration,
    either,
    inherited,
)

T = TypeVar("T")
C = TypeVar("C")
C_co = TypeVar("C_co", covariant=True)


class _LoadProperties(TypedDict, total=False):
    schedule: Schedule | None
    retry: RetryPolicy | None
    timeout: Duration | None
    batch_size: int | None
    owners: Sequence[str] | None
    tags: Mapping[str, str] | None
    migrations: Migrations | None


class DestinationProperties(_LoadProperties, total=False):
    """The properties of a destination. An event inherits the first six, and may override each.

    - `schedule`: when jobs are loaded; see `Schedule`.
    - `retry`: when failed jobs are retried; see `RetryPolicy`.
    - `timeout`: how long a load may take ('5m'). After that the load is `unknown`, and its late
      results are ignored.
    - `batch_size`: the most jobs that a load holds (1000).
    - `owners` (e-mail addresses or `team:name`) and `tags`: shown in Dagster.
    - `migrations`: the migrations of the destination's own schema; see `Destination.migrate`. An event
      has its own in addition.
    - `versions`: the versions of the destination's API, each with the day from which it is deprecated,
      or `None`.
    - `default_version`: the version of an event that names none.
    - `wait_for_migrations`: the jobs of all its events wait while a migration has not run, or has
      failed (`True`).
    """

    versions: Mapping[str, date | None] | None
    default_version: str | None
    wait_for_migrations: bool


class DestinationEventProperties(_LoadProperties, total=False):
    """The properties of a destination event: those that it inherits, and its own.

    - `renamed_from`: the event's former name; it keeps the waiting jobs and the history of that.
    - `backfill_schedule`: a cron expression, in UTC. At these times the last `backfill_days` days (1:
      the day before) are replayed: events without a job, or with a discarded one, are loaded.
    - `version`: the version of the destination's API that the function is written for, shown in
      Dagster and available as `batch.version`. A deprecated one warns (`DeprecationWarning`).
    """

    renamed_from: str | None
    backfill_schedule: str | None
    backfill_days: int
    version: str | None


class _DestinationConfig:
    """What a destination and its events have in common; the class's values are the defaults."""

    schedule: Schedule = _schedule.DEFAULT
    retry: RetryPolicy = _schedule.DEFAULT_RETRY
    timeout: timedelta = timedelta(minutes=5)
    batch_size: int = 1000
    owners: tuple[str, ...] = ()
    tags: Mapping[str, str] = MappingProxyType({})
    migrations: Path | tuple[Migration, ...] = ()

    def _configure(self, where: str, own: Mapping[str, Any], parent: _DestinationConfig) -> None:
        self.schedule = inherited(f"{where}: schedule", own.get("schedule"), parent.schedule)
        self.retry = inherited(f"{where}: retry", own.get("retry"), parent.retry)
        timeout = own.get("timeout")
        self.timeout = parent.timeout if timeout is None else duration(f"{where}: timeout", timeout)
        self.batch_size = either(own.get("batch_size"), parent.batch_size)
        checked_number(f"{where}: batch_size", self.batch_size, 1, 1_000_000)
        self.owners = either(checked_owners(where, own.get("owners")), parent.owners)
        self.tags = either(checked_tags(where, own.get("tags")), parent.tags)
        self.migrations = checked_migrations(where, own.get("migrations"))


class DestinationEvent(_DestinationConfig, Generic[T]):
    """What a destination does with a job, made by `Destination.event`.

    It stays callable, with a batch and the connection. A property that was not set is its
    destination's, else the default. Its outcomes can be received like events: `succeeded` (this costs a
    row per job), `failed` (each failed attempt) and `discarded`.
    """

    def __init__(
        self,
        destination: Destination[Any],
        name: str,
        function: Callable[..., None],
        flows: Sequence[Flow[Any]],
        **own: Unpack[DestinationEventProperties],
    ) -> None:
        self.name = checked_name(f"destination {destination.name!r}: event", name)
        self.path = f"{destination.name}/{name}"
        checked_keywords(self.path, own, DestinationEventProperties)
        self.destination = destination
        self.function = function
        self.flows: Mapping[str, Flow[Any]] = MappingProxyType(
            {flow.on.path: flow for flow in _checked_flows(self.path, flows)}
        )
        self._configure(self.path, own, destination)
        schedule = own.get("schedule")
        self.own_schedule = schedule is not None and schedule.interval is not None
        self.version = self._checked_version(own.get("version"))
        self.renamed_from = own.get("renamed_from")
        if self.renamed_from is not None:
            checked_name(f"{self.path}: renamed_from", self.renamed_from)
        backfill = own.get("backfill_schedule")
        self.backfill_schedule = None if backfill is None else checked_cron(self.path, backfill)
        self.backfill_days = own.get("backfill_days", 1)
        checked_number(f"{self.path}: backfill_days", self.backfill_days, 1, 366)
        self.description = function.__doc__
        model = _common_model(self.flows.values())
        self.succeeded: Outcome[T] = Outcome(self.path, "succeeded", model)
        self.failed: Outcome[T] = Outcome(self.path, "failed", model)
        self.discarded: Outcome[T] = Outcome(self.path, "discarded", model)

    @property
    def outcomes(self) -> tuple[Outcome[T], Outcome[T], Outcome[T]]:
        """`succeeded`, `failed` and `discarded`."""
        return self.succeeded, self.failed, self.discarded

    @property
    def deprecated(self) -> date | None:
        """The day since which its `version` is deprecated; `None` if it is not deprecated today."""
        today = datetime.now(UTC).date()
        return self.destination.versions.deprecated_since(self.version, today)

    def retry_delay(self, attempt: int, now: datetime) -> timedelta:
        """How long after `now`, when attempt number `attempt` failed, a job is due again."""
        return self.retry.delay_after(attempt, self.schedule.gap(now))

    def _checked_version(self, version: str | None) -> str | None:
        versions = self.destination.versions
        try:
            return versions.of(self.path, version)
        except Unprocessable as error:
            raise DeclarationError(
                f"{self.path}: its destination has no version {version!r}; write one of "
                f"{', '.join(versions.accepted)}"
            ) from error

    def __call__(self, batch: Batch[T], *connection: Any) -> None:
        self.function(batch, *connection)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path}>"


AnyDestinationEvent: TypeAlias = DestinationEvent[Any]
"""A destination event, whatever its type."""


class _LoadDecorator(Protocol[C_co]):
    """The decorator that `Destination.event` returns."""

    def __call__(self, function: Callable[[Batch[T], C_co], None], /) -> DestinationEvent[T]: ...


class _UnconnectedLoadDecorator(Protocol):
    """The decorator that `event` returns for a destination without `connect`."""

    def __call__(self, function: Callable[[Batch[T]], None], /) -> DestinationEvent[T]: ...


class Destination(_DestinationConfig, Generic[C]):
    """Where events are loaded: a warehouse, a service, a lake.

    - `connect`: opens what a load needs, once per process. The functions receive what it returns, and
      its `close()` is called when the process ends; a generator function that yields once closes after
      its `yield` instead. It is also closed after a function has raised, as the connection may be
      broken: the next load opens another.
    - the others are `DestinationProperties`.

    >>> from blacksmith_dagster import Source
    >>> departed = Source("airport").accept("departed")
    >>> lake = Destination("lake", schedule=Schedule("@every 10m"))
    >>> @lake.event(receives=departed, schedule=Schedule(realtime=True), batch_size=10)
    ... def movements(batch: Batch) -> None:
    ...     print(len(batch))
    >>> movements.schedule
    Schedule(interval='@every 10m', realtime=True)

    Raises `DeclarationError`.
    """

    @overload
    def __init__(
        self: Destination[None],
        name: str,
        *,
        connect: None = None,
        **own: Unpack[DestinationProperties],
    ) -> None: ...
    @overload
    def __init__(
        self, name: str, *, connect: Callable[[], Iterator[C]], **own: Unpack[DestinationProperties]
    ) -> None: ...
    @overload
    def __init__(
        self, name: str, *, connect: Callable[[], C], **own: Unpack[DestinationProperties]
    ) -> None: ...
    def __init__(
        self,
        name: str,
        *,
        connect: Callable[[], Any] | None = None,
        **own: Unpack[DestinationProperties],
    ) -> None:
        where = f"destination {name!r}"
        self.name = checked_name("destination", name)
        checked_keywords(where, own, DestinationProperties)
        self.connect = connect and checked_function(f"{where}: connect", connect, may_yield=True)
        self._configure(where, own, self)  # which has the defaults
        self.versions = (
            checked_versions(where, own.get("versions"), own.get("default_version")) or ANY_VERSION
        )
        self.wait_for_migrations = own.get("wait_for_migrations", True)
        self._events: dict[str, AnyDestinationEvent] = {}

    @property
    def events(self) -> Mapping[str, AnyDestinationEvent]:
        """The destination's events, by name."""
        return self._events

    @overload
    def event(
        self: Destination[None],
        *,
        receives: Receives[Any] | Sequence[Receives[Any]],
        name: str | None = None,
        **own: Unpack[DestinationEventProperties],
    ) -> _UnconnectedLoadDecorator: ...
    @overload
    def event(
        self,
        *,
        receives: Receives[Any] | Sequence[Receives[Any]],
        name: str | None = None,
        **own: Unpack[DestinationEventProperties],
    ) -> _LoadDecorator[C]: ...
    def event(
        self,
        *,
        receives: Receives[Any] | Sequence[Receives[Any]],
        name: str | None = None,
        **own: Unpack[DestinationEventProperties],
    ) -> Any:
        """Declare a destination event: the decorated function loads a batch.

        - `receives`: the events, flows and outcomes whose jobs it loads.
        - `name`: the function's name by default.
        - the others are `DestinationEventProperties`.

        The function is called as `function(batch)`, or `function(batch, connection)` if the
        destination has a `connect`.

        Raises `DeclarationError`.
        """
        received: Any = receives
        if isinstance(receives, str) or not isinstance(receives, Sequence):
            received = [receives]
        flows = [_flow(f"destination {self.name!r}", receivable) for receivable in received]
        arguments = ("batch",) if self.connect is None else ("batch", "connection")

        def declare(function: Callable[..., None]) -> AnyDestinationEvent:
            event_name = getattr(function, "__name__", "") if name is None else name
            checked_function(f"{self.name}/{event_name}", function, *arguments)
            event: AnyDestinationEvent = DestinationEvent(self, event_name, function, flows, **own)
            if event.deprecated is not None:
                warnings.warn(
                    f"{event.path} is written for version {event.version} of its destination, which "
                    f"is deprecated since {event.deprecated}; move it to a later version",
                    DeprecationWarning,
                    stacklevel=2,
                )
            if event.name in self._events:
                raise DeclarationError(
                    f"destination {self.name!r} has two events named {event.name!r}; "
                    "rename one, or give name="
                )
            self._events[event.name] = event
            return event

        return declare

    def migrate(self, migration: Migration, direction: Direction) -> None:
        """Run a migration of this destination or of one of its events; override it to run SQL.

        By default it calls the migration's function, without arguments. The error that it raises is
        stored as the reason for the failure.
        """
        run_function(f"destination {self.name!r}", migration, direction)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


def _flow(where: str, received: Receives[Any]) -> Flow[Any]:
    if isinstance(received, Receivable):
        return Flow(received)
    if isinstance(received, Flow):
        return received
    raise DeclarationError(
        f"{where} receives {received!r}; name an event of a source, a Flow, or an outcome such as "
        "`flights.discarded`"
    )


def _checked_flows(path: str, flows: Sequence[Flow[Any]]) -> Sequence[Flow[Any]]:
    if not flows:
        raise DeclarationError(f"{path} receives nothing; name an event, a flow or an outcome")
    paths = [flow.on.path for flow in flows]
    duplicates = {duplicate for duplicate in paths if paths.count(duplicate) > 1}
    if duplicates:
        raise DeclarationError(
            f"{path} receives {', '.join(sorted(duplicates))} twice; a job is one event for one "
            "destination event: join the two flows, or declare a second destination event"
        )
    return flows


def _common_model(flows: Any) -> Any:
    """The type of an outcome's data: `Any` unless all flows bring the same type."""
    models = [Any if flow.transform else flow.on.model for flow in flows]
    return models[0] if all(model is models[0] for model in models) else Any
