"""The leases that a process holds, when each of them ends, and the thread that renews them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from blacksmith_dagster.errors import BlacksmithError
from blacksmith_dagster.supervisor.interface import Service

_log = logging.getLogger(__name__)


class Deadline(threading.Event):
    """An event that is set by the clock, unless it is moved on in time.

    It asks the clock itself: after a pause, or while the thread that renews hangs in a call, whoever
    looks still sees the truth. `at` is of `time.monotonic()`.

    >>> deadline = Deadline(time.monotonic() + 0.01)
    >>> deadline.is_set(), deadline.wait(1)
    (False, True)
    """

    def __init__(self, at: float) -> None:
        super().__init__()
        self._at = at

    @property
    def left(self) -> float:
        """Seconds until it is set; 0 if it is."""
        return 0.0 if super().is_set() else max(self._at - time.monotonic(), 0.0)

    def move(self, at: float) -> None:
        """Set it later: it was renewed. Once set it stays so."""
        if not self.is_set():
            self._at = at

    def is_set(self) -> bool:
        """Whether it was set, or its time has come."""
        if self.left <= 0:
            self.set()
        return super().is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for it, for `timeout` seconds at most; returns whether it is set."""
        until = float("inf") if timeout is None else time.monotonic() + timeout
        while not self.is_set():
            patience = until - time.monotonic()
            if patience <= 0:
                return False
            super().wait(min(self.left, patience))
        return True


class HeldLease:
    """A lock that is held; see `Lease`. `confirm` and `release` are its supervisor's."""

    def __init__(
        self,
        key: str,
        id: str,
        lost: Deadline,
        confirm: Callable[[HeldLease], bool],
        release: Callable[[HeldLease], None],
    ) -> None:
        self.key = key
        self.id = id
        self.lost = lost
        self._confirm = confirm
        self._release = release

    def confirm(self) -> bool:
        """See `Lease.confirm`."""
        return self._confirm(self)

    def release(self) -> None:
        """See `Lease.release`."""
        self._release(self)

    def __enter__(self) -> HeldLease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Renewals:
    """Renews leases at a third of their time to live, and registrations of services, in one thread.

    - `ttl`: seconds for which a renewal holds.
    - `renew`: of each lease moves `lost` on, or sets it if the renewal was refused. It is given all
      that are held as soon as it is time for one.
    - `register`: registers a service for `registration_seconds`; called again at half of that.

    What either raises is logged, once an outage for a service, and tried again.
    """

    def __init__(
        self,
        ttl: float,
        renew: Callable[[Sequence[HeldLease]], None],
        register: Callable[[Service], None],
    ) -> None:
        self._ttl = ttl
        self._renew = renew
        self._register = register
        self._lock = threading.Lock()
        self._leases: set[HeldLease] = set()
        self._services: dict[str, tuple[Service, float]] = {}  # by id; when it is next registered
        self._registering = threading.Lock()
        self._unknown: set[str] = set()  # the ids of services whose last registration failed
        self._thread: threading.Thread | None = None
        self.closing = threading.Event()

    @property
    def registration_seconds(self) -> float:
        """Seconds for which a registration holds: longer than a lease, as nothing waits for it."""
        return 4 * self._ttl

    def add(self, lease: HeldLease) -> None:
        """Renew a lease from now on."""
        with self._lock:
            self._leases.add(lease)
            self._begin()

    def remove(self, lease: HeldLease) -> None:
        """Renew a lease no more."""
        with self._lock:
            self._leases.discard(lease)

    def add_service(self, service: Service) -> None:
        """Register a service soon, and renew that from then on."""
        with self._lock:
            self._services[service.id] = (service, 0.0)
            self._begin()

    def forget(self, service: Service) -> None:
        """Stop registering a service: once this returns no registration is under way either."""
        with self._registering, self._lock:
            self._services.pop(service.id, None)

    def stop(self) -> tuple[Sequence[HeldLease], Sequence[Service]]:
        """End the thread; returns the leases and the services that were left."""
        self.closing.set()
        if self._thread is not None:
            self._thread.join(self._ttl)
        return list(self._leases), [service for service, _ in self._services.values()]

    def _begin(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="renew-locks", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while not self.closing.wait(self._ttl / 15):
            with self._lock:
                leases = [lease for lease in self._leases if lease.lost.left > 0]
                services = list(self._services.values())
            if any(lease.lost.left <= self._ttl * 2 / 3 for lease in leases):
                self._renew_or_log(leases)
            for service, at in services:
                if time.monotonic() >= at:
                    self._register_or_log(service)

    def _renew_or_log(self, leases: Sequence[HeldLease]) -> None:
        try:
            self._renew(leases)
        except BlacksmithError as error:  # tried again in the next round, until they are lost
            keys = ", ".join(sorted(lease.key for lease in leases))
            _log.warning("the locks %s could not be renewed: %s", keys, error)
        except Exception:  # noqa: BLE001 - a bug of ours must not end the thread
            _log.exception("locks could not be renewed")

    def _register_or_log(self, service: Service) -> None:
        with self._registering:
            if service.id not in self._services:
                return
            again = self.registration_seconds / 2
            try:
                self._register(service)
            except Exception as error:  # noqa: BLE001 - as above
                again = self._ttl / 3
                if service.id not in self._unknown:
                    known = isinstance(error, BlacksmithError)
                    message = "%s is not registered, and is tried again: %s"
                    _log.warning(message, service.id, error, exc_info=None if known else error)
                self._unknown.add(service.id)
            else:
                self._unknown.discard(service.id)
            with self._lock:
                self._services[service.id] = (service, time.monotonic() + again)
