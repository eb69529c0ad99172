"""The resource: the store, the supervisor and the broker, open for the length of a run or a tick."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from dagster import (
    AssetExecutionContext,
    AssetKey,
    ConfigurableResource,
    InitResourceContext,
    OpExecutionContext,
)
from pydantic import PrivateAttr

from blacksmith_dagster.backends import Backends
from blacksmith_dagster.composition import open_scheduler
from blacksmith_dagster.errors import UsageError
from blacksmith_dagster.orchestration.assets import BlacksmithTranslator, EventData
from blacksmith_dagster.orchestration.loads import load
from blacksmith_dagster.orchestration.replays import ReplayConfig, replay_partitions
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.destination import AnyDestinationEvent
from blacksmith_dagster.pubsub import PubSub
from blacksmith_dagster.pubsub.notifier import Notifier
from blacksmith_dagster.scheduler import StandardScheduler, Summary
from blacksmith_dagster.scheduler.replay import Forecast, ReplaySummary
from blacksmith_dagster.settings import Settings
from blacksmith_dagster.store import Store
from blacksmith_dagster.supervisor import Supervisor, here
from blacksmith_dagster.wanderer import CompletedAction, Wanderer, open_tracking


class BlacksmithResource(ConfigurableResource["BlacksmithResource"]):
    """The store and the supervisor, opened for each run and each tick and closed after it.

    The environment of the process names the supervisor, the broker of notifications and the database
    that tracks migrations.

    - `store_url`: the store's URL. If `None`: `BLACKSMITH_STORE_URL`, else SQLite in
      `BLACKSMITH_HOME`. Dagster shows a resource's configuration: give a URL with a password as
      `EnvVar("WAREHOUSE_STORE")`, never in plain text.

    >>> from dagster import EnvVar
    >>> BlacksmithResource(store_url=EnvVar("EVENTS_STORE_URL")).store_url  # the name, no value yet
    'EVENTS_STORE_URL'

    An op or an asset of your own can load as well:

    ```python
    @op
    def flights_now(context: OpExecutionContext, blacksmith: BlacksmithResource) -> None:
        blacksmith.load(context, application, flights)
    ```
    """

    store_url: str | None = None

    _backends: Backends | None = PrivateAttr(default=None)
    _opened: ExitStack = PrivateAttr(default_factory=ExitStack)
    _schedulers: dict[int, StandardScheduler] = PrivateAttr(default_factory=dict)
    _registered: set[int] = PrivateAttr(default_factory=set)
    _stop: threading.Event = PrivateAttr(default_factory=threading.Event)

    @contextmanager
    def yield_for_execution(
        self,
        context: InitResourceContext,  # noqa: ARG002
    ) -> Iterator[BlacksmithResource]:
        """Open the store and the supervisor; called by Dagster.

        Raises `SettingsError`, `SchemaOutdated`, `Unavailable`.
        """
        try:
            with Backends(self._settings()) as backends, self._opened:
                backends.supervisor  # noqa: B018 - opened now, with the store: an error is raised here
                self._backends = backends
                yield self
        finally:
            self._backends = None
            self._schedulers.clear()

    def _settings(self) -> Settings:
        if not self.store_url:
            return Settings.read()
        urls = map(os.environ.get, ("BLACKSMITH_PUBSUB_URL", "BLACKSMITH_SUPERVISOR_URL"))
        return Settings(Path(), self.store_url, *urls)  # without the default store it needs no home

    @property
    def backends(self) -> Backends:
        """The store, the supervisor and the broker. Raises `UsageError` outside of a run or a tick."""
        if self._backends is None:
            raise UsageError("the store is open only in an op, a sensor or a schedule")
        return self._backends

    def store(self, app: Blacksmith) -> Store:
        """The open store, in which the application is registered.

        Raises `UsageError` outside of a run or a tick.
        """
        store = self.backends.store
        if id(app) not in self._registered:
            store.register(app)
            self._registered.add(id(app))
        return store

    @property
    def supervisor(self) -> Supervisor:
        """The open supervisor. Raises `UsageError` outside of a run or a tick."""
        return self.backends.supervisor

    @property
    def pubsub(self) -> PubSub | None:
        """The broker that `BLACKSMITH_PUBSUB_URL` names.

        `None` if the variable is not set; the schedules then serve realtime events too.

        Raises `SettingsError`, and `ImportError` when the broker's client is not installed.
        """
        return self.backends.pubsub

    def scheduler(self, app: Blacksmith) -> StandardScheduler:
        """The application's scheduler, its own or the standard one, until the run ends."""
        if id(app) not in self._schedulers:
            self._schedulers[id(app)] = self._opened.enter_context(open_scheduler(app))
        return self._schedulers[id(app)]

    def notifier(self, app: Blacksmith) -> Notifier | None:
        """Notifies loaders of new jobs of realtime events, until the run or the tick ends.

        `None` without a broker.
        """
        return self.backends.notifier(app)

    @contextmanager
    def wanderer(
        self,
        app: Blacksmith,
        *,
        run: str | None = None,
        stop: threading.Event | None = None,
        report: Callable[[CompletedAction], None] = lambda _: None,
    ) -> Iterator[Wanderer]:
        """Migrates the application's sources and destinations; see `Wanderer`.

        Migrations are tracked where `BLACKSMITH_WANDERER_URL` says, by default in the store.

        Raises `UsageError` outside of a run or a tick, `SettingsError`, `SchemaOutdated`,
        `Unavailable`.
        """
        store = self.store(app)
        with open_tracking(os.environ.get("BLACKSMITH_WANDERER_URL"), store) as tracking:
            yield Wanderer(
                app,
                store=store,
                supervisor=self.supervisor,
                tracking=tracking,
                holder=run or here(),
                run=run,
                stop=stop,
                report=report,
            )

    def load(
        self,
        context: OpExecutionContext | AssetExecutionContext,
        app: Blacksmith,
        event: AnyDestinationEvent,
        *,
        translator: BlacksmithTranslator | None = None,
    ) -> Summary:
        """Load everything that is due for a destination event, and report it to the run of `context`.

        Each UTC day's partition is materialized every 30 seconds and at the end, with counts; then
        the event's checks are evaluated. If another process holds the lock, that is not an error: the
        summary says `skipped`. When the run is terminated, the batch under way is finished first.

        Raises `FencedOut` when another process has taken over, `Timeout` when the event's function has
        not returned in time, `RetryRequested` (Dagster's) when a service does not respond.
        """
        self.store(app)  # registers the application
        return load(
            context,
            app,
            event,
            _key(app, event, translator),
            self.scheduler(app),
            backends=self.backends,
            stop=self._stop,
        )

    def replay(
        self,
        context: AssetExecutionContext,
        app: Blacksmith,
        event: AnyDestinationEvent,
        config: ReplayConfig,
        *,
        translator: BlacksmithTranslator | None = None,
    ) -> ReplaySummary | Forecast:
        """Load the days that the run of `context` materializes again, as `config` says.

        Each day is materialized at the end, with counts; then the event's checks are evaluated. The
        next launch of the same days continues a replay that was stopped or killed.

        Raises `UsageError` while another run replays some of these days, and what `load` raises.
        """
        self.store(app)  # registers the application
        return replay_partitions(
            context,
            app,
            event,
            _key(app, event, translator),
            config,
            self.scheduler(app),
            backends=self.backends,
            stop=self._stop,
        )


def _key(
    app: Blacksmith, event: AnyDestinationEvent, translator: BlacksmithTranslator | None
) -> AssetKey:
    data = EventData(app, event, datetime.now(UTC).date())  # the key does not depend on the date
    return (translator or BlacksmithTranslator()).get_asset_spec(data).key
