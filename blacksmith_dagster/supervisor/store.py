"""The default supervisor: locks and services as rows of the store's own database."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
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

from blacksmith_dagster.store.database import Database
from blacksmith_dagster.store.statements import upsert
from blacksmith_dagster.store.tables import leases, services
from blacksmith_dagster.supervisor.interface import LockStatus, Supervisor
from blacksmith_dagster.supervisor.renewals import Lease
from blacksmith_dagster.supervisor.services import Service, ServiceStatus, here

_POLL = 0.1  # seconds between two checks of a lock that another process holds


class StoreSupervisor(Supervisor):
    """Keeps locks in the store's table `leases` and services in `services`, by the database's clock.

    A lock is free again if its holder has not renewed it for `ttl` seconds, and a service is removed
    if it has not been renewed for four times as long. One thread renews both, all locks in one
    statement. SQLite has no clock of its own: its processes use their host's monotonic clock, and a
    reboot frees the locks.

    >>> supervisor = StoreSupervisor(store.database)  # doctest: +SKIP
    >>> with supervisor.acquire("load/warehouse/flights", "me") as lease:  # doctest: +SKIP
    ...     lease.confirm()
    True
    """

    def __init__(self, database: Database, ttl: float = 15.0) -> None:
        super().__init__(database.label, ttl)
        self._database = database
        self._clock = _postgresql if database.engine.dialect.name == "postgresql" else _sqlite

    def acquire(self, key: str, holder: str, *, wait: float = 0.0) -> Lease | None:
        """See `Supervisor.acquire`."""
        give_up = time.monotonic() + wait
        lease = self._try_acquire(key, holder)
        while lease is None:
            left = give_up - time.monotonic()
            if left <= 0 or self._renewals.closing.wait(min(_POLL, left)):
                return None
            if not self.status(key).held:  # a read before the write: many processes may wait
                lease = self._try_acquire(key, holder)
        self._renewals.add(lease)
        return lease

    def status(self, key: str) -> LockStatus:
        """See `Supervisor.status`."""
        locks = self._held(leases.c.key == key)
        return locks[0] if locks else LockStatus(key, False)

    def locks(self) -> Sequence[LockStatus]:
        """See `Supervisor.locks`."""
        return self._held(true())

    def services(self) -> Sequence[ServiceStatus]:
        """See `Supervisor.services`."""
        valid = self._clock(services).valid
        with self._database.reading() as connection:
            rows = connection.execute(
                select(services).where(valid).order_by(services.c.name, services.c.id)
            )
            return [
                ServiceStatus(
                    row.name, row.id, row.address, True, row.version, tuple(row.tags.split())
                )
                for row in rows
            ]

    def _held(self, condition: ColumnElement[bool]) -> Sequence[LockStatus]:
        valid = self._clock(leases).valid
        query = select(leases.c.key, leases.c.holder, leases.c.address, leases.c.since)
        with self._database.reading() as connection:
            rows = connection.execute(query.where(condition, valid).order_by(leases.c.key))
            return [LockStatus(row.key, True, row.holder, row.address, row.since) for row in rows]

    def _try_acquire(self, key: str, holder: str) -> Lease | None:
        """Acquire the lock if it is free: one statement, so that no process can come between."""
        sent, clock = time.monotonic(), self._clock(leases, self._ttl)
        lease_id = secrets.token_hex(16)
        row = {
            "id": lease_id,
            "holder": holder,
            "address": here(),
            "since": clock.now,
            "expires_at": clock.expiry,
            "boot": clock.boot,
        }
        with self._database.writing() as connection:
            acquire = upsert(connection, leases).values(key=key, **row)
            acquired = connection.execute(
                acquire.on_conflict_do_update(
                    index_elements=["key"], set_=row, where=~clock.valid
                ).returning(leases.c.id)
            ).first()
        return self._lease(key, lease_id, sent) if acquired else None

    def _renew(self, held: Sequence[Lease]) -> None:
        """Renew all leases in one statement."""
        sent, clock = time.monotonic(), self._clock(leases, self._ttl)
        renew = update(leases).where(leases.c.id.in_([lease.id for lease in held]))
        with self._database.writing() as connection:
            statement = renew.values(expires_at=clock.expiry).returning(leases.c.id)
            renewed = set(connection.execute(statement).scalars())
        for lease in held:
            if lease.id in renewed:
                lease.lost.move(sent + self._ttl)
            else:
                lease.lost.set()

    def _confirm(self, lease: Lease) -> bool:
        valid = self._clock(leases).valid
        with self._database.reading() as connection:
            rows = connection.execute(select(leases.c.key).where(*_is_row_of(lease), valid))
            return rows.first() is not None

    def _unlock(self, lease: Lease) -> None:
        with self._database.writing() as connection:
            connection.execute(delete(leases).where(*_is_row_of(lease)))

    def _register(self, service: Service) -> None:
        clock = self._clock(services, self._renewals.registration_seconds)
        row = {
            "name": service.name,
            "address": service.address,
            "version": service.version,
            "tags": " ".join(service.tags),
            "expires_at": clock.expiry,
            "boot": clock.boot,
        }
        with self._database.writing() as connection:
            write = upsert(connection, services).values(id=service.id, **row)
            connection.execute(write.on_conflict_do_update(index_elements=["id"], set_=row))

    def _deregister(self, service: Service) -> None:
        with self._database.writing() as connection:
            # Remove expired services too: nothing else does.
            expired = ~self._clock(services).valid
            connection.execute(delete(services).where((services.c.id == service.id) | expired))


class _Clock(NamedTuple):
    """SQL for times: `now`, the `expiry` of a row that is written now, and whether a row is still
    `valid`. `boot` identifies the host's boot, for SQLite."""

    now: Any
    expiry: Any
    valid: ColumnElement[bool]
    boot: str | None


def _postgresql(table: Table, ttl: float = 0.0) -> _Clock:
    now = func.clock_timestamp(type_=DateTime(timezone=True))
    return _Clock(now, now + literal(timedelta(seconds=ttl)), table.c.expires_at > now, None)


def _sqlite(table: Table, ttl: float = 0.0) -> _Clock:
    now, boot = time.monotonic(), _boot()
    valid = and_(table.c.boot == boot, table.c.expires_at > now)
    return _Clock(datetime.now(UTC), now + ttl, valid, boot)


@cache
def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _is_row_of(lease: Lease) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return leases.c.key == lease.key, leases.c.id == lease.id
