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
"""The name of the services that load or listen until they are stopped."""


class Service(msgspec.Struct, frozen=True):
    """A service as it is registered: one running process.

    - `name`: `blacksmith-gateway` or `blacksmith-scheduler`; `id` identifies the process.
    - `host`, `port`: where it accepts connections; the port is `None` if it accepts none.
    - `health`: the URL that returns 200 while the service is healthy; without one, the service counts
      as healthy while its process renews the registration.
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
        """`host:port`, or only the host.

        >>> Service("blacksmith-gateway", "1", "::1", 8420).address
        '[::1]:8420'
        """
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port is None else f"{host}:{self.port}"


class ServiceStatus(msgspec.Struct, frozen=True):
    """A registered service, and whether it is healthy."""

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
    """This process as a service that accepts no connections and is healthy while it runs.

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
    """The state of a lock.

    - `holder`: for people: a host, a process or a Dagster run.
    - `address`: the process that holds the lock, as `host:pid`.
    - `since`: when the lock was acquired, by the supervisor's clock; with Consul, by the holder's.
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
    """A held lock, which is renewed in the background well within its time to live."""

    @property
    def key(self) -> str:
        """What is locked: `load/<destination>/<event>`."""
        ...

    @property
    def id(self) -> str:
        """Identifies this acquisition; a fencing token stores it as its holder."""
        ...

    @property
    def lost(self) -> threading.Event:
        """Set once another process may hold the lock: when the time to live has passed since the last
        successful renewal was sent, or when a renewal was rejected."""
        ...

    def confirm(self) -> bool:
        """Whether this acquisition still holds the lock, by a consistent read of the supervisor.

        Raises `Unavailable` when the supervisor does not respond.
        """
        ...

    def release(self) -> None:
        """Release the lock. If it was lost, its new holder is not affected."""
        ...

    def __enter__(self) -> Lease: ...

    def __exit__(self, *_: object) -> None: ...


class Supervisor(Protocol):
    """Keeps locks by key, and a register of services. Threads may share one.

    A call raises `Unavailable`, within seconds, if the supervisor does not respond, and
    `SettingsError` if it rejects this process's credentials.
    """

    @property
    def label(self) -> str:
        """The supervisor's URL without credentials, for people."""
        ...

    def ready(self) -> None:
        """Check that locks can be acquired now; raises as described above if not."""
        ...

    def acquire(self, key: str, holder: str, *, wait: float = 0.0) -> Lease | None:
        """Acquire a lock; `None` if another holder still has it after `wait` seconds."""
        ...

    def status(self, key: str) -> LockStatus:
        """Whether the lock is held, and by whom."""
        ...

    def locks(self) -> Sequence[LockStatus]:
        """Every lock that is held, sorted by key."""
        ...

    def register(self, service: Service) -> None:
        """Keep a service registered until it is deregistered or this process ends.

        Returns at once and raises nothing: registration happens in the background, within a second
        or as soon as the supervisor responds.
        """
        ...

    def deregister(self, service: Service) -> None:
        """Remove a service that this object registered. Raises nothing."""
        ...

    def services(self) -> Sequence[ServiceStatus]:
        """The registered services of all processes, sorted by name."""
        ...

    def close(self) -> None:
        """Stop renewing: release the leases that are still held, and deregister the services."""
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
