"""The resource: the application with its store, supervisor and broker, open for a run or a tick."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from dagster import (
    AssetExecutionContext,
    AssetKey,
    ConfigurableResource,
    InitResourceContext,
    OpExecutionContext,
)
from pydantic import Field, PrivateAttr

from blacksmith_dagster.backends import Backends
from blacksmith_dagster.composition import open_scheduler
from blacksmith_dagster.errors import DeclarationError, UsageError
from blacksmith_dagster.logs import set_up_logs_in_dagster
from blacksmith_dagster.orchestration.loads import load_in_run
from blacksmith_dagster.orchestration.replays import ReplayConfig, replay_partitions
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.destination import AnyDestinationEvent
from blacksmith_dagster.pubsub import PubSub
from blacksmith_dagster.scheduler import StandardScheduler, Summary
from blacksmith_dagster.scheduler.replay import Forecast, ReplaySummary
from blacksmith_dagster.settings import Settings
from blacksmith_dagster.store import Store
from blacksmith_dagster.supervisor import Supervisor, here
from blacksmith_dagster.wanderer import CompletedAction, Wanderer

T = TypeVar("T")


class _Bound(NamedTuple):
    """What a resource is bound to: an application, and the asset keys by its events' paths."""

    app: Blacksmith
    keys: Mapping[str, AssetKey]


def _url(description: str) -> Any:
    # Dagster's UI masks such a field, unless it is an `EnvVar`: then it shows the variable's name.
    return Field(None, description=description, json_schema_extra={"dagster__is_secret": True})


