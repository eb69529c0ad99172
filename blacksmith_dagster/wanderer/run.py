"""Running migrations under their targets' locks, with the destinations' gates shut."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.settings import Settings
from blacksmith_dagster.store import Store
from blacksmith_dagster.supervisor.interface import Supervisor
from blacksmith_dagster.wanderer.interface import Done, Report, Request, Status


@contextmanager
def open_tracking(settings: Settings, store: Store) -> Iterator[Store]:
    """Where migrations are tracked: the store, unless `BLACKSMITH_WANDERER_URL` names another."""
    raise NotImplementedError


class StandardWanderer:
    """The wanderer that we ship; see `Wanderer`.

    - `tracking`: the store that tracks migrations; `store` itself if `None`.
    - `owner`, `run`: who does it, for people and for the history; `run` is the Dagster run's id.
    - `stop`: once set, the migration under way is finished, and no other begun.
    - `report`: called after each action that was done.
    """

    def __init__(
        self,
        app: Blacksmith,
        *,
        store: Store,
        supervisor: Supervisor,
        tracking: Store | None = None,
        owner: str,
        run: str | None = None,
        stop: threading.Event | None = None,
        report: Callable[[Done], None] = lambda _: None,
    ) -> None: ...

    def ack(self, request: Request) -> Report:
        """See `Wanderer.ack`."""
        raise NotImplementedError

    def run(self, request: Request) -> Report:
        """See `Wanderer.run`."""
        raise NotImplementedError

    def rollback(self, request: Request) -> Report:
        """See `Wanderer.rollback`."""
        raise NotImplementedError

    def repair(self, scope: str, version: int, *, applied: bool) -> Done:
        """See `Wanderer.repair`."""
        raise NotImplementedError

    def status(self, scopes: Sequence[str] = ()) -> Sequence[Status]:
        """See `Wanderer.status`."""
        raise NotImplementedError

    def behind(self, destination: str) -> str | None:
        """See `Wanderer.behind`."""
        raise NotImplementedError
