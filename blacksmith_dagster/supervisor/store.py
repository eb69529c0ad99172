"""Locks kept in the store's own database, a row each: nothing but the store is needed."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    DateTime,
    Table,
    and_,
    delete,
    func,
    literal,
    select,
    true,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from blacksmith_dagster.errors import Unavailable
from blacksmith_dagster.store.sql import SQLStore
from blacksmith_dagster.store.tables import leases, services
from blacksmith_dagster.supervisor.interface import LockStatus, Service, ServiceStatus, here
from blacksmith_dagster.supervisor.renewals import Deadline, HeldLease, Renewals

_log = logging.getLogger(__name__)

POLL = 0.1
"""Seconds between two looks at a lock that another holds."""


class StoreSupervisor:
    """Locks in the store's table `leases`, and services in `services`, by the database's clock.

    A lock that is not renewed for `ttl` seconds is free again, a service that does not say for four
    times as long that it is there is forgotten; one thread does both, and renews all locks together.
    SQLite has no clock of its own: there it is the host's monotonic one, which all its processes
    share, and a reboot frees the locks.

    >>> supervisor = StoreSupervisor(store)  # doctest: +SKIP
    >>> with supervisor.acquire("load/warehouse/flights", "me") as lease:  # doctest: +SKIP
    ...     lease.confirm()
    True
    """

    def __init__(self, store: SQLStore, ttl: float = 15.0) -> None:
        self._store = store
        self._dialect = _POSTGRESQL if store.engine.dialect.name == "postgresql" else _SQLITE
        self._ttl = ttl
        self._renewals = Renewals(ttl, self._renew, self._ensure_registered)

    @property
    def label(self) -> str:
        """See `Supervisor.label`."""
        return self._store.label

    def ready(self) -> None:
        """See `Supervisor.ready`."""
        self.status("ready")

    def acquire(self, key: str, holder: str, *, wait: float = 0.0) -> HeldLease | None:
        """See `Supervisor.acquire`."""
        give_up = time.monotonic() + wait
        lease = self._take(key, holder)
        while lease is None:
            left = give_up - time.monotonic()
            if left <= 0 or self._renewals.closing.wait(min(POLL, left)):
                return None
            if not self.status(key).held:  # to look is no write, and many may wait
                lease = self._take(key, holder)
        self._renewals.add(lease)
        return lease

    def status(self, key: str) -> LockStatus:
        """See `Supervisor.status`."""
        found = self._held(leases.c.key == key)
        return found[0] if found else LockStatus(key, False)

    def locks(self) -> Sequence[LockStatus]:
        """See `Supervisor.locks`."""
        return self._held(true())

    def register(self, service: Service) -> None:
        """See `Supervisor.register`."""
        self._renewals.add_service(service)

    def deregister(self, service: Service) -> None:
        """See `Supervisor.deregister`."""
        self._renewals.forget(service)
        try:
            with self._store.writing() as connection:
                # With those that have vanished: nobody else would remove them.
                gone = ~self._dialect.clock(services, 0).valid
                connection.execute(delete(services).where((services.c.id == service.id) | gone))
        except Unavailable as error:  # it is forgotten by itself
            _log.warning("%s could not be deregistered: %s", service.id, error)

    def services(self) -> Sequence[ServiceStatus]:
        """See `Supervisor.services`."""
        valid = self._dialect.clock(services, 0).valid
        with self._store.reading() as connection:
            rows = connection.execute(
                select(services).where(valid).order_by(services.c.name, services.c.id)
            )
            return [
                ServiceStatus(
                    row.name, row.id, row.address, True, row.version, tuple(row.tags.split())
                )
                for row in rows
            ]

    def close(self) -> None:
        """See `Supervisor.close`."""
        held, registered = self._renewals.stop()
        for lease in held:
            lease.release()
        for service in registered:
            self.deregister(service)

    def _held(self, which: ColumnElement[bool]) -> Sequence[LockStatus]:
        valid = self._dialect.clock(leases, 0).valid
        found = select(leases.c.key, leases.c.holder, leases.c.address, leases.c.since)
        with self._store.reading() as connection:
            rows = connection.execute(found.where(which, valid).order_by(leases.c.key))
            return [LockStatus(row.key, True, row.holder, row.address, row.since) for row in rows]

    def _take(self, key: str, holder: str) -> HeldLease | None:
        """One statement: nobody can come between looking and taking."""
        sent, clock = time.monotonic(), self._dialect.clock(leases, self._ttl)
        made, lost = secrets.token_hex(16), Deadline(sent + self._ttl)
        row = {
            "id": made,
            "holder": holder,
            "address": here(),
            "since": clock.now,
            "expires_at": clock.expiry,
            "boot": clock.boot,
        }
        take: Any = (
            self._dialect.insert(leases)
            .values(key=key, **row)
            .on_conflict_do_update(index_elements=["key"], set_=row, where=~clock.valid)
            .returning(leases.c.id)
        )
        with self._store.writing() as connection:
            if connection.execute(take).first() is None:
                return None
        return HeldLease(key, made, lost, self._confirm, self._release)

    def _renew(self, held: Sequence[HeldLease]) -> None:
        """One statement, however many are held."""
        sent, clock = time.monotonic(), self._dialect.clock(leases, self._ttl)
        renew = update(leases).where(leases.c.id.in_([lease.id for lease in held]))
        with self._store.writing() as connection:
            moved = renew.values(expires_at=clock.expiry).returning(leases.c.id)
            renewed = set(connection.execute(moved).scalars())
        for lease in held:
            if lease.id in renewed:
                lease.lost.move(sent + self._ttl)
            else:
                lease.lost.set()

    def _ensure_registered(self, service: Service) -> None:
        clock = self._dialect.clock(services, self._renewals.registration_seconds)
        row = {
            "name": service.name,
            "address": service.address,
            "version": service.version,
            "tags": " ".join(service.tags),
            "expires_at": clock.expiry,
            "boot": clock.boot,
        }
        write: Any = self._dialect.insert(services).values(id=service.id, **row)
        with self._store.writing() as connection:
            connection.execute(write.on_conflict_do_update(index_elements=["id"], set_=row))

    def _confirm(self, lease: HeldLease) -> bool:
        valid = self._dialect.clock(leases, 0).valid
        with self._store.reading() as connection:
            own = connection.execute(select(leases.c.key).where(*_of(lease), valid))
            return own.first() is not None

    def _release(self, lease: HeldLease) -> None:
        self._renewals.remove(lease)
        try:
            with self._store.writing() as connection:
                connection.execute(delete(leases).where(*_of(lease)))
        except Unavailable as error:  # it runs out by itself
            _log.warning("the lock %s could not be released: %s", lease.key, error)


class _Clock(NamedTuple):
    """What the statements say of time: the present, when what is written now expires, and whether
    the row of the table is valid still."""

    now: Any
    expiry: Any
    valid: ColumnElement[bool]
    boot: str | None


class _Dialect(NamedTuple):
    """A database's clock, and its `insert`, which can update on a conflict."""

    clock: Callable[[Table, float], _Clock]
    insert: Callable[[Table], Any]


def _postgresql(table: Table, ttl: float) -> _Clock:
    now = func.clock_timestamp(type_=DateTime(timezone=True))
    return _Clock(now, now + literal(timedelta(seconds=ttl)), table.c.expires_at > now, None)


def _sqlite(table: Table, ttl: float) -> _Clock:
    now, boot = time.monotonic(), _boot()
    valid = and_(table.c.boot == boot, table.c.expires_at > now)
    return _Clock(datetime.now(UTC), now + ttl, valid, boot)


_POSTGRESQL = _Dialect(_postgresql, postgresql.insert)
_SQLITE = _Dialect(_sqlite, sqlite.insert)


@cache
def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _of(lease: HeldLease) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return leases.c.key == lease.key, leases.c.id == lease.id
