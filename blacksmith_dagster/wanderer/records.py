"""The requests to a wanderer, and its reports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from enum import Enum
from itertools import zip_longest

import msgspec


class MigrationState(Enum):
    """The state of a migration: its last transition."""

    ACKNOWLEDGED = "acknowledged"
    EXECUTING_UP = "executing(up)"
    SUCCEEDED_UP = "succeeded(up)"
    FAILED_UP = "failed(up)"
    EXECUTING_DOWN = "executing(down)"
    SUCCEEDED_DOWN = "succeeded(down)"
    FAILED_DOWN = "failed(down)"
    DISCARDED = "discarded"
    INTERRUPTED = "interrupted"


class MigrationRequest(msgspec.Struct, frozen=True):
    """Which migrations to run, roll back, acknowledge or discard.

    - `scopes`: `destination:warehouse`, `d/e:warehouse/flights` and so on; all if empty.
    - `version`: run, acknowledge or discard up to this version; roll back to this version, which
      stays. `None` stands for all; a rollback needs a version (0 rolls back everything).
    - `discard`: the acknowledged, or rolled back, migrations never run (again).
    - `dry_run`: only plan.
    - `out_of_order`: also run migrations that are older than one that has run.
    """

    scopes: Sequence[str] = ()
    version: int | None = None
    discard: bool = False
    dry_run: bool = False
    out_of_order: bool = False


class MigrationAction(msgspec.Struct, frozen=True):
    """One step of a plan. `what` is 'acknowledge', 'up', 'down' or 'discard'; `sql` is the SQL that it
    runs, `None` if it runs a function or nothing."""

    what: str
    scope: str
    version: int
    name: str
    sql: str | None = None

    def __str__(self) -> str:
        return f"{self.scope} {self.version} {self.name}"


class CompletedAction(msgspec.Struct, frozen=True):
    """An action that has ended, with its `error` if it failed; `seconds` is how long it took."""

    action: MigrationAction
    state: MigrationState
    seconds: float = 0.0
    error: str | None = None


class MigrationReport(msgspec.Struct, frozen=True):
    """The planned actions of a call, and those that it did: none in a dry run.

    `error` says why the rest was not done: a migration failed, or the call was stopped.
    """

    planned: Sequence[MigrationAction]
    done: Sequence[CompletedAction] = ()
    error: str | None = None

    def rows(self) -> Iterator[Mapping[str, str | float | None]]:
        """A row for each planned action, with its state."""
        for action, done in zip_longest(self.planned, self.done):
            yield {
                "scope": action.scope,
                "version": str(action.version),
                "name": action.name,
                "action": action.what,
                "state": done.state.value if done else "not done" if self.error else "planned",
                "seconds": round(done.seconds, 3) if done and done.seconds else None,
                "error": done.error if done else None,
            }

    def sql(self) -> str:
        """The SQL of the planned actions, each after a comment that names it."""
        return "\n\n".join(
            f"-- {action} ({action.what})\n{action.sql.strip()}"
            for action in self.planned
            if action.sql is not None
        )


class MigrationStatus(msgspec.Struct, frozen=True):
    """A migration and its state. `state` is `None` if it is declared but not acknowledged yet;
    `declared` is false if it was acknowledged but the code no longer declares it."""

    scope: str
    version: int
    name: str
    state: MigrationState | None
    declared: bool
    at: datetime | None = None
    by: str | None = None
    run: str | None = None
    error: str | None = None
