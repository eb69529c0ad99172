"""What is to be done, decided from what is declared and what is tracked: no I/O but the files'."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from blacksmith_dagster.errors import MigrationError
from blacksmith_dagster.pipeline.migration import Direction, Migration
from blacksmith_dagster.wanderer.files import target_of
from blacksmith_dagster.wanderer.interface import MigrationAction, MigrationRequest, MigrationState


class TrackedMigration(NamedTuple):
    """A migration as it was tracked, with its last transition."""

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
    """An action, and the migration that it runs."""

    action: MigrationAction
    migration: Migration


APPLIED = frozenset({MigrationState.SUCCEEDED_UP, MigrationState.FAILED_DOWN})
"""The effect of the migration is there."""

PENDING = frozenset(
    {MigrationState.ACKNOWLEDGED, MigrationState.FAILED_UP, MigrationState.SUCCEEDED_DOWN}
)
"""The migration runs next time."""

# Whether the effect is there cannot be told from what is tracked.
_UNCLEAR = frozenset(
    {MigrationState.EXECUTING_UP, MigrationState.EXECUTING_DOWN, MigrationState.INTERRUPTED}
)
_WAITED_FOR = _UNCLEAR | {
    MigrationState.ACKNOWLEDGED,
    MigrationState.FAILED_UP,
    MigrationState.FAILED_DOWN,
}

Declared = Mapping[str, Sequence[Migration]]
"""Migrations by scope, oldest first."""


def plan_ack(
    declared: Declared, tracked: Iterable[TrackedMigration], request: MigrationRequest
) -> list[PlannedAction]:
    """Acknowledge what is new; with `request.discard`, discard it and all that has not run.

    Raises `MigrationError`.
    """
    known = _by_version(tracked)
    _refuse_unclear(known.values())
    planned = []
    for scope, migration in _oldest_first(declared, request.version):
        found = known.get((scope, migration.version))
        if found is None:
            _ = migration.checksum  # a file that cannot be read is said now
            what = "discard" if request.discard else "acknowledge"
        elif request.discard and found.state in PENDING:
            what = "discard"
        else:
            continue
        planned.append(
            PlannedAction(
                MigrationAction(what, scope, migration.version, migration.name), migration
            )
        )
    return planned


def plan_run(
    declared: Declared, tracked: Iterable[TrackedMigration], request: MigrationRequest
) -> list[PlannedAction]:
    """Run what has not run, oldest to newest across scopes.

    Raises `MigrationError`: a migration was interrupted, changed after it ran, or is older than one of
    the same target that has run (unless `request.out_of_order`).
    """
    known = _by_version(tracked)
    _refuse_unclear(known.values())
    _refuse_changed(declared, known)
    newest: dict[str, TrackedMigration] = {}
    for found in known.values():
        if found.state in APPLIED:
            target = target_of(found.scope)
            newest[target] = max(newest.get(target, found), found, key=lambda each: each.version)
    planned, late = [], []
    for scope, migration in _oldest_first(declared, request.version):
        found_ = known.get((scope, migration.version))
        if found_ is not None and found_.state not in PENDING:
            continue
        last = newest.get(target_of(scope))
        if last is not None and last.version > migration.version:
            late.append(f"{migration} of {scope} (after {last.version} {last.name})")
        planned.append(_step(scope, migration, Direction.UP))
    if late and not request.out_of_order:
        raise MigrationError(
            f"older than what has run on the same target: {', '.join(late)}; give them a newer "
            "version, or run them so with --out-of-order (out_of_order: true)"
        )
    return planned


def plan_rollback(
    declared: Declared, tracked: Iterable[TrackedMigration], request: MigrationRequest
) -> list[PlannedAction]:
    """Roll back what is newer than `request.version`, newest to oldest across scopes.

    Raises `MigrationError`: no version was given, a migration was interrupted, its files are gone, or
    it has no down.
    """
    version = request.version
    if version is None:
        raise MigrationError(
            "roll back down to which version? Give it: it stays, and what is newer goes; 0 rolls back "
            "everything"
        )
    known = _by_version(tracked)
    _refuse_unclear(known.values())
    there = {(scope, each.version): each for scope, all_ in declared.items() for each in all_}
    applied = [
        each
        for each in known.values()
        if each.state in APPLIED
        and each.version > version
        and (not request.scopes or each.scope in declared)
    ]
    applied.sort(key=lambda each: (each.version, each.scope), reverse=True)
    gone = [str(each) for each in applied if (each.scope, each.version) not in there]
    if gone:
        raise MigrationError(
            f"the code has no more: {', '.join(gone)}; restore what it was declared with, so that it "
            "can be rolled back"
        )
    steps = [(each.scope, there[each.scope, each.version]) for each in applied]
    no_way = [f"{migration} of {scope}" for scope, migration in steps if migration.down is None]
    if no_way:
        raise MigrationError(
            f"no way down from {', '.join(no_way)}; write the .down.sql (or down=), or roll back to a "
            "newer version"
        )
    return [_step(scope, migration, Direction.DOWN) for scope, migration in steps]


def waits_for(declared: Iterable[TrackedMigration]) -> str | None:
    """Which of a target's declared and tracked migrations keeps it from being loaded, and what to do.

    >>> state = MigrationState.ACKNOWLEDGED
    >>> waits_for([TrackedMigration("destination:lake", 20260131120000, "add_gate", None, state)])
    '20260131120000 add_gate of destination:lake has not run; run `blacksmith migrations run`'
    """
    stuck = [each for each in declared if each.state in _WAITED_FOR]
    if not stuck:
        return None
    # What was tried comes before what waits for it.
    first = min(stuck, key=lambda each: (each.state is MigrationState.ACKNOWLEDGED, each.version))
    if first.state is MigrationState.ACKNOWLEDGED:
        return f"{first} has not run; run `blacksmith migrations run`"
    if first.state in _UNCLEAR:
        return f"{first} {_unclear(first)}"
    again = (
        "run"
        if first.state is MigrationState.FAILED_UP
        else f"rollback --to VERSION (< {first.version})"
    )
    why = f": {first.error}" if first.error else ""
    return f"{first} {first.state.value}{why}; fix it, then run `blacksmith migrations {again}`"


def settled_version(declared: Declared, tracked: Iterable[TrackedMigration]) -> int:
    """The version of a target's schema: the newest that has run, or that is declared and discarded."""
    there = {(scope, each.version) for scope, all_ in declared.items() for each in all_}
    return max(
        (
            each.version
            for each in tracked
            if each.state in APPLIED
            or (each.state is MigrationState.DISCARDED and (each.scope, each.version) in there)
        ),
        default=0,
    )


