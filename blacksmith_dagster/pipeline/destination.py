"""Destinations, where events are loaded, and their destination events."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from types import MappingProxyType
from typing import Any, Generic, Protocol, TypeAlias, TypeVar, overload

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
from blacksmith_dagster.pipeline.schedule import Schedule, checked_cron
from blacksmith_dagster.pipeline.validation import (
    ANY_VERSION,
    checked_function,
    checked_name,
    checked_owners,
    checked_tags,
    checked_versions,
    duration,
)

T = TypeVar("T")
C = TypeVar("C")
C_co = TypeVar("C_co", covariant=True)

DEFAULT_BATCH_SIZE = 1000
DEFAULT_TIMEOUT = "5m"


class DestinationEvent(Generic[T]):
    """What a destination does with a job, made by `Destination.event`.

    It stays callable, with a batch and the connection. A property that was not set is its
    destination's, else the default. Its outcomes can be received like events: `succeeded` (this costs a
    row per job), `failed` (each failed attempt) and `discarded`.

    `version` is the version of its destination's API that it is written for, `deprecated` the day from
    which that version is deprecated; both may be `None`.
    """

    def __init__(
        self,
        destination: Destination[Any],
        name: str,
        function: Callable[..., None],
        flows: Sequence[Flow[Any]],
        *,
        schedule: Schedule | None,
        timeout: str | None,
        batch_size: int | None,
        owners: Sequence[str] | None,
        tags: Mapping[str, str] | None,
        renamed_from: str | None,
        backfill_schedule: str | None,
        backfill_days: int,
        version: str | None,
        migrations: Migrations | None,
    ) -> None:
        where = f"destination {destination.name!r}: event"
        self.destination = destination
        self.name = checked_name(where, name)
        self.path = f"{destination.name}/{name}"
        self.function = function
        self.flows: Mapping[str, Flow[Any]] = MappingProxyType(
            {flow.on.path: flow for flow in _checked_flows(self.path, flows)}
        )
        self.own_schedule = schedule is not None and schedule.interval is not None
        self.schedule = (schedule or Schedule()).inherit(destination.schedule)
        self.timeout = destination.timeout if timeout is None else _timeout(self.path, timeout)
        self.batch_size = (
            _batch_size(self.path, batch_size) if batch_size is not None else destination.batch_size
        )
        self.owners = (
            destination.owners if owners is None else checked_owners(self.path, owners) or ()
        )
        self.tags = destination.tags if tags is None else checked_tags(self.path, tags) or {}
        self.version = version
        today = datetime.now(UTC).date()
        self.deprecated = destination.versions.deprecated_since(version, today)
        self.migrations = checked_migrations(self.path, migrations)
        self.renamed_from = renamed_from
        if renamed_from is not None:
            checked_name(f"{self.path}: renamed_from", renamed_from)
        self.backfill_schedule = (
            None if backfill_schedule is None else checked_cron(self.path, backfill_schedule)
        )
        self.backfill_days = _backfill_days(self.path, backfill_days)
        self.description = function.__doc__
        model = _common_model(self.flows.values())
        self.succeeded: Outcome[T] = Outcome(self.path, "succeeded", model)
        self.failed: Outcome[T] = Outcome(self.path, "failed", model)
        self.discarded: Outcome[T] = Outcome(self.path, "discarded", model)

    @property
    def outcomes(self) -> tuple[Outcome[T], Outcome[T], Outcome[T]]:
        """`succeeded`, `failed` and `discarded`."""
        return self.succeeded, self.failed, self.discarded

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


class Destination(Generic[C]):
    """Where events are loaded: a warehouse, a service, a lake.

    - `connect`: opens what a load needs, once per process. The functions receive what it returns, and
      its `close()` is called when the process ends; a generator function that yields once closes after
      its `yield` instead. It is also closed after a function has raised, as the connection may be
      broken: the next load opens another.
    - `schedule`: see `Schedule`.
    - `timeout`: how long a load may take (5 minutes). After that the load is `unknown`, and its late
      results are ignored.
    - `batch_size`: the most jobs that a load holds (1000).
    - `owners` (e-mail addresses or `team:name`) and `tags`: shown in Dagster.
    - `versions`: the versions of the destination's API, each with the day from which it is deprecated,
      or `None`.
    - `default_version`: the version of an event that names none.
    - `migrations`: the migrations of the destination's own schema; see `migrate`. An event may have
      its own in addition.
    - `wait_for_migrations`: the jobs of all its events wait while a migration has not run, or has
      failed (`True`).

    Each event inherits the other properties, and may override each.

    >>> from blacksmith_dagster import Source
    >>> departed = Source("airport").accept("departed")
    >>> lake = Destination("lake", schedule=Schedule("@every 10m"))
    >>> @lake.event(receives=departed, schedule=Schedule(max_retries=3))
    ... def movements(batch: Batch) -> None:
    ...     print(len(batch))
    >>> movements.schedule
    Schedule(interval='@every 10m', realtime=False, max_retries=3, backoff=None)
    """

    @overload
    def __init__(
        self: Destination[None],
        name: str,
        *,
        connect: None = None,
        schedule: Schedule | None = None,
        timeout: str | None = None,
        batch_size: int | None = None,
        owners: Sequence[str] = (),
        tags: Mapping[str, str] | None = None,
        versions: Mapping[str, date | None] | None = None,
        default_version: str | None = None,
        migrations: Migrations | None = None,
        wait_for_migrations: bool = True,
    ) -> None: ...
    @overload
    def __init__(
        self,
        name: str,
        *,
        connect: Callable[[], Iterator[C]],
        schedule: Schedule | None = None,
        timeout: str | None = None,
        batch_size: int | None = None,
        owners: Sequence[str] = (),
        tags: Mapping[str, str] | None = None,
        versions: Mapping[str, date | None] | None = None,
        default_version: str | None = None,
        migrations: Migrations | None = None,
        wait_for_migrations: bool = True,
    ) -> None: ...
    @overload
    def __init__(
        self,
        name: str,
        *,
        connect: Callable[[], C],
        schedule: Schedule | None = None,
        timeout: str | None = None,
        batch_size: int | None = None,
        owners: Sequence[str] = (),
        tags: Mapping[str, str] | None = None,
        versions: Mapping[str, date | None] | None = None,
        default_version: str | None = None,
        migrations: Migrations | None = None,
        wait_for_migrations: bool = True,
    ) -> None: ...
    def __init__(
        self,
        name: str,
        *,
        connect: Callable[[], Any] | None = None,
        schedule: Schedule | None = None,
        timeout: str | None = None,
        batch_size: int | None = None,
        owners: Sequence[str] = (),
        tags: Mapping[str, str] | None = None,
        versions: Mapping[str, date | None] | None = None,
        default_version: str | None = None,
        migrations: Migrations | None = None,
        wait_for_migrations: bool = True,
    ) -> None:
        where = f"destination {name!r}"
        self.name = checked_name("destination", name)
        self.connect = connect and checked_function(f"{where}: connect", connect, may_yield=True)
        self.schedule = (schedule or Schedule()).inherit(_schedule.DEFAULT)
        self.timeout = _timeout(where, DEFAULT_TIMEOUT if timeout is None else timeout)
        self.batch_size = _batch_size(
            where, DEFAULT_BATCH_SIZE if batch_size is None else batch_size
        )
        self.owners = checked_owners(where, owners) or ()
        self.tags = checked_tags(where, tags) or {}
        self.versions = checked_versions(where, versions, default_version) or ANY_VERSION
        self.migrations = checked_migrations(where, migrations)
        self.wait_for_migrations = wait_for_migrations
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
        schedule: Schedule | None = None,
        timeout: str | None = None,
        batch_size: int | None = None,
        owners: Sequence[str] | None = None,
        tags: Mapping[str, str] | None = None,
        renamed_from: str | None = None,
        backfill_schedule: str | None = None,
        backfill_days: int = 1,
        version: str | None = None,
        migrations: Migrations | None = None,
    ) -> _UnconnectedLoadDecorator: ...
    @overload
    def event(
        self,
        *,
        receives: Receives[Any] | Sequence[Receives[Any]],
        name: str | None = None,
        schedule: Schedule | None = None,
        timeout: str | None = None,
        batch_size: int | None = None,
        owners: Sequence[str] | None = None,
        tags: Mapping[str, str] | None = None,
        renamed_from: str | None = None,
        backfill_schedule: str | None = None,
        backfill_days: int = 1,
        version: str | None = None,
        migrations: Migrations | None = None,
    ) -> _LoadDecorator[C]: ...
    def event(
        self,
        *,
        receives: Receives[Any] | Sequence[Receives[Any]],
        name: str | None = None,
        schedule: Schedule | None = None,
        timeout: str | None = None,
        batch_size: int | None = None,
        owners: Sequence[str] | None = None,
        tags: Mapping[str, str] | None = None,
        renamed_from: str | None = None,
        backfill_schedule: str | None = None,
        backfill_days: int = 1,
        version: str | None = None,
        migrations: Migrations | None = None,
    ) -> Any:
        """Declare a destination event: the decorated function loads a batch.

        - `receives`: the events, flows and outcomes whose jobs it loads.
        - `name`: the function's name by default.
        - `renamed_from`: the event's former name; it keeps the waiting jobs and the history of that.
        - `backfill_schedule`: a cron expression, in UTC. At these times the last `backfill_days` days
          (1: the day before) are replayed: events without a job, or with a discarded one, are loaded.
        - `version`: the version of the destination's API that the function is written for, shown in
          Dagster and available as `batch.version`. A deprecated one warns (`DeprecationWarning`).
        - `migrations`: the event's own, run as its destination runs them.

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
            path = f"{self.name}/{event_name}"
            event: AnyDestinationEvent = DestinationEvent(
                self,
                event_name,
                checked_function(path, function, *arguments),
                flows,
                schedule=schedule,
                timeout=timeout,
                batch_size=batch_size,
                owners=owners,
                tags=tags,
                renamed_from=renamed_from,
                backfill_schedule=backfill_schedule,
                backfill_days=backfill_days,
                version=self._version(path, version),
                migrations=migrations,
            )
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

    def _version(self, path: str, version: str | None) -> str | None:
        try:
            return self.versions.of(path, version)
        except Unprocessable as error:
            raise DeclarationError(
                f"{path}: its destination has no version {version!r}; write one of "
                f"{', '.join(self.versions.accepted)}"
            ) from error

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


def _timeout(where: str, text: str) -> timedelta:
    return duration(f"{where}: timeout", text)


def _backfill_days(where: str, days: int) -> int:
    if not (isinstance(days, int) and 1 <= days <= 366):
        raise DeclarationError(
            f"{where}: backfill_days={days!r}: write a number of days from 1 to 366"
        )
    return days


def _batch_size(where: str, jobs: int) -> int:
    if not (isinstance(jobs, int) and 1 <= jobs <= 1_000_000):
        raise DeclarationError(
            f"{where}: batch_size={jobs!r}: write a number of jobs from 1 to 1000000"
        )
    return jobs