class BlacksmithResource(ConfigurableResource["BlacksmithResource"]):
    """The application and its store, supervisor and broker, opened for each run and each tick.

    Each URL is by default that of the environment, which `blacksmith gateway` and the other commands
    read as well. Dagster's UI does not show them, but its database keeps them: give a URL with a
    password as an `EnvVar`.

    - `store_url`: the store; else `BLACKSMITH_STORE_URL`, else SQLite in `BLACKSMITH_HOME`.
    - `pubsub_url`: the broker of notifications; else `BLACKSMITH_PUBSUB_URL`; by default no broker.
    - `supervisor_url`: the supervisor; else `BLACKSMITH_SUPERVISOR_URL`, else the store keeps the locks.
    - `wanderer_url`: what tracks migrations; else `BLACKSMITH_WANDERER_URL`, else the store does.
    - `gateway_url`: what the check `gateway_reachable` asks; else `BLACKSMITH_GATEWAY_URL`, else
      http://127.0.0.1:8420.

    >>> from dagster import EnvVar
    >>> BlacksmithResource(store_url=EnvVar("EVENTS_STORE_URL")).store_url  # the name, no value yet
    'EVENTS_STORE_URL'

    `build_definitions` binds it to the application, and names it `blacksmith`. An op, an asset or a
    sensor of your own can use it as well:

    ```python
    @op
    def flights_now(context: OpExecutionContext, blacksmith: BlacksmithResource) -> None:
        blacksmith.load(context, flights)
    ```
    """

    store_url: str | None = _url("The store. Default: BLACKSMITH_STORE_URL, else SQLite.")
    pubsub_url: str | None = _url("The broker of notifications. Default: BLACKSMITH_PUBSUB_URL.")
    supervisor_url: str | None = _url("The supervisor. Default: BLACKSMITH_SUPERVISOR_URL.")
    wanderer_url: str | None = _url("What tracks migrations. Default: BLACKSMITH_WANDERER_URL.")
    gateway_url: str | None = _url("The gateway. Default: BLACKSMITH_GATEWAY_URL.")

    _bound: _Bound | None = PrivateAttr(default=None)
    _backends: Backends | None = PrivateAttr(default=None)
    _scheduler: StandardScheduler | None = PrivateAttr(default=None)
    _stop: threading.Event = PrivateAttr(default_factory=threading.Event)

    def bind(self, app: Blacksmith, keys: Mapping[str, AssetKey]) -> None:
        """Bind it to an application and its asset keys, by the events' paths.

        Called by `build_definitions`. Raises `DeclarationError` if it is bound to another application.
        """
        if self._bound and self._bound.app is not app:
            raise DeclarationError(
                "this BlacksmithResource belongs to another application; make one for each"
            )
        self._bound = _Bound(app, keys)

    def _with_updated_values(self, values: Mapping[str, Any] | None) -> BlacksmithResource:
        # Dagster opens a copy, which this method makes, and which has no private attributes.
        copy = super()._with_updated_values(values)
        assert isinstance(copy, BlacksmithResource)
        copy._bound = self._bound
        return copy

    @contextmanager
    def yield_for_execution(
        self,
        context: InitResourceContext,  # noqa: ARG002
    ) -> Iterator[BlacksmithResource]:
        """Open the store and the supervisor; called by Dagster.

        Raises `SettingsError`, `SchemaOutdated`, `Unavailable`, and `UsageError` if it is not bound.
        """
        set_up_logs_in_dagster()
        settings = Settings.read(
            store_url=self.store_url,
            pubsub_url=self.pubsub_url,
            supervisor_url=self.supervisor_url,
            wanderer_url=self.wanderer_url,
            gateway_url=self.gateway_url,
        )
        app = self.app
        try:
            with Backends(settings) as backends, open_scheduler(app) as scheduler:
                backends.supervisor  # noqa: B018 - opened now, with the store: an error is raised here
                backends.store.register(app)
                self._backends, self._scheduler = backends, scheduler
                yield self
        finally:
            self._backends = self._scheduler = None

    @property
    def app(self) -> Blacksmith:
        """The application. Raises `UsageError` if the resource is not bound to one."""
        return self._binding.app

    @property
    def asset_keys(self) -> Mapping[str, AssetKey]:
        """The asset keys by the events' paths. Raises `UsageError` if the resource is not bound."""
        return self._binding.keys

    @property
    def _binding(self) -> _Bound:
        if self._bound is None:
            raise UsageError(
                "this BlacksmithResource knows no application: give it to "
                "build_definitions(app, resource=...), or use the one that it makes, 'blacksmith'"
            )
        return self._bound

    @property
    def backends(self) -> Backends:
        """The store, the supervisor and the broker. Raises `UsageError` outside of a run or a tick."""
        return _opened(self._backends)

    @property
    def store(self) -> Store:
        """The open store. Raises `UsageError` outside of a run or a tick."""
        return self.backends.store

    @property
    def supervisor(self) -> Supervisor:
        """The open supervisor. Raises `UsageError` outside of a run or a tick."""
        return self.backends.supervisor

    @property
    def pubsub(self) -> PubSub | None:
        """The broker; `None` without one: the schedules then serve realtime events too.

        Raises `UsageError` outside of a run or a tick, `SettingsError`, and `ImportError` when the
        broker's client is not installed.
        """
        return self.backends.pubsub

    @property
    def scheduler(self) -> StandardScheduler:
        """What drains destination events. Raises `UsageError` outside of a run or a tick."""
        return _opened(self._scheduler)

    def wanderer(
        self,
        *,
        run: str | None = None,
        stop: threading.Event | None = None,
        report: Callable[[CompletedAction], None] = lambda _: None,
    ) -> Wanderer:
        """Migrates the application's sources and destinations; see `Wanderer`.

        Raises `UsageError` outside of a run or a tick, `SettingsError`, `SchemaOutdated`,
        `Unavailable`.
        """
        return Wanderer(
            self.app,
            database=self.store.database,
            supervisor=self.supervisor,
            tracking=self.backends.tracking,
            holder=run or here(),
            run=run,
            stop=stop,
            report=report,
        )

    def load(
        self, context: OpExecutionContext | AssetExecutionContext, event: AnyDestinationEvent
    ) -> Summary:
        """Load everything that is due for a destination event, and report it to the run of `context`.

        Each UTC day's partition is materialized every 30 seconds and at the end, with counts (observed,
        if no job of it succeeded); then the event's checks are evaluated. If another process holds the
        lock, that is not an error: the summary says `skipped`. When the run is terminated, the batch
        under way is finished first.

        Raises `FencedOut` when another process has taken over, `Timeout` when the event's function has
        not returned in time, `RetryRequested` (Dagster's) when a service does not respond, and
        `UsageError` for an event that is not the application's.
        """
        return load_in_run(
            context,
            self.app,
            event,
            self._key(event),
            self.scheduler,
            backends=self.backends,
            stop=self._stop,
        )

    def replay(
        self, context: AssetExecutionContext, event: AnyDestinationEvent, config: ReplayConfig
    ) -> ReplaySummary | Forecast:
        """Load the days that the run of `context` materializes again, as `config` says.

        Each day is materialized at the end, with counts; then the event's checks are evaluated. The
        next launch of the same days continues a replay that was stopped or killed.

        Raises `UsageError` while another run replays some of these days, and what `load` raises.
        """
        return replay_partitions(
            context,
            self.app,
            event,
            self._key(event),
            config,
            self.scheduler,
            backends=self.backends,
            stop=self._stop,
        )

    def _key(self, event: AnyDestinationEvent) -> AssetKey:
        if self.app.destination_events.get(event.path) is not event:
            raise UsageError(
                f"{event.path} is not in this application; add its destination to destinations="
            )
        return self.asset_keys[event.path]


def _opened(part: T | None) -> T:
    if part is None:
        raise UsageError(
            "the store is open only in a run or a tick: in an op, asset, check, sensor or schedule"
        )
    return part