def _unclear(tracked: TrackedMigration) -> str:
    if tracked.state is MigrationState.INTERRUPTED:
        return (
            "was interrupted: look into the target whether it is there, and tell by `blacksmith "
            "migrations repair SCOPE VERSION --applied` or `--not-applied`"
        )
    by = f"run {tracked.run}" if tracked.run else tracked.by
    return (
        f"is {tracked.state.value} by {by}; wait until that has ended. If it has died, `blacksmith "
        "migrations run` tells how it was left"
    )


def _by_version(tracked: Iterable[TrackedMigration]) -> dict[tuple[str, int], TrackedMigration]:
    return {(each.scope, each.version): each for each in tracked}


def _oldest_first(declared: Declared, upto: int | None) -> list[tuple[str, Migration]]:
    found = [
        (scope, each)
        for scope, migrations in declared.items()
        for each in migrations
        if upto is None or each.version <= upto
    ]
    return sorted(found, key=lambda pair: (pair[1].version, pair[0]))


def _refuse_unclear(tracked: Iterable[TrackedMigration]) -> None:
    for each in tracked:
        if each.state in _UNCLEAR:
            raise MigrationError(f"{each} {_unclear(each)}")


def _refuse_changed(declared: Declared, known: Mapping[tuple[str, int], TrackedMigration]) -> None:
    for scope, migrations in declared.items():
        for migration in migrations:
            found = known.get((scope, migration.version))
            if found is None or found.state not in APPLIED or found.checksum is None:
                continue
            if migration.checksum != found.checksum:
                raise MigrationError(
                    f"{migration.up if isinstance(migration.up, Path) else migration} was changed after "
                    f"it ran ({found}); restore what ran, and write the change as a new migration"
                )


def _step(scope: str, migration: Migration, direction: Direction) -> PlannedAction:
    sql = None if callable(migration.step(direction)) else migration.sql(direction)
    return PlannedAction(
        MigrationAction(direction.value, scope, migration.version, migration.name, sql), migration
    )
