"""Plans which migrations to run, from the declared and the tracked ones. Reads only their files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from blacksmith_dagster.errors import MigrationError
from blacksmith_dagster.pipeline.migration import Direction, Migration
from blacksmith_dagster.wanderer.files import target_of
from blacksmith_dagster.wanderer.records import MigrationAction, MigrationRequest, MigrationState


class TrackedMigration(NamedTuple):
    """A tracked migration with its last transition."""

    scope: str
    version: int
    name: str
    checksum: str | None
    state: MigrationState
    at: datetime | None = None
    by: str | None = None
    run: str | None = None
    error: str | None = None

    def __str__(self) -> str:
        return f"{self.version} {self.name} of {self.scope}"


class PlannedAction(NamedTuple):
    """An action, and its migration.

    `is_new`: the migration is not tracked yet. `discard`: it is discarded after it was rolled back.
    """

    action: MigrationAction
    migration: Migration
    is_new: bool = False
    discard: bool = False


APPLIED = frozenset({MigrationState.SUCCEEDED_UP, MigrationState.FAILED_DOWN})
"""The states in which a migration is applied."""

PENDING = frozenset(
    {MigrationState.ACKNOWLEDGED, MigrationState.FAILED_UP, MigrationState.SUCCEEDED_DOWN}
)
"""The states of a migration that the next run will run."""

# Tracking cannot say whether the migration is applied.
_UNCLEAR = frozenset(
    {MigrationState.EXECUTING_UP, MigrationState.EXECUTING_DOWN, MigrationState.INTERRUPTED}
)
# They have left nothing in the target.
_TRACELESS = frozenset({MigrationState.ACKNOWLEDGED, MigrationState.FAILED_UP})
_UNFINISHED = _UNCLEAR | _TRACELESS | {MigrationState.FAILED_DOWN}

Declared = Mapping[str, Sequence[Migration]]
"""Migrations by scope, oldest first."""


def plan_ack(
    declared: Declared, tracked: Iterable[TrackedMigration], request: MigrationRequest
) -> list[PlannedAction]:
    """Acknowledge the new migrations; with `request.discard`, discard these and all that have not run.

    Raises `MigrationError`.
    """
    by_version = tracked_by_key(tracked)
    _refuse_unclear(by_version.values())
    planned = []
    for scope, migration in _oldest_first(declared, request.version):
        current = by_version.get((scope, migration.version))
        if current is None:
            _ = migration.checksum  # raises now if the file cannot be read
            what = "discard" if request.discard else "acknowledge"
        elif request.discard and current.state in PENDING:
            what = "discard"
        else:
            continue
        action = MigrationAction(what, scope, migration.version, migration.name)
        planned.append(PlannedAction(action, migration))
    return planned


def plan_run(
    declared: Declared, tracked: Iterable[TrackedMigration], request: MigrationRequest
) -> list[PlannedAction]:
    """Run the migrations that have not run, oldest first across scopes.

    Raises `MigrationError`: a migration was interrupted, was changed after it ran, or is older than one
    of the same target that has run (unless `request.out_of_order`).
    """
    by_version = tracked_by_key(tracked)
    _refuse_unclear(by_version.values())
    _refuse_changed(declared, by_version)
    newest: dict[str, TrackedMigration] = {}
    for applied in by_version.values():
        if applied.state in APPLIED:
            target = target_of(applied.scope)
            newest[target] = max(
                newest.get(target, applied), applied, key=lambda migration: migration.version
            )
    planned, late = [], []
    for scope, migration in _oldest_first(declared, request.version):
        current = by_version.get((scope, migration.version))
        if current is not None and current.state not in PENDING:
            continue
        last = newest.get(target_of(scope))
        if last is not None and last.version > migration.version:
            late.append(f"{migration} of {scope} (after {last.version} {last.name})")
        action = _action(scope, migration, Direction.UP)
        planned.append(PlannedAction(action, migration, is_new=current is None))
    if late and not request.out_of_order:
        raise MigrationError(
            f"older than a migration of the same target that has run: {', '.join(late)}; give them a "
            "newer version, or run them with --out-of-order (out_of_order: true)"
        )
    return planned


def plan_rollback(
    declared: Declared, tracked: Iterable[TrackedMigration], request: MigrationRequest
) -> list[PlannedAction]:
    """Roll back the migrations after `request.version`, newest first across scopes.

    Raises `MigrationError`: the version is missing, a migration was interrupted, the code no longer
    declares it, or it has no down step.
    """
    version = request.version
    if version is None:
        raise MigrationError(
            "the version to roll back to is missing; give it: newer migrations are rolled back, and it "
            "stays; 0 rolls back everything"
        )
    by_version = tracked_by_key(tracked)
    _refuse_unclear(by_version.values())
    available = by_key(declared)
    applied = [
        migration
        for migration in by_version.values()
        if migration.state in APPLIED
        and migration.version > version
        and (not request.scopes or migration.scope in declared)
    ]
    applied.sort(key=lambda migration: (migration.version, migration.scope), reverse=True)
    gone = [
        str(migration)
        for migration in applied
        if (migration.scope, migration.version) not in available
    ]
    if gone:
        raise MigrationError(
            f"the code no longer declares {', '.join(gone)}; restore the declaration, so that it can be "
            "rolled back"
        )
    steps = [
        (migration.scope, available[migration.scope, migration.version]) for migration in applied
    ]
    without_down = [
        f"{migration} of {scope}" for scope, migration in steps if migration.down is None
    ]
    if without_down:
        raise MigrationError(
            f"no down step in {', '.join(without_down)}; write the .down.sql (or down=), or roll back "
            "to a newer version"
        )
    return [
        PlannedAction(_action(scope, migration, Direction.DOWN), migration, discard=request.discard)
        for scope, migration in steps
    ]


def waits_for(declared: Declared, tracked: Iterable[TrackedMigration]) -> str | None:
    """The migration that pauses the loads of a target, and what to do; `None` if there is none.

    One that the code no longer declares, and that left no trace in the target, does not pause them.

    >>> lake, step = "destination:lake", Migration(20260131120000, "add_gate", up="SELECT 1")
    >>> state = MigrationState.ACKNOWLEDGED
    >>> waits_for({lake: [step]}, [TrackedMigration(lake, step.version, step.name, None, state)])
    '20260131120000 add_gate of destination:lake has not run; run `blacksmith migrations run`'
    """
    available = by_key(declared)
    unfinished = [
        migration
        for migration in tracked
        if migration.state in _UNFINISHED
        and (migration.state not in _TRACELESS or (migration.scope, migration.version) in available)
    ]
    if not unfinished:
        return None
    # A migration that was tried comes before those that wait for it.
    first = min(
        unfinished,
        key=lambda migration: (migration.state is MigrationState.ACKNOWLEDGED, migration.version),
    )
    if first.state is MigrationState.ACKNOWLEDGED:
        return f"{first} has not run; run `blacksmith migrations run`"
    if first.state in _UNCLEAR:
        return f"{first} {_unclear(first)}"
    command = (
        "run"
        if first.state is MigrationState.FAILED_UP
        else f"rollback --to VERSION (< {first.version})"
    )
    error = f": {first.error}" if first.error else ""
    return f"{first} {first.state.value}{error}; fix it, then run `blacksmith migrations {command}`"


def settled_version(declared: Declared, tracked: Iterable[TrackedMigration]) -> int:
    """The version of a target's schema: the newest that is applied, or declared and discarded."""
    available = by_key(declared)
    return max(
        (
            migration.version
            for migration in tracked
            if migration.state in APPLIED
            or (
                migration.state is MigrationState.DISCARDED
                and (migration.scope, migration.version) in available
            )
        ),
        default=0,
    )


