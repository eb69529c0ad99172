"""Locks kept in the store's own database, a row each: nothing but the store is needed."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, DateTime, and_, delete, func, literal, select, update
from sqlalchemy.dialects import postgresql, sqlite

from blacksmith_dagster.errors import Unavailable
from blacksmith_dagster.store.sql import SQLStore
from blacksmith_dagster.store.tables import leases
from blacksmith_dagster.supervisor.deadline import Deadline
from blacksmith_dagster.supervisor.interface import LockStatus

_log = logging.getLogger(__name__)

POLL = 0.1
"""Seconds between two looks at a lock that another holds."""


class StoreSupervisor:
    """Locks in the store's table `leases`, by the database's clock.

    A lock that is not renewed for `ttl` seconds is free again; one thread renews all that are held,
    together, at a third of that. SQLite has no clock of its own: there it is the host's monotonic
    one, which all its processes share, and a reboot frees the locks.

    >>> supervisor = StoreSupervisor(store)  # doctest: +SKIP
    >>> with supervisor.acquire("load/warehouse/flights", "me") as lease:  # doctest: +SKIP
    ...     lease.confirm()
    True
    """

    def __init__(self, store: SQLStore, ttl: float = 15.0) -> None:
        self._store = store
        self._clock = _postgresql if store.engine.dialect.name == "postgresql" else _sqlite
        self._ttl = ttl
        self._held: set[StoreLease] = set()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._renewals: threading.Thread | None = None

    def acquire(self, key: str, owner: str, *, wait: float = 0.0) -> StoreLease | None:
        """See `Supervisor.acquire`."""
        give_up = time.monotonic() + wait
        while (lease := self._take(key, owner)) is None:
            left = give_up - time.monotonic()
            if left <= 0 or self._closing.wait(min(POLL, left)):
                return None
        with self._lock:
            self._held.add(lease)
            if self._renewals is None:
                self._renewals = threading.Thread(
                    target=self._keep_renewing, name="renew-locks", daemon=True
                )
                self._renewals.start()
        return lease

    def status(self, key: str) -> LockStatus:
        """See `Supervisor.status`."""
        held = select(leases.c.owner, leases.c.since).where(
            leases.c.key == key, self._clock(self._ttl).valid
        )
        with self._store.reading() as connection:
            row = connection.execute(held).first()
        return LockStatus(key, False) if row is None else LockStatus(key, True, row[0], row[1])

    def close(self) -> None:
        """See `Supervisor.close`."""
        self._closing.set()
        if self._renewals is not None:
            self._renewals.join(self._ttl)
        for lease in list(self._held):
            lease.release()

    def _take(self, key: str, owner: str) -> StoreLease | None:
        """One statement: nobody can come between looking and taking."""
        sent, clock = time.monotonic(), self._clock(self._ttl)
        lease = StoreLease(self, key, secrets.token_hex(16), Deadline(sent + self._ttl))
        row = {
            "id": lease.id,
            "owner": owner,
            "since": clock.now,
            "expires_at": clock.expiry,
            "boot": clock.boot,
        }
        take: Any = (
            clock.insert(leases)
            .values(key=key, **row)
            .on_conflict_do_update(index_elements=["key"], set_=row, where=~clock.valid)
            .returning(leases.c.id)
        )
        with self._store.writing() as connection:
            return None if connection.execute(take).first() is None else lease

    def _keep_renewing(self) -> None:
        while not self._closing.wait(self._ttl / 15):
            with self._lock:
                held = [lease for lease in self._held if lease.lost.left > 0]
            if any(lease.lost.left <= self._ttl * 2 / 3 for lease in held):
                try:
                    self._renew(held)
                except Unavailable as error:  # tried again in the next round, until they are lost
                    keys = ", ".join(lease.key for lease in held)
                    _log.warning("the locks %s could not be renewed: %s", keys, error)

    def _renew(self, held: Sequence[StoreLease]) -> None:
        """One statement, however many are held."""
        sent, clock = time.monotonic(), self._clock(self._ttl)
        renew = update(leases).where(leases.c.id.in_([lease.id for lease in held]))
        with self._store.writing() as connection:
            moved = renew.values(expires_at=clock.expiry).returning(leases.c.id)
            renewed = set(connection.execute(moved).scalars())
        for lease in held:
            if lease.id in renewed:
                lease.lost.move(sent + self._ttl)
            else:
                lease.lost.set()

    def _confirm(self, lease: StoreLease) -> bool:
        own = select(leases.c.key).where(*_of(lease), self._clock(self._ttl).valid)
        with self._store.reading() as connection:
            return connection.execute(own).first() is not None

    def _release(self, lease: StoreLease) -> None:
        with self._lock:
            self._held.discard(lease)
        try:
            with self._store.writing() as connection:
                connection.execute(delete(leases).where(*_of(lease)))
        except Unavailable as error:  # it runs out by itself
            _log.warning("the lock %s could not be released: %s", lease.key, error)


class StoreLease:
    """A lock held in the store; see `Lease`."""

    def __init__(self, supervisor: StoreSupervisor, key: str, id: str, lost: Deadline) -> None:
        self._supervisor = supervisor
        self.key = key
        self.id = id
        self.lost = lost

    def confirm(self) -> bool:
        """See `Lease.confirm`."""
        return self._supervisor._confirm(self)

    def release(self) -> None:
        """See `Lease.release`."""
        self._supervisor._release(self)

    def __enter__(self) -> StoreLease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class _Clock(NamedTuple):
    """What the statements say of time: the present, when a lock taken now expires, and whether the
    lock in the row is held. `insert` is the dialect's, which can update on a conflict."""

    now: Any
    expiry: Any
    valid: ColumnElement[bool]
    boot: str | None
    insert: Any


def _postgresql(ttl: float) -> _Clock:
    now = func.clock_timestamp(type_=DateTime(timezone=True))
    expiry = now + literal(timedelta(seconds=ttl))
    return _Clock(now, expiry, leases.c.expires_at > now, None, postgresql.insert)


def _sqlite(ttl: float) -> _Clock:
    now, boot = time.monotonic(), _boot()
    valid = and_(leases.c.boot == boot, leases.c.expires_at > now)
    return _Clock(datetime.now(UTC), now + ttl, valid, boot, sqlite.insert)


@cache
def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _of(lease: StoreLease) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return leases.c.key == lease.key, leases.c.id == lease.id
