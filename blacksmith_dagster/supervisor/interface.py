"""Locks that let one instance at a time listen, load or migrate."""

from __future__ import annotations

import threading
from datetime import datetime
from typing import Protocol

import msgspec


class LockStatus(msgspec.Struct, frozen=True):
    """Who holds a lock. `owner` is for people: a host, a process, a Dagster run."""

    key: str
    held: bool
    owner: str | None = None
    since: datetime | None = None


class Lease(Protocol):
    """A lock that is held, renewed in the background well within its time to live."""

    @property
    def key(self) -> str:
        """What is locked: `load/<destination>/<event>`."""
        ...

    @property
    def id(self) -> str:
        """Unique to this acquisition: the holder that fences name."""
        ...

    @property
    def lost(self) -> threading.Event:
        """Set once the lock may be another's: at the deadline counted from the sending of the last
        good renewal, or when a renewal was refused."""
        ...

    def confirm(self) -> bool:
        """Ask now, consistently, whether the lock is still held by this acquisition."""
        ...

    def release(self) -> None:
        """Give the lock back. Releasing one that was lost changes nothing for its new holder."""
        ...

    def __enter__(self) -> Lease: ...

    def __exit__(self, *_: object) -> None: ...


class Supervisor(Protocol):
    """Hands out locks by key. Safe to share between threads."""

    def acquire(self, key: str, owner: str, *, wait: float = 0.0) -> Lease | None:
        """The lock, or `None` if it is still held by another after `wait` seconds.

        Raises `Unavailable` when the supervisor does not answer.
        """
        ...

    def status(self, key: str) -> LockStatus:
        """Who holds the lock."""
        ...

    def close(self) -> None:
        """Stop renewing; leases still held are released."""
        ...
