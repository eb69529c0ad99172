"""The interface of a wanderer, with its requests and reports. A team can write its own."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from enum import Enum
from typing import Protocol

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


class Wanderer(Protocol):
    """Migrates the targets of an application, with one run at a time per target.

    Each call may raise `MigrationError` (it names the files or migrations and what to do; nothing was
    run), `MigrationLocked` if another run holds the target, `FencedOut` if another run has taken it
    over, and `Unavailable`. A call that is stopped finishes the current migration.
    """

    def ack(self, request: MigrationRequest) -> MigrationReport:
        """Acknowledge the new migrations; with `discard`, discard all that have not run."""
        ...

    def run(self, request: MigrationRequest) -> MigrationReport:
        """Acknowledge the new migrations, and run all that have not run, oldest first across scopes."""
        ...

    def rollback(self, request: MigrationRequest) -> MigrationReport:
        """Roll back the migrations after `request.version`, newest first across scopes."""
        ...

    def repair(self, scope: str, version: int, *, applied: bool) -> CompletedAction:
        """Record whether a migration that was interrupted, has failed or was done by hand is applied."""
        ...

    def status(self, scopes: Sequence[str] = ()) -> Sequence[MigrationStatus]:
        """All migrations, in the order in which they run."""
        ...

    def waits_for(self, destination: str) -> str | None:
        """The migration that pauses the loads of a destination, and what to do; `None` if it is up to
        date."""
        ...
