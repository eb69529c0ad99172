"""Locks that let one instance at a time listen, load or migrate, and who serves at present."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

import msgspec

from blacksmith_dagster.supervisor.service import Service, ServiceStatus


class LockStatus(msgspec.Struct, frozen=True):
    """Who holds a lock.

    `holder` is for people: a host, a process, a Dagster run; `address` the process that holds it, as
    `host:pid`; `since` when it was taken, by the clock of the supervisor that keeps it or, with
    Consul, of the holder.
    """

    key: str
    held: bool
    holder: str | None = None
    address: str | None = None
    since: datetime | None = None

    @property
    def held_by(self) -> str:
        """The holder and its address, in words.

        >>> LockStatus("load/lake/flights", True, "run 7", "worker-1:4711").held_by
        'run 7 at worker-1:4711'
        """
        holder = self.holder or "another process"
        return f"{holder} at {self.address}" if self.address not in (None, self.holder) else holder


class Lease(Protocol):
    """A lock that is held, renewed in the background well within its time to live."""

    @property
    def key(self) -> str:
        """What is locked: `load/<destination>/<event>`."""
        ...

    @property
    def id(self) -> str:
        """Unique to this acquisition: the holder that fencing tokens name."""
        ...

    @property
    def lost(self) -> threading.Event:
        """Set once the lock may be another's: at the deadline counted from the sending of the last
        good renewal, or when a renewal was refused."""
        ...

    def confirm(self) -> bool:
        """Ask now, consistently, whether the lock is still held by this acquisition.

        Raises `Unavailable` when the supervisor does not respond.
        """
        ...

    def release(self) -> None:
        """Give the lock back. Releasing one that was lost changes nothing for its new holder."""
        ...

    def __enter__(self) -> Lease: ...

    def __exit__(self, *_: object) -> None: ...


class Supervisor(Protocol):
    """Hands out locks by key, and knows who serves. Safe to share between threads.

    A call raises `Unavailable` when the supervisor does not respond, within seconds, and
    `SettingsError` when it refuses this process's credentials.
    """

    @property
    def label(self) -> str:
        """Which supervisor this is, for people: its URL without credentials."""
        ...

    def ready(self) -> None:
        """Return if locks can be had now."""
        ...

    def acquire(self, key: str, holder: str, *, wait: float = 0.0) -> Lease | None:
        """The lock, or `None` if it is still held by another after `wait` seconds."""
        ...

    def status(self, key: str) -> LockStatus:
        """Who holds the lock."""
        ...

    def locks(self) -> Sequence[LockStatus]:
        """Every lock that is held, in the order of their keys."""
        ...

    def register(self, service: Service) -> None:
        """Make a service known, and keep it so until it is deregistered or this process ends.

        It returns at once and raises nothing: the service is registered in the background, within a
        second or as soon as the supervisor responds.
        """
        ...

    def deregister(self, service: Service) -> None:
        """Forget a service that this supervisor has registered. Raises nothing."""
        ...

    def services(self) -> Sequence[ServiceStatus]:
        """The services that are registered, by whichever process, in the order of their names."""
        ...

    def close(self) -> None:
        """Stop renewing; leases still held are released, and services deregistered."""
        ...
