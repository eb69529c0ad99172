"""Holds the targets of a run: their locks, their fencing tokens, and the barriers of destinations."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from blacksmith_dagster.errors import MigrationLocked
from blacksmith_dagster.pipeline.destination import Destination
from blacksmith_dagster.pipeline.source import Source
from blacksmith_dagster.store import migration_barrier
from blacksmith_dagster.store.database import Database
from blacksmith_dagster.store.loads import Loads
from blacksmith_dagster.store.migration_barrier import MigrationToken
from blacksmith_dagster.supervisor import Lease, Supervisor
from blacksmith_dagster.wanderer.files import target_of
from blacksmith_dagster.wanderer.plan import (
    Declared,
    settled_version,
    waits_for,
)
from blacksmith_dagster.wanderer.tracking import Tracking

POLL = 0.05
"""Seconds between two checks of the loads that a migration waits for."""


class LockedTarget(NamedTuple):
    """A target that this run holds: its lock, and its fencing token in each database."""

    lease: Lease
    tracking_token: MigrationToken
    barrier_token: MigrationToken


class TargetLocks:
    """Locks the targets of an application for one holder.

    - `adapters`: the sources and destinations by target.
    - `database`: keeps the barriers; `tracking` may use another one.
    """

    def __init__(
        self,
        adapters: Mapping[str, Source | Destination[Any]],
        *,
        database: Database,
        tracking: Tracking,
        supervisor: Supervisor,
        holder: str,
    ) -> None:
        self._adapters = adapters
        self._database = database
        self._tracking = tracking
        self._supervisor = supervisor
        self._holder = holder

    @contextmanager
    def lock(self, targets: Iterable[str]) -> Iterator[Mapping[str, LockedTarget]]:
        """Hold the locks and fencing tokens of the targets. Sorted targets can't deadlock two runs.

        Raises `MigrationLocked`, `FencedOut`.
        """
        held: dict[str, LockedTarget] = {}
        with ExitStack() as leases:
            locks = {}
            for target in targets:
                key = f"migrate/{target}"
                lease = self._supervisor.acquire(key, self._holder)
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
                if self._tracking.database is not self._database:
                    barrier_token = migration_barrier.take_over(
                        self._database, target, lease.id, lease.confirm
                    )
                held[target] = LockedTarget(lease, tracking_token, barrier_token)
            yield held

    def stop_claims(
        self, held: Mapping[str, LockedTarget], targets: Set[str], stop: threading.Event
    ) -> None:
        """Raise the barriers of the destinations among `targets`, and wait for their open loads.

        Returns at once if `stop` is set meanwhile.
        """
        destinations = [
            target for target in sorted(targets) if isinstance(self._adapters[target], Destination)
        ]
        for target in destinations:
            migration_barrier.stop_claims(self._database, held[target].barrier_token, self._holder)
        for target in destinations:
            adapter: Any = self._adapters[target]
            longest_load = max(
                (event.timeout.total_seconds() for event in adapter.events.values()), default=0.0
            )
            give_up = time.monotonic() + longest_load
            while open_loads := migration_barrier.open_loads(self._database, adapter.name):
                if stop.is_set():
                    return
                lease = held[target].lease
                for path, lane in open_loads:
                    # A loader that lost its lock has stopped, or this fences it out.
                    is_loading = self._supervisor.status(f"{lane.value}/{path}").held
                    if not is_loading or time.monotonic() >= give_up:
                        Loads(self._database).take_over(path, lane, lease.id, lease.confirm)
                stop.wait(POLL)

    def lift_barriers(self, held: Mapping[str, LockedTarget], by_scope: Declared) -> None:
        """Lift the barriers; each destination has the version that its migrations give it."""
        tracked = self._tracking.tracked(held)
        for target, locked in held.items():
            if isinstance(self._adapters[target], Source):
                continue
            own = {scope: all_ for scope, all_ in by_scope.items() if target_of(scope) == target}
            of_target = [migration for migration in tracked if target_of(migration.scope) == target]
            reason = waits_for(own, of_target)
            version = settled_version(own, of_target)
            migration_barrier.lift(self._database, locked.barrier_token, version, reason)
