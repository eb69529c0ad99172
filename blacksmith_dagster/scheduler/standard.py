"""The scheduler that we ship: the lock, the fencing token, and the loader between them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.destination import DestinationEvent
from blacksmith_dagster.pubsub.notifier import Notify
from blacksmith_dagster.scheduler.executor import Executor
from blacksmith_dagster.scheduler.interface import LoadReport, Summary
from blacksmith_dagster.scheduler.loader import Loader
from blacksmith_dagster.store.interface import Lane, Store
from blacksmith_dagster.supervisor import here

if TYPE_CHECKING:
    from blacksmith_dagster.supervisor.interface import Supervisor


class StandardScheduler:
    """Loads a destination event under its lock, `load/<destination>/<event>`.

    Destinations' connections are opened at their first load, and kept for the next until `close` or
    the process's end. `notify` is called with the destination events that have new jobs by the loads'
    outcomes.

    >>> StandardScheduler().load(app, flights, store=store, supervisor=supervisor)  # doctest: +SKIP
    Summary(loads=3, tally=Tally(succeeded=2641, failed=0, discarded=0), skipped=None, stopped=False)
    """

    def __init__(self, notify: Notify = lambda _: None) -> None:
        self._executor = Executor()
        self._notify = notify

    def load(
        self,
        app: Blacksmith,
        event: DestinationEvent[Any],
        *,
        store: Store,
        supervisor: Supervisor,
        run: str | None = None,
        stop: threading.Event | None = None,
        report: Callable[[LoadReport], None] | None = None,
    ) -> Summary:
        """See `Scheduler.load`."""
        key = f"load/{event.path}"
        lease = supervisor.acquire(key, run or here())
        if lease is None:
            return Summary(skipped=f"held by {supervisor.status(key).held_by}")
        with lease:
            token = store.take_over(event.path, Lane.LOAD, lease.id, lease.confirm)
            loader = Loader(
                app,
                event,
                store=store,
                executor=self._executor,
                run=run,
                notify=self._notify,
            )
            return loader.drain(token, lease, stop or threading.Event(), report or (lambda _: None))

    def close(self) -> None:
        """Close the destinations' connections."""
        self._executor.close()
