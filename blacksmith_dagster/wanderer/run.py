"""Running migrations under their targets' locks, behind the destinations' migration barriers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, Protocol, runtime_checkable

from sqlalchemy import URL, Connection

from blacksmith_dagster.errors import FencedOut, MigrationError, MigrationLocked, Unavailable
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.destination import Destination
from blacksmith_dagster.pipeline.migration import Direction, Migration
from blacksmith_dagster.pipeline.source import Source
from blacksmith_dagster.redaction import describe
from blacksmith_dagster.store import Store, migration_barrier
from blacksmith_dagster.store.migration_barrier import MigrationToken
from blacksmith_dagster.supervisor.interface import Lease, Supervisor
from blacksmith_dagster.wanderer.files import (
    adapters,
    canonical,
    chosen_scopes,
    declared,
    scopes_of,
    target_of,
)
from blacksmith_dagster.wanderer.interface import (
    CompletedAction,
    MigrationAction,
    MigrationReport,
    MigrationRequest,
    MigrationState,
    MigrationStatus,
)
from blacksmith_dagster.wanderer.plan import (
    APPLIED,
    PENDING,
    Declared,
    PlannedAction,
    TrackedMigration,
    plan_ack,
    plan_rollback,
    plan_run,
    settled_version,
    waits_for,
)
from blacksmith_dagster.wanderer.tracking import Tracking, sql_store

LOOK = 0.05
"""Seconds between two looks at the loads that a migration waits for."""

RECORD_FOR = 60.0
"""Seconds for which the end of a migration is recorded again while the database does not respond."""

_RECORD_AGAIN = 0.5
_STOPPED = "asked to stop: the rest was not run; run again, and it goes on"
_EXECUTING = {
    Direction.UP: MigrationState.EXECUTING_UP,
    Direction.DOWN: MigrationState.EXECUTING_DOWN,
}
_SUCCEEDED = {
    Direction.UP: MigrationState.SUCCEEDED_UP,
    Direction.DOWN: MigrationState.SUCCEEDED_DOWN,
}
_FAILED = {Direction.UP: MigrationState.FAILED_UP, Direction.DOWN: MigrationState.FAILED_DOWN}
_REPAIRABLE = {
    MigrationState.ACKNOWLEDGED,
    MigrationState.INTERRUPTED,
    MigrationState.FAILED_UP,
    MigrationState.FAILED_DOWN,
}
_Plan = Callable[[Declared, Sequence[TrackedMigration], MigrationRequest], list[PlannedAction]]


@runtime_checkable
class Recording(Protocol):
    """A source or destination that can commit a migration together with what is recorded of it."""

    def is_at(self, url: URL) -> bool:
        """Whether its database is the one at `url`."""
        ...

    def migrate_and_record(
        self, migration: Migration, direction: Direction, record: Callable[[Connection], None]
    ) -> None:
        """Run a migration, and call `record` before its transaction is committed."""
        ...


class _LockedTarget(NamedTuple):
    """A target that this run has: its lock, and its fencing token in each database."""

    lease: Lease
    tracking_token: MigrationToken
    barrier_token: MigrationToken


class StandardWanderer:
    """The wanderer that we ship; see `Wanderer`.

    - `tracking`: the store that tracks migrations; `store` itself if `None`.
    - `holder`, `run`: who does it, for people and for the history; `run` is the Dagster run's id.
    - `stop`: once set, the migration under way is finished, and no other begun.
    - `report`: called after each action that was done.

    Raises `SettingsError` if a store is none in which migrations can be tracked.

    >>> wanderer = StandardWanderer(  # doctest: +SKIP
    ...     app, store=store, supervisor=supervisor, holder="deploy"
    ... )
    >>> wanderer.run(MigrationRequest()).done[0].state  # doctest: +SKIP
    <MigrationState.SUCCEEDED_UP: 'succeeded(up)'>
    """

    def __init__(
        self,
        app: Blacksmith,
        *,
        store: Store,
        supervisor: Supervisor,
        tracking: Store | None = None,
        holder: str,
        run: str | None = None,
        stop: threading.Event | None = None,
        report: Callable[[CompletedAction], None] = lambda _: None,
    ) -> None:
        self._adapters = adapters(app)
        self._app = app
        self._store = sql_store(store)
        tracked_in = sql_store(store if tracking is None else tracking)
        self._elsewhere = tracked_in.engine.url != self._store.engine.url
        self._tracking = Tracking(tracked_in if self._elsewhere else self._store, holder, run)
        self._supervisor = supervisor
        self._by = f"run {run}" if run else holder
        self._stop = stop or threading.Event()
        self._report = report

    def ack(self, request: MigrationRequest) -> MigrationReport:
        """See `Wanderer.ack`."""
        return self._carry_out(plan_ack, request)

    def run(self, request: MigrationRequest) -> MigrationReport:
        """See `Wanderer.run`."""
        return self._carry_out(plan_run, request)

    def rollback(self, request: MigrationRequest) -> MigrationReport:
        """See `Wanderer.rollback`."""
        return self._carry_out(plan_rollback, request)

    def repair(self, scope: str, version: int, *, applied: bool) -> CompletedAction:
        """See `Wanderer.repair`."""
        [scope] = chosen_scopes(self._app, [scope])
        target = target_of(scope)
        found = declared(self._app, scopes_of(self._adapters[target]))
        with self._lock([target]) as held:
            tracked = [
                each
                for each in self._tracking.tracked([target])
                if (each.scope, each.version) == (scope, version)
            ]
            if not tracked or tracked[0].state not in _REPAIRABLE:
                stands = tracked[0].state.value if tracked else "unknown"
                raise MigrationError(
                    f"{version} of {scope} is {stands}; only what is acknowledged, was interrupted or "
                    "has failed is repaired"
                )
            migration = next((each for each in found[scope] if each.version == version), None)
            if migration is None:
                raise MigrationError(
                    f"the code has no {version} of {scope}; restore what it was declared with, and "
                    "repair it then"
                )
            state = MigrationState.SUCCEEDED_UP if applied else self._unapplied(tracked[0])
            self._tracking.record(held[target].tracking_token, scope, migration, state)
            self._lift_barriers(held, found)
        done = CompletedAction(MigrationAction("repair", scope, version, migration.name), state)
        self._report(done)
        return done

    def _unapplied(self, tracked: TrackedMigration) -> MigrationState:
        """How a migration stands whose effect is not there: it has been rolled back if it ever was."""
        history = self._tracking.history(tracked.scope, tracked.version)
        ever = any(each.state in APPLIED for each in history)
        return MigrationState.SUCCEEDED_DOWN if ever else MigrationState.ACKNOWLEDGED

    def status(self, scopes: Sequence[str] = ()) -> Sequence[MigrationStatus]:
        """See `Wanderer.status`."""
        found = declared(self._app, chosen_scopes(self._app, scopes))
        wanted = set(map(canonical, scopes))
        there = {
            (each.version, each.scope): each
            for each in self._tracking.tracked(self._adapters)
            if not wanted or each.scope in wanted
        }
        all_ = {(each.version, scope): each.name for scope in found for each in found[scope]}
        names = {key: each.name for key, each in there.items()} | all_
        return [
            MigrationStatus(
                scope,
                version,
                names[version, scope],
                known and known.state,
                (version, scope) in all_,
                known and known.at,
                known and known.by,
                known and known.run,
                known and known.error,
            )
            for version, scope in sorted(names)
            for known in (there.get((version, scope)),)
        ]

    def waits_for(self, destination: str) -> str | None:
        """See `Wanderer.waits_for`."""
        target = f"destination/{destination}"
        found = declared(self._app, scopes_of(self._adapters[target]))
        tracked = self._tracking.tracked([target])
        if why := waits_for(_counting(found, tracked)):
            return why
        known = {(each.scope, each.version): each for each in tracked}
        for scope, migrations in found.items():
            for each in migrations:
                known_as = known.get((scope, each.version))
                if known_as is None or known_as.state in PENDING:
                    return f"{each} of {scope} has not run; run `blacksmith migrations run`"
        return None

    # -- carrying out
    def _carry_out(self, plan: _Plan, request: MigrationRequest) -> MigrationReport:
        chosen = chosen_scopes(self._app, request.scopes)
        targets = {target_of(scope) for scope in chosen}
        found = declared(
            self._app, [scope for each in targets for scope in scopes_of(self._adapters[each])]
        )
        asked = {scope: found[scope] for scope in chosen}
        tracked = self._tracking.tracked(targets)
        if request.dry_run:
            return MigrationReport([each.action for each in plan(asked, tracked, request)])
        used = {target_of(scope) for scope, migrations in found.items() if migrations}
        used |= {target_of(each.scope) for each in tracked}
        with self._lock(sorted(used)) as held:
            tracked = self._tracking.tracked(used)
            try:
                planned = plan(asked, tracked, request)
                recorders = [self._recorder(each) for each in planned]
            except MigrationError:
                self._lift_barriers(held, found)  # a run that died has left its barriers up
                raise
            known = {(each.scope, each.version) for each in tracked}
            done: list[CompletedAction] = []
            error = self._stop_claims(held, planned)
            for each, recorder in zip(planned, recorders, strict=True):
                if error is None and self._stop.is_set():
                    error = _STOPPED
                if error is not None:
                    break
                new = (each.action.scope, each.action.version) not in known
                one = held[target_of(each.action.scope)]
                done.append(self._perform(one, each, recorder, request, new=new))
                self._report(done[-1])
                error = done[-1].error
            self._lift_barriers(held, found)
        return MigrationReport([each.action for each in planned], done, error)

    def _perform(
        self,
        held: _LockedTarget,
        planned: PlannedAction,
        recorder: Recording | None,
        request: MigrationRequest,
        *,
        new: bool,
    ) -> CompletedAction:
        """Do one action, and record it. The target's barrier is up if it runs something."""
        action, migration = planned
        if held.lease.lost.is_set():
            raise FencedOut(
                f"the lock {held.lease.key} could not be renewed, and another run may hold it; "
                "nothing more is run here: run again"
            )
        if action.what in ("acknowledge", "discard"):
            state = (
                MigrationState.ACKNOWLEDGED
                if action.what == "acknowledge"
                else MigrationState.DISCARDED
            )
            self._tracking.record(held.tracking_token, action.scope, migration, state)
            return CompletedAction(action, state)
        direction = Direction(action.what)
        if new:
            self._tracking.record(
                held.tracking_token, action.scope, migration, MigrationState.ACKNOWLEDGED
            )
        began = time.monotonic()
        error = self._migrate(held, action.scope, migration, direction, recorder)
        seconds = time.monotonic() - began
        if error is not None:
            return CompletedAction(action, _FAILED[direction], seconds, error)
        if request.discard and direction is Direction.DOWN:
            self._tracking.record(
                held.tracking_token, action.scope, migration, MigrationState.DISCARDED
            )
            return CompletedAction(action, MigrationState.DISCARDED, seconds)
        return CompletedAction(action, _SUCCEEDED[direction], seconds)

    def _migrate(
        self,
        held: _LockedTarget,
        scope: str,
        migration: Migration,
        direction: Direction,
        recorder: Recording | None,
    ) -> str | None:
        """Run a migration with its transitions; the error if it failed."""
        track, token = self._tracking, held.tracking_token
        executing, succeeded = _EXECUTING[direction], _SUCCEEDED[direction]
        track.record(token, scope, migration, executing, atomic=recorder is not None)
        try:
            if recorder is not None:
                recorder.migrate_and_record(
                    migration,
                    direction,
                    lambda conn: track.write(conn, token, scope, migration, succeeded),
                )
            else:
                self._adapters[target_of(scope)].migrate(migration, direction)
        except FencedOut:
            raise
        except Exception as raised:  # noqa: BLE001 - it is the migration's
            if recorder is not None and track.history(scope, migration.version)[-1].state is (
                succeeded
            ):
                return None  # the connection broke after the commit
            error = describe(raised)
            self._record_end(held, scope, migration, _FAILED[direction], error)
            return error
        if recorder is None:
            self._record_end(held, scope, migration, succeeded)
        return None

    def _record_end(
        self,
        held: _LockedTarget,
        scope: str,
        migration: Migration,
        state: MigrationState,
        error: str | None = None,
    ) -> None:
        """Record how a migration ended, again if the database does not respond: nobody else knows."""
        give_up = time.monotonic() + RECORD_FOR
        while True:
            try:
                return self._tracking.record(
                    held.tracking_token, scope, migration, state, error=error
                )
            except Unavailable:
                if held.lease.lost.is_set() or time.monotonic() > give_up:
                    raise
            time.sleep(_RECORD_AGAIN)

    def _recorder(self, planned: PlannedAction) -> Recording | None:
        """The adapter, if it can commit this migration together with its record."""
        action, migration = planned
        adapter = self._adapters[target_of(action.scope)]
        if action.what not in ("up", "down") or not isinstance(adapter, Recording):
            return None
        # Whoever overrides `migrate` alone means it to be called.
        definer = next(each for each in type(adapter).__mro__ if "migrate" in vars(each))
        if "migrate_and_record" not in vars(definer):
            return None
        within = migration.in_transaction(Direction(action.what))
        return adapter if within and adapter.is_at(self._tracking.store.engine.url) else None

    # -- locks, fencing tokens and barriers
    @contextmanager
    def _lock(self, targets: Iterable[str]) -> Iterator[Mapping[str, _LockedTarget]]:
        """The locks and fencing tokens of some targets, taken in sorted order: two runs never cross.

        Raises `MigrationLocked`, `FencedOut`.
        """
        held: dict[str, _LockedTarget] = {}
        with ExitStack() as leases:
            locks = {}
            for target in targets:
                key = f"migrate/{target}"
                lease = self._supervisor.acquire(key, self._by)
                if lease is None:
                    holder = self._supervisor.status(key).holder or "another run"
                    raise MigrationLocked(
                        f"{target} is being migrated by {holder}; wait until that has ended, and run "
                        "again"
                    )
                locks[target] = leases.enter_context(lease)
            for target, lease in locks.items():
                tracking_token = self._tracking.take_over(target, lease.id, lease.confirm)
                barrier_token = tracking_token
                if self._elsewhere:
                    barrier_token = migration_barrier.take_over(
                        self._store, target, lease.id, lease.confirm
                    )
                held[target] = _LockedTarget(lease, tracking_token, barrier_token)
            yield held

    def _stop_claims(
        self, held: Mapping[str, _LockedTarget], planned: Sequence[PlannedAction]
    ) -> str | None:
        """Raise the barriers of the destinations in which something runs, and wait for their open loads;
        the error if it is asked to stop meanwhile."""
        ran = {
            target_of(each.action.scope) for each in planned if each.action.what in ("up", "down")
        }
        chosen = [each for each in sorted(ran) if isinstance(self._adapters[each], Destination)]
        for target in chosen:
            migration_barrier.stop_claims(self._store, held[target].barrier_token, self._by)
        for target in chosen:
            adapter: Any = self._adapters[target]
            patience = max(
                (event.timeout.total_seconds() for event in adapter.events.values()), default=0.0
            )
            give_up = time.monotonic() + patience
            while open_loads := migration_barrier.open_loads(self._store, adapter.name):
                if self._stop.is_set():
                    return _STOPPED
                lease = held[target].lease
                for path, lane in open_loads:
                    # Whoever has lost the lock loads no more, or is fenced out.
                    loads = self._supervisor.status(f"{lane.value}/{path}").held
                    if not loads or time.monotonic() >= give_up:
                        self._store.take_over(path, lane, lease.id, lease.confirm)
                self._stop.wait(LOOK)
        return None

    def _lift_barriers(self, held: Mapping[str, _LockedTarget], found: Declared) -> None:
        """Lift the barriers: each destination is at the version that its migrations say."""
        tracked = self._tracking.tracked(held)
        for target, one in held.items():
            if isinstance(self._adapters[target], Source):
                continue
            own = {scope: all_ for scope, all_ in found.items() if target_of(scope) == target}
            known = [each for each in tracked if target_of(each.scope) == target]
            why = waits_for(_counting(own, known))
            migration_barrier.lift(self._store, one.barrier_token, settled_version(own, known), why)


def _counting(found: Declared, tracked: Iterable[TrackedMigration]) -> Sequence[TrackedMigration]:
    """Those that can keep a target from being loaded: what the code has no more does not, if it has
    left no trace."""
    there = {(scope, each.version) for scope, all_ in found.items() for each in all_}
    traceless = {MigrationState.ACKNOWLEDGED, MigrationState.FAILED_UP}
    return [
        each
        for each in tracked
        if (each.scope, each.version) in there or each.state not in traceless
    ]