def by_key(declared: Declared) -> Mapping[tuple[str, int], Migration]:
    """The declared migrations by scope and version."""
    return {
        (scope, migration.version): migration
        for scope, migrations in declared.items()
        for migration in migrations
    }


def tracked_by_key(tracked: Iterable[TrackedMigration]) -> dict[tuple[str, int], TrackedMigration]:
    """The tracked migrations by scope and version."""
    return {(migration.scope, migration.version): migration for migration in tracked}


def _unclear(tracked: TrackedMigration) -> str:
    if tracked.state is MigrationState.INTERRUPTED:
        return (
            "was interrupted: look whether the target has it, and record that with `blacksmith "
            "migrations repair SCOPE VERSION --applied` or `--not-applied`"
        )
    by = f"run {tracked.run}" if tracked.run else tracked.by
    return (
        f"is {tracked.state.value} by {by}; wait until that has ended. If it has died, `blacksmith "
        "migrations run` shows how it ended"
    )


def _oldest_first(declared: Declared, last: int | None) -> list[tuple[str, Migration]]:
    pairs = [
        (scope, migration)
        for (scope, version), migration in by_key(declared).items()
        if last is None or version <= last
    ]
    return sorted(pairs, key=lambda pair: (pair[1].version, pair[0]))


def _refuse_unclear(tracked: Iterable[TrackedMigration]) -> None:
    for migration in tracked:
        if migration.state in _UNCLEAR:
            raise MigrationError(f"{migration} {_unclear(migration)}")


def _refuse_changed(
    declared: Declared, by_version: Mapping[tuple[str, int], TrackedMigration]
) -> None:
    for key, migration in by_key(declared).items():
        applied = by_version.get(key)
        if applied is None or applied.state not in APPLIED or applied.checksum is None:
            continue
        if migration.checksum != applied.checksum:
            raise MigrationError(
                f"{migration.up if isinstance(migration.up, Path) else migration} was changed after "
                f"it ran ({applied}); restore it, and write the change as a new migration"
            )


def _action(scope: str, migration: Migration, direction: Direction) -> MigrationAction:
    sql = None if callable(migration.step(direction)) else migration.sql(direction)
    return MigrationAction(direction.value, scope, migration.version, migration.name, sql)
