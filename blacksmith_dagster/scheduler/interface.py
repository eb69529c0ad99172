"""The interface of a scheduler, which loads destination events, and what it reports."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from datetime import date
from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from blacksmith_dagster.pipeline.application import Blacksmith
    from blacksmith_dagster.pipeline.destination import AnyDestinationEvent
    from blacksmith_dagster.store.interface import Store
    from blacksmith_dagster.supervisor.interface import Supervisor


class Tally(msgspec.Struct, frozen=True):
    """Numbers of jobs, by how their attempt ended. `failed` attempts will be repeated."""

    succeeded: int = 0
    failed: int = 0
    discarded: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.succeeded + other.succeeded,
            self.failed + other.failed,
            self.discarded + other.discarded,
        )


class LoadReport(msgspec.Struct, frozen=True):
    """One recorded load, with a tally for each UTC day of its events' `received_at`.

    `seconds` is how long the destination event's function took; `error` is the first error, if any.
    """

    load_id: int
    days: Mapping[date, Tally]
    seconds: float
    attempt: int
    error: str | None = None


class Summary(msgspec.Struct, frozen=True):
    """What a call of `Scheduler.load` did.

    `skipped` says why it loaded nothing (more): another holder has the lock, or the destination waits
    for a migration. It is `None` if everything due was loaded. `stopped` is true if it was stopped
    before everything due was loaded.
    """

    loads: int = 0
    tally: Tally = Tally()
    skipped: str | None = None
    stopped: bool = False


class Scheduler(Protocol):
    """Loads what is due of a destination event. A team can write its own."""

    def load(
        self,
        app: Blacksmith,
        event: AnyDestinationEvent,
        *,
        store: Store,
        supervisor: Supervisor,
        run: str | None = None,
        stop: threading.Event | None = None,
        report: Callable[[LoadReport], None] | None = None,
    ) -> Summary:
        """Load until nothing is due, or until `stop` is set (the load under way is finished).

        `run` names the Dagster run in the history; `report` is called after each recorded load, in
        the caller's thread.

        Raises `FencedOut` when another process took over, `CodeOutdated` when the destination was
        migrated beyond this code, `Timeout` when a load ran past its time-out and its function has not
        returned (end the process), `Unavailable` when the store or the supervisor does not respond.
        """
        ...
