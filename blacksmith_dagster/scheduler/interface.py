"""What loads a destination event, and what it tells of it. A team can write its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from datetime import date
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

if TYPE_CHECKING:
    from blacksmith_dagster.pipeline.application import Blacksmith
    from blacksmith_dagster.pipeline.destination import DestinationEvent
    from blacksmith_dagster.store.interface import Store
    from blacksmith_dagster.supervisor.interface import Supervisor


class Tally(msgspec.Struct, frozen=True):
    """How many jobs ended how. `failed` counts attempts that will be repeated."""

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
    """One load that has been recorded: its jobs per UTC day of `received_at`.

    `seconds` is how long the destination event's function took; `error` the first error, if any.
    """

    load_id: int
    days: Mapping[date, Tally]
    seconds: float
    attempt: int
    error: str | None = None


class Summary(msgspec.Struct, frozen=True):
    """What a call of `Scheduler.load` did.

    `skipped` says why nothing (more) was done: the lock is held by another, or the destination waits
    for a migration. It is `None` if all that was due was loaded;
    `stopped` is true when it was asked to stop before everything due was loaded.
    """

    loads: int = 0
    tally: Tally = Tally()
    skipped: str | None = None
    stopped: bool = False


class Scheduler(Protocol):
    """Loads what is due of a destination event."""

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
        """Load until nothing is due, or until `stop` is set (the load under way is finished).

        `run` names the Dagster run in the history; `report` is called after each recorded load, in
        the caller's thread.

        Raises `FencedOut` when another took over, `CodeOutdated` when the destination was migrated
        beyond this code, `Timeout` when a load ran past its time-out and its function has not returned
        (end the process), `Unavailable` when the store or the supervisor does not respond.
        """
        ...
