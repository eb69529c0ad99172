"""What a supervisor does: locks that let one process at a time work, and a register of services."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

import msgspec

from blacksmith_dagster.errors import BlacksmithError
from blacksmith_dagster.supervisor.renewals import Deadline, Lease, Renewals
from blacksmith_dagster.supervisor.services import Service, ServiceStatus

_log = logging.getLogger(__name__)


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


class Supervisor(ABC):
    """Keeps locks by key, and a register of services. Threads may share one.

    A call raises `Unavailable`, within seconds, if the supervisor does not respond, and
    `SettingsError` if it rejects this process's credentials.

    - `label`: the supervisor's URL without credentials, for people.
    - `ttl`: seconds for which a lock is held without a renewal.
    """

    def __init__(self, label: str, ttl: float) -> None:
        self.label = label
        self._ttl = ttl
        self._renewals = Renewals(ttl, self._renew, self._register)

    @abstractmethod
    def acquire(self, key: str, holder: str, *, wait: float = 0.0) -> Lease | None:
        """Acquire a lock; `None` if another holder still has it after `wait` seconds."""

    @abstractmethod
    def status(self, key: str) -> LockStatus:
        """Whether the lock is held, and by whom."""

    @abstractmethod
    def locks(self) -> Sequence[LockStatus]:
        """Every lock that is held, sorted by key."""

    @abstractmethod
    def services(self) -> Sequence[ServiceStatus]:
        """The registered services of all processes, sorted by name."""

    def ready(self) -> None:
        """Check that locks can be acquired now; raises as described above if not."""
        self.status("ready")

    def register(self, service: Service) -> None:
        """Keep a service registered until it is deregistered or this process ends.

        Returns at once and raises nothing: registration happens in the background, within a second
        or as soon as the supervisor responds.
        """
        self._renewals.add_service(service)

    def deregister(self, service: Service) -> None:
        """Remove a service that this object registered. Raises nothing."""
        self._renewals.forget(service)
        try:
            self._deregister(service)
        except BlacksmithError as error:  # its registration expires
            _log.warning("%s could not be deregistered: %s", service.id, error)

    def close(self) -> None:
        """Stop renewing: release the leases that are still held, and deregister the services."""
        unreleased, registered = self._renewals.stop()
        for lease in unreleased:
            lease.release()
        for service in registered:
            self.deregister(service)

    def _lease(self, key: str, id: str, sent: float) -> Lease:
        """A lease for a lock that was requested at `sent`."""
        return Lease(key, id, Deadline(sent + self._ttl), self._confirm, self._release)

    def _release(self, lease: Lease) -> None:
        self._renewals.remove(lease)
        try:
            self._unlock(lease)
        except BlacksmithError as error:  # it expires
            _log.warning("the lock %s could not be released: %s", lease.key, error)

    @abstractmethod
    def _renew(self, leases: Sequence[Lease]) -> None:
        """Move `lost` of each lease, or set it if the renewal was rejected."""

    @abstractmethod
    def _confirm(self, lease: Lease) -> bool:
        """Whether the lease still holds its lock, by a consistent read."""

    @abstractmethod
    def _unlock(self, lease: Lease) -> None:
        """Free the lock, if the lease still holds it."""

    @abstractmethod
    def _register(self, service: Service) -> None:
        """Register the service for `registration_seconds`, if it is not registered."""

    @abstractmethod
    def _deregister(self, service: Service) -> None:
        """Remove the service."""


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
