"""What a supervisor does: locks that let one process at a time work, and a register of services."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import version
from typing import Protocol

import msgspec

GATEWAY = "blacksmith-gateway"
"""The name of the services that receive events."""

SCHEDULER = "blacksmith-scheduler"
"""The name of the services that load, or listen, for as long as they run."""


class Service(msgspec.Struct, frozen=True):
    """A process that serves, as it is registered.

    - `name`: `blacksmith-gateway` or `blacksmith-scheduler`; `id` is the one instance's.
    - `host`, `port`: where it is reached; a process that nobody calls has no port.
    - `health`: the URL that returns 200 while it is well; without one its process is taken for well
      while it says so itself.
    """

    name: str
    id: str
    host: str
    port: int | None = None
    health: str | None = None
    version: str = ""
    tags: Sequence[str] = ()

    @property
    def address(self) -> str:
        """`host:port`, or the host alone.

        >>> Service("blacksmith-gateway", "1", "::1", 8420).address
        '[::1]:8420'
        """
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port is None else f"{host}:{self.port}"


class ServiceStatus(msgspec.Struct, frozen=True):
    """A service that is registered, and whether it is well."""

    name: str
    id: str
    address: str
    passing: bool
    version: str = ""
    tags: Sequence[str] = ()


def here() -> str:
    """This process, as `host:pid`."""
    return f"{socket.gethostname()}:{os.getpid()}"


def this_process(name: str, tags: Sequence[str] = ()) -> Service:
    """The service that this process is, if nobody calls it: it is well while it runs.

    >>> this_process(SCHEDULER, ["lake"]).name
    'blacksmith-scheduler'
    """
    return Service(
        name, f"{name}:{here()}", socket.gethostname(), version=package_version(), tags=tags
    )


def package_version() -> str:
    """The version of this package."""
    return version("blacksmith-dagster")


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


@contextmanager
def registered(supervisor: Supervisor, service: Service) -> Iterator[None]:
    """Keep a service registered while the block runs.

    >>> with registered(supervisor, this_process(SCHEDULER)):  # doctest: +SKIP
    ...     work()
    """
    supervisor.register(service)
    try:
        yield
    finally:
        supervisor.deregister(service)
