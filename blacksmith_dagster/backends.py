"""Opens what a process's settings name: the store, the supervisor, the broker, the tracking database."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack, closing
from functools import cached_property
from typing import Self

from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pubsub import PubSub, open_pubsub
from blacksmith_dagster.pubsub.notifier import Notifier, Notify
from blacksmith_dagster.settings import Settings
from blacksmith_dagster.store import Store, open_store
from blacksmith_dagster.store.database import Database
from blacksmith_dagster.supervisor import Supervisor, open_supervisor


class Backends:
    """The store, the supervisor and so on of a process, each opened when it is first needed.

    They are closed together, at the end of the `with` block. `upgrade` brings the store's tables up
    to date. Each raises what its `open_...` function raises.
    """

    def __init__(self, settings: Settings, *, upgrade: bool = False) -> None:
        self.settings = settings
        self._upgrade = upgrade
        self._opened = ExitStack()
        self._notifiers: dict[Blacksmith, Notifier] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    @cached_property
    def store(self) -> Store:
        """The store; no application is registered in it yet."""
        store = open_store(self.settings.store_url, upgrade=self._upgrade)
        return self._opened.enter_context(closing(store))

    @cached_property
    def supervisor(self) -> Supervisor:
        """The supervisor: Consul, or the store's own locks."""
        supervisor = open_supervisor(self.settings.supervisor_url, self.store.database)
        return self._opened.enter_context(closing(supervisor))

    @cached_property
    def tracking(self) -> Database:
        """The database that tracks migrations: the store's, unless the settings name another.

        Missing tables are created there.
        """
        if self.settings.wanderer_url is None:
            return self.store.database
        store = open_store(self.settings.wanderer_url, upgrade=True)
        return self._opened.enter_context(closing(store)).database

    @cached_property
    def pubsub(self) -> PubSub | None:
        """The broker; `None` if none is configured, and the schedules serve realtime events too."""
        return open_pubsub(self.settings.pubsub_url, self.settings.store_url)

    def notifier(self, app: Blacksmith) -> Notifier | None:
        """What notifies loaders of the application's new jobs; `None` without a broker."""
        if self.pubsub is None:
            return None
        if app not in self._notifiers:
            notifier = Notifier(app, self.pubsub)
            self._notifiers[app] = self._opened.enter_context(closing(notifier))
        return self._notifiers[app]

    def notify(self, app: Blacksmith) -> Notify:
        """The notifier's `notify`; it does nothing without a broker."""
        notifier = self.notifier(app)
        return notifier.notify if notifier else _ignore

    @property
    def label(self) -> str:
        """Which backends these are, without credentials, as a process prints it when it starts."""
        labels = [f"store {self.store.label}"]
        if self.pubsub is not None:
            labels.append(f"notifications through {self.pubsub.label}")
        if self.settings.supervisor_url:
            labels.append(f"supervisor {self.supervisor.label}")
        return ", ".join(labels)


def _ignore(_: Iterable[str]) -> None:
    """Do nothing: there is no broker to notify loaders through."""
