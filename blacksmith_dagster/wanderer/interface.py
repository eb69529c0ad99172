"""What migrates sources, destinations and their events. A team can write its own."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from enum import Enum
from typing import Protocol

import msgspec


class MigrationState(Enum):
    """What became of a migration: its last transition."""

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
    """What is asked for.

    - `scopes`: `destination:warehouse`, `d/e:warehouse/flights` and so on; all if empty.
    - `version`: run up to this one, roll back down to this one (which stays), acknowledge or discard
      up to this one. `None`: run all; a rollback must give it (0: everything).
    - `discard`: what is acknowledged, or rolled back, shall never run (again).
    - `dry_run`: only plan.
    - `out_of_order`: also run what is older than a migration that has run.
    """

    scopes: Sequence[str] = ()
    version: int | None = None
    discard: bool = False
    dry_run: bool = False
    out_of_order: bool = False


class MigrationAction(msgspec.Struct, frozen=True):
    """One thing to do with a migration. `what` is 'acknowledge', 'up', 'down' or 'discard'; `sql` is
    what it runs, `None` for a function and where nothing runs."""

    what: str
    scope: str
    version: int
    name: str
    sql: str | None = None


class CompletedAction(msgspec.Struct, frozen=True):
    """An action that was done, or has failed with `error`; `seconds` is how long it took."""

    action: MigrationAction
    state: MigrationState
    seconds: float = 0.0
    error: str | None = None


class MigrationReport(msgspec.Struct, frozen=True):
    """What a call planned, and what it did: nothing if it was a dry run.

    `error` says why the rest was not done: a migration failed, or the call was asked to stop.
    """

    planned: Sequence[MigrationAction]
    done: Sequence[CompletedAction] = ()
    error: str | None = None


class MigrationStatus(msgspec.Struct, frozen=True):
    """A migration as it stands. `state` is `None` if it is declared and not acknowledged yet;
    `declared` is false if it was acknowledged and the code has it no more."""

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
    """Migrates the targets of an application, one run at a time on each.

    Each call may raise `MigrationError` (it says which files or migrations and what to do; nothing
    was run), `MigrationLocked` when another run has the target, `FencedOut` when another has taken
    over, and `Unavailable`. A call that is asked to stop finishes the migration under way.
    """

    def ack(self, request: MigrationRequest) -> MigrationReport:
        """Acknowledge what is new, or `discard` what has not run: it never will."""
        ...

    def run(self, request: MigrationRequest) -> MigrationReport:
        """Acknowledge what is new, and run what has not run, oldest to newest across scopes."""
        ...

    def rollback(self, request: MigrationRequest) -> MigrationReport:
        """Roll back what is newer than `request.version`, newest to oldest across scopes."""
        ...

    def repair(self, scope: str, version: int, *, applied: bool) -> CompletedAction:
        """Record what is true of a migration that was interrupted, has failed, or was acknowledged and
        done by hand: whether its effect is there."""
        ...

    def status(self, scopes: Sequence[str] = ()) -> Sequence[MigrationStatus]:
        """Every migration, in the order in which they run."""
        ...

    def waits_for(self, destination: str) -> str | None:
        """Which migration of a destination (its name) keeps it from being loaded, and what to do;
        `None` if it is up to date."""
        ...
