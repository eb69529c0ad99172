"""Runs planned migrations, and records each transition."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, runtime_checkable

from sqlalchemy import URL, Connection

from blacksmith_dagster.errors import FencedOut, MigrationError, Unavailable
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.migration import Direction, Migration
from blacksmith_dagster.redaction import describe
from blacksmith_dagster.store.database import Database
from blacksmith_dagster.supervisor import Lease, Supervisor
from blacksmith_dagster.wanderer.files import (
    adapters,
    canonical,
    chosen_scopes,
    declared,
    scopes_of,
    target_of,
)
from blacksmith_dagster.wanderer.locks import LockedTarget, TargetLocks
from blacksmith_dagster.wanderer.plan import (
    APPLIED,
    PENDING,
    Declared,
    PlannedAction,
    TrackedMigration,
    by_key,
    plan_ack,
    plan_rollback,
    plan_run,
    tracked_by_key,
    waits_for,
)
from blacksmith_dagster.wanderer.records import (
    CompletedAction,
    MigrationAction,
    MigrationReport,
    MigrationRequest,
    MigrationState,
    MigrationStatus,
)
from blacksmith_dagster.wanderer.tracking import Tracking

RECORD_FOR = 60.0
"""Seconds for which recording the end of a migration is tried while the database does not respond."""

_RECORD_PAUSE = 0.5
_STOPPED = "stopped: the rest was not run; run again to continue"
_REPAIRABLE = {
    MigrationState.ACKNOWLEDGED,
    MigrationState.INTERRUPTED,
    MigrationState.FAILED_UP,
    MigrationState.FAILED_DOWN,
}
_Plan = Callable[[Declared, Sequence[TrackedMigration], MigrationRequest], list[PlannedAction]]


@runtime_checkable
class Recording(Protocol):
    """A source or destination that can commit a migration together with its record."""

    def is_at(self, url: URL) -> bool:
        """Whether its database is the one at `url`."""
        ...

    def migrate_and_record(
        self, migration: Migration, direction: Direction, record: Callable[[Connection], None]
    ) -> None:
        """Run a migration, and call `record` before its transaction is committed."""
        ...


class Wanderer:
    """Migrates the targets of an application, with one run at a time per target.

    - `database`: the store's.
    - `tracking`: the database that tracks migrations; `database` itself if `None`.
    - `holder`: the person or process that migrates, for people and for the history.
    - `run`: the id of the Dagster run.
    - `stop`: once set, the current migration is finished, and no other begins.
    - `report`: called after each completed action.

    Each call may raise `MigrationError` (it names the files or migrations and what to do; nothing was
    run), `MigrationLocked` if another run holds the target, `FencedOut` if another run has taken it
    over, and `Unavailable`. A call that is stopped finishes the current migration.

    >>> wanderer = Wanderer(  # doctest: +SKIP
    ...     app, database=store.database, supervisor=supervisor, holder="deploy"
    ... )
    >>> wanderer.run(MigrationRequest()).done[0].state  # doctest: +SKIP
    <MigrationState.SUCCEEDED_UP: 'succeeded(up)'>
    """

    def __init__(
        self,
        app: Blacksmith,
        *,
        database: Database,
        supervisor: Supervisor,
        tracking: Database | None = None,
        holder: str,
        run: str | None = None,
        stop: threading.Event | None = None,
        report: Callable[[CompletedAction], None] = lambda _: None,
    ) -> None:
        self._adapters = adapters(app)
        self._app = app
        if tracking is None or tracking.engine.url == database.engine.url:
            tracking = database
        self._tracking = Tracking(tracking, holder, run)
        self._locks = TargetLocks(
            self._adapters,
            database=database,
            tracking=self._tracking,
            supervisor=supervisor,
            holder=f"run {run}" if run else holder,
        )
        self._stop = stop or threading.Event()
        self._report = report

    def ack(self, request: MigrationRequest) -> MigrationReport:
        """Acknowledge the new migrations; with `discard`, discard all that have not run."""
        return self._execute(plan_ack, request)

    def run(self, request: MigrationRequest) -> MigrationReport:
        """Acknowledge the new migrations, and run all that have not run, oldest first across scopes."""
        return self._execute(plan_run, request)

    def rollback(self, request: MigrationRequest) -> MigrationReport:
        """Roll back the migrations after `request.version`, newest first across scopes."""
        return self._execute(plan_rollback, request)

    def repair(self, scope: str, version: int, *, applied: bool) -> CompletedAction:
        """Record whether a migration that was interrupted, has failed or was done by hand is applied."""
        [scope] = chosen_scopes(self._app, [scope])
        target = target_of(scope)
        by_scope = declared(self._app, scopes_of(self._adapters[target]))
        with self._locks.lock([target]) as held:
            tracked = tracked_by_key(self._tracking.tracked([target])).get((scope, version))
            if tracked is None or tracked.state not in _REPAIRABLE:
                raise MigrationError(
                    f"{version} of {scope} is {tracked.state.value if tracked else 'unknown'}; only a "
                    "migration that is acknowledged, was interrupted or has failed can be repaired"
                )
            migration = by_key(by_scope).get((scope, version))
            if migration is None:
                raise MigrationError(
                    f"the code no longer declares {version} of {scope}; restore the declaration, and "
                    "repair it then"
                )
            history = self._tracking.history(scope, version)
            state = MigrationState.ACKNOWLEDGED
            if applied:
                state = MigrationState.SUCCEEDED_UP
            elif any(transition.state in APPLIED for transition in history):
                state = MigrationState.SUCCEEDED_DOWN
            self._tracking.record(held[target].tracking_token, scope, migration, state)
            self._locks.lift_barriers(held, by_scope)
        completed = CompletedAction(
            MigrationAction("repair", scope, version, migration.name), state
        )
        self._report(completed)
        return completed

    def status(self, scopes: Sequence[str] = ()) -> Sequence[MigrationStatus]:
        """All migrations, in the order in which they run."""
        requested = set(map(canonical, scopes))
        in_code = by_key(declared(self._app, chosen_scopes(self._app, scopes)))
        statuses = {
            (scope, version): MigrationStatus(scope, version, migration.name, None, True)
            for (scope, version), migration in in_code.items()
        }
        for key, tracked in tracked_by_key(self._tracking.tracked(self._adapters)).items():
            if not requested or tracked.scope in requested:
                statuses[key] = MigrationStatus(
                    tracked.scope,
                    tracked.version,
                    in_code[key].name if key in in_code else tracked.name,
                    tracked.state,
                    key in in_code,
                    tracked.at,
                    tracked.by,
                    tracked.run,
                    tracked.error,
                )
        return sorted(statuses.values(), key=lambda status: (status.version, status.scope))

    def waits_for(self, destination: str) -> str | None:
        """The migration that pauses the loads of a destination, and what to do; `None` if it is up to
        date."""
        target = f"destination/{destination}"
        by_scope = declared(self._app, scopes_of(self._adapters[target]))
        tracked = self._tracking.tracked([target])
        if reason := waits_for(by_scope, tracked):
            return reason
        states = {key: migration.state for key, migration in tracked_by_key(tracked).items()}
        for (scope, version), migration in by_key(by_scope).items():
            if states.get((scope, version), MigrationState.ACKNOWLEDGED) in PENDING:
                return f"{migration} of {scope} has not run; run `blacksmith migrations run`"
        return None

    def _execute(self, plan: _Plan, request: MigrationRequest) -> MigrationReport:
        chosen = chosen_scopes(self._app, request.scopes)
        targets = {target_of(scope) for scope in chosen}
        by_scope = declared(
            self._app, [scope for target in targets for scope in scopes_of(self._adapters[target])]
        )
        requested = {scope: by_scope[scope] for scope in chosen}
        tracked = self._tracking.tracked(targets)
        if request.dry_run:
            return MigrationReport([step.action for step in plan(requested, tracked, request)])
        used = {target_of(scope) for scope, migrations in by_scope.items() if migrations}
        used |= {target_of(migration.scope) for migration in tracked}
        with self._locks.lock(sorted(used)) as held:
            tracked = self._tracking.tracked(used)
            try:
                planned = plan(requested, tracked, request)
                recorders = [self._recorder(step) for step in planned]
            except MigrationError:
                # A run that died has left its barriers up.
                self._locks.lift_barriers(held, by_scope)
                raise
            running = {step.action.scope for step in planned if step.action.what in ("up", "down")}
            self._locks.stop_claims(held, set(map(target_of, running)), self._stop)
            done: list[CompletedAction] = []
            error = None
            for step, recorder in zip(planned, recorders, strict=True):
                if self._stop.is_set():
                    error = _STOPPED
                    break
                done.append(self._perform(held[target_of(step.action.scope)], step, recorder))
                self._report(done[-1])
                error = done[-1].error
                if error is not None:
                    break
            self._locks.lift_barriers(held, by_scope)
        return MigrationReport([step.action for step in planned], done, error)

    def _perform(
        self, held: LockedTarget, planned: PlannedAction, recorder: Recording | None
    ) -> CompletedAction:
        """Do one action, and record it. If it runs a migration, the target's barrier is up."""
        action, migration = planned.action, planned.migration
        if held.lease.lost.is_set():
            raise FencedOut(
                f"the lock {held.lease.key} could not be renewed, and another run may hold it; "
                "this run has stopped: run again"
            )
        record = partial(self._tracking.record, held.tracking_token, action.scope, migration)
        if action.what in ("acknowledge", "discard"):
            acknowledged = action.what == "acknowledge"
            state = MigrationState.ACKNOWLEDGED if acknowledged else MigrationState.DISCARDED
            record(state)
            return CompletedAction(action, state)
        if planned.is_new:
            record(MigrationState.ACKNOWLEDGED)
        record(_state("executing", action), atomic=recorder is not None)
        started = time.monotonic()
        error = self._migrate(held, planned, recorder)
        seconds = time.monotonic() - started
        state = _state("succeeded" if error is None else "failed", action)
        if recorder is None or error is not None:
            _keep_trying(lambda: record(state, error=error), held.lease)
        if planned.discard and error is None:
            state = MigrationState.DISCARDED
            record(state)
        return CompletedAction(action, state, seconds, error)

    def _migrate(
        self, held: LockedTarget, planned: PlannedAction, recorder: Recording | None
    ) -> str | None:
        """Run a migration, and record its success if there is a `recorder`; the error if it failed."""
        action, migration, track = planned.action, planned.migration, self._tracking
        direction, succeeded = Direction(action.what), _state("succeeded", action)
        try:
            if recorder is None:
                self._adapters[target_of(action.scope)].migrate(migration, direction)
            else:
                recorder.migrate_and_record(
                    migration,
                    direction,
                    lambda conn: track.write(
                        conn, held.tracking_token, action.scope, migration, succeeded
                    ),
                )
        except FencedOut:
            raise
        except Exception as raised:  # noqa: BLE001 - a migration may raise anything
            if recorder is not None:
                last = track.history(action.scope, migration.version)[-1]
                if last.state is succeeded:
                    return None  # the connection broke after the commit
            return describe(raised)
        return None

    def _recorder(self, planned: PlannedAction) -> Recording | None:
        """The adapter if it can commit this migration together with its record, else `None`."""
        action, migration = planned.action, planned.migration
        adapter = self._adapters[target_of(action.scope)]
        if action.what not in ("up", "down") or not isinstance(adapter, Recording):
            return None
        # If a class overrides only `migrate`, that method must be called.
        defining_class = next(
            class_ for class_ in type(adapter).__mro__ if "migrate" in vars(class_)
        )
        if "migrate_and_record" not in vars(defining_class):
            return None
        in_transaction = migration.in_transaction(Direction(action.what))
        at_tracking = adapter.is_at(self._tracking.database.engine.url)
        return adapter if in_transaction and at_tracking else None


def _keep_trying(record: Callable[[], None], lease: Lease) -> None:
    """Record how a migration ended. Only this process knows it, so it tries again for a while."""
    give_up = time.monotonic() + RECORD_FOR
    while True:
        try:
            return record()
        except Unavailable:
            if lease.lost.is_set() or time.monotonic() > give_up:
                raise
        time.sleep(_RECORD_PAUSE)


def _state(result: str, action: MigrationAction) -> MigrationState:
    return MigrationState(f"{result}({action.what})")
