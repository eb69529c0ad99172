"""Where events are loaded."""

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
    checked_function,
    checked_name,
    checked_owners,
    checked_tags,
    duration,
)
from blacksmith_dagster.pipeline.versions import ANY, checked_versions

T = TypeVar("T")
C = TypeVar("C")
C_co = TypeVar("C_co", covariant=True)

DEFAULT_BATCH = 1000
DEFAULT_TIMEOUT = "5m"


class DestinationEvent(Generic[T]):
    """What a destination does with a job, made by `Destination.event`.

    It stays callable, with a batch and what `connect` returned. Its properties are its own where
    they were given, else its destination's, else the defaults. Its outcomes can be received like
    events: `succeeded` (a job each: it costs a row per job), `failed` (each failed attempt),
    `discarded`.

    `version` is the one of its destination's API that it is written for, `deprecated` the day since
    when that is going away; both may be `None`.
    """

    def __init__(
        self,
        destination: Destination[Any],
        name: str,
        function: Callable[..., None],
        flows: Sequence[Flow[Any]],
        schedule: Schedule | None,
        timeout: str | None,
        batch: int | None,
        owners: Sequence[str] | None,
        tags: Mapping[str, str] | None,
        renamed_from: str | None,
        backfill: str | None,
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
        self.batch = _batch(self.path, batch) if batch is not None else destination.batch
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
        self.backfill = None if backfill is None else checked_cron(self.path, backfill)
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

    - `connect`: opens what a load needs, once per process. What it returns is handed to the
      functions and closed at the process's end by its `close()`; a generator function that yields
      once closes after the `yield` instead. After a function that raised it is closed too, for it
      may have broken: the next load opens another.
    - `schedule`: see `Schedule`.
    - `timeout`: of one load (5 minutes): past it the load is `unknown` and its late results count
      for nothing.
    - `batch`: how many jobs a load holds at most (1000).
    - `owners` (e-mail addresses or `team:name`) and `tags`: shown in Dagster.
    - `versions`: of the destination's API, each with the day from which it is deprecated, or `None`;
      `default_version`: what an event is written for that names none.
    - `migrations`: of the destination's own schema; see `migrate`. Each event may have some beside
      them.
    - `wait_for_migrations`: while a migration has not run, or has failed, the jobs of all its events
      wait (`True`).

    Each event inherits the others and may give its own.

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
        batch: int | None = None,
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
        batch: int | None = None,
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
        batch: int | None = None,
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
        batch: int | None = None,
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
        self.batch = _batch(where, DEFAULT_BATCH if batch is None else batch)
        self.owners = checked_owners(where, owners) or ()
        self.tags = checked_tags(where, tags) or {}
        self.versions = checked_versions(where, versions, default_version) or ANY
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
        batch: int | None = None,
        owners: Sequence[str] | None = None,
        tags: Mapping[str, str] | None = None,
        renamed_from: str | None = None,
        backfill: str | None = None,
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
        batch: int | None = None,
        owners: Sequence[str] | None = None,
        tags: Mapping[str, str] | None = None,
        renamed_from: str | None = None,
        backfill: str | None = None,
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
        batch: int | None = None,
        owners: Sequence[str] | None = None,
        tags: Mapping[str, str] | None = None,
        renamed_from: str | None = None,
        backfill: str | None = None,
        backfill_days: int = 1,
        version: str | None = None,
        migrations: Migrations | None = None,
    ) -> Any:
        """Make a destination event of a function that loads a batch.

        - `receives`: the events, flows and outcomes whose jobs it loads.
        - `name`: the function's, unless given.
        - `renamed_from`: the event's earlier name, so that its waiting jobs and its history stay.
        - `backfill`: a cron expression, in UTC: then the last `backfill_days` days (the day before
          alone, by default) are replayed: what has no job or was discarded is loaded again.
        - `version`: of the destination's API that the function is written for, shown in Dagster and
          told to it as `batch.version`. A deprecated one warns (`DeprecationWarning`).
        - `migrations`: the event's own, run as its destination runs them.

        The function is called as `function(batch)`, or `function(batch, connection)` if the
        destination has a `connect`.

        Raises `DeclarationError`.
        """
        received: Any = receives
        if isinstance(receives, str) or not isinstance(receives, Sequence):
            received = [receives]
        flows = [_flow(f"destination {self.name!r}", each) for each in received]
        given = ("batch",) if self.connect is None else ("batch", "connection")

        def declare(function: Callable[..., None]) -> AnyDestinationEvent:
            named = getattr(function, "__name__", "") if name is None else name
            event: AnyDestinationEvent = DestinationEvent(
                self,
                named,
                checked_function(f"{self.name}/{named}", function, *given),
                flows,
                schedule,
                timeout,
                batch,
                owners,
                tags,
                renamed_from,
                backfill,
                backfill_days,
                self._version(f"{self.name}/{named}", version),
                migrations,
            )
            if event.deprecated is not None:
                warnings.warn(
                    f"{event.path} is written for version {event.version} of its destination, which "
                    f"is deprecated since {event.deprecated}; move it to a later one",
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

        As it stands it calls the migration's function, without arguments. What it raises is kept as
        the reason of the failure.
        """
        run_function(f"destination {self.name!r}", migration, direction)

    def _version(self, path: str, version: str | None) -> str | None:
        try:
            return self.versions.of(path, version)
        except Unprocessable as error:
            raise DeclarationError(
                f"{path}: version={version!r} is none of its destination's; write one of "
                f"{', '.join(self.versions.known)}"
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
    twice = {each for each in paths if paths.count(each) > 1}
    if twice:
        raise DeclarationError(
            f"{path} receives {', '.join(sorted(twice))} twice; a job is one event for one "
            "destination event: join the two flows, or declare a second destination event"
        )
    return flows


def _common_model(flows: Any) -> Any:
    """What an outcome's data is decoded into: known only if all flows bring the same type."""
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


def _batch(where: str, jobs: int) -> int:
    if not (isinstance(jobs, int) and 1 <= jobs <= 1_000_000):
        raise DeclarationError(f"{where}: batch={jobs!r}: write a number of jobs from 1 to 1000000")
    return jobs
