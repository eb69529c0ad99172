"""The leases that a process holds, when each of them ends, and the thread that renews them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from blacksmith_dagster.errors import BlacksmithError
from blacksmith_dagster.supervisor.services import Service

_log = logging.getLogger(__name__)


class Deadline(threading.Event):
    """An event that sets itself at a given time, unless it is moved to a later one before.

    `at` is a `time.monotonic()` value. Every check reads the clock, so the answer is right even after
    the process was paused, or while the renewing thread hangs in a call.

    >>> deadline = Deadline(time.monotonic() + 0.01)
    >>> deadline.is_set(), deadline.wait(1)
    (False, True)
    """

    def __init__(self, at: float) -> None:
        super().__init__()
        self._at = at

    @property
    def left(self) -> float:
        """Seconds until the deadline; 0 once it is set."""
        return 0.0 if super().is_set() else max(self._at - time.monotonic(), 0.0)

    def move(self, at: float) -> None:
        """Move the deadline after a renewal. A deadline that has passed stays set."""
        if not self.is_set():
            self._at = at

    def is_set(self) -> bool:
        """Whether the deadline has passed, or `set` was called."""
        if self.left <= 0:
            self.set()
        return super().is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the deadline, at most `timeout` seconds; returns whether it is set."""
        until = float("inf") if timeout is None else time.monotonic() + timeout
        while not self.is_set():
            seconds = until - time.monotonic()
            if seconds <= 0:
                return False
            super().wait(min(self.left, seconds))
        return True


@dataclass(frozen=True, eq=False)
class Lease:
    """A held lock, which is renewed in the background well within its time to live.

    - `key`: what is locked: `load/<destination>/<event>`.
    - `id`: identifies this acquisition; a fencing token stores it as its holder.
    - `lost`: set once another process may hold the lock: when the time to live has passed since the
      last successful renewal was sent, or when a renewal was rejected.
    """

    key: str
    id: str
    lost: Deadline
    _confirm: Callable[[Lease], bool]
    _release: Callable[[Lease], None]

    def confirm(self) -> bool:
        """Whether this acquisition still holds the lock, by a consistent read of the supervisor.

        Raises `Unavailable` when the supervisor does not respond.
        """
        return self._confirm(self)

    def release(self) -> None:
        """Release the lock. If it was lost, its new holder is not affected."""
        self._release(self)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Renewals:
    """One thread that renews leases at a third of their time to live, and registrations of services.

    - `ttl`: seconds for which a renewal holds.
    - `renew`: moves `lost` of each lease, or sets it if the renewal was rejected. It is called with
      all held leases as soon as one of them is due.
    - `register`: registers a service for `registration_seconds`; called again at half of that.

    An exception of either is logged (for a service, once per outage) and the call is retried.
    """

    def __init__(
        self,
        ttl: float,
        renew: Callable[[Sequence[Lease]], None],
        register: Callable[[Service], None],
    ) -> None:
        self._ttl = ttl
        self._renew = renew
        self._register = register
        self._lock = threading.Lock()
        self._leases: set[Lease] = set()
        # By id, with the time of the next registration.
        self._services: dict[str, tuple[Service, float]] = {}
        self._registering = threading.Lock()
        self._failed: set[str] = set()  # the ids of services whose last registration failed
        self._thread: threading.Thread | None = None
        self.closing = threading.Event()

    @property
    def registration_seconds(self) -> float:
        """Seconds for which a registration holds: longer than a lease, as nothing waits for its end."""
        return 4 * self._ttl

    def add(self, lease: Lease) -> None:
        """Renew a lease from now on."""
        with self._lock:
            self._leases.add(lease)
            self._start_thread()

    def remove(self, lease: Lease) -> None:
        """Stop renewing a lease."""
        with self._lock:
            self._leases.discard(lease)

    def add_service(self, service: Service) -> None:
        """Register a service soon, and keep renewing its registration."""
        with self._lock:
            self._services[service.id] = (service, 0.0)
            self._start_thread()

    def forget(self, service: Service) -> None:
        """Stop registering a service; once this returns, no registration is in progress either."""
        with self._registering, self._lock:
            self._services.pop(service.id, None)

    def stop(self) -> tuple[Sequence[Lease], Sequence[Service]]:
        """End the thread; returns the remaining leases and services."""
        self.closing.set()
        if self._thread is not None:
            self._thread.join(self._ttl)
        return list(self._leases), [service for service, _ in self._services.values()]

    def _start_thread(self) -> None:
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
            for service, due in services:
                if time.monotonic() >= due:
                    self._register_or_log(service)

    def _renew_or_log(self, leases: Sequence[Lease]) -> None:
        try:
            self._renew(leases)
        except BlacksmithError as error:  # the next round tries again, until they are lost
            keys = ", ".join(sorted(lease.key for lease in leases))
            _log.warning("the locks %s could not be renewed: %s", keys, error)
        except Exception:  # noqa: BLE001 - a bug of ours must not end the thread
            _log.exception("locks could not be renewed")

    def _register_or_log(self, service: Service) -> None:
        with self._registering:
            if service.id not in self._services:
                return
            interval = self.registration_seconds / 2
            try:
                self._register(service)
            except Exception as error:  # noqa: BLE001 - a bug of ours must not end the thread
                interval = self._ttl / 3
                if service.id not in self._failed:
                    is_bug = not isinstance(error, BlacksmithError)
                    message = "%s could not be registered, and is retried: %s"
                    _log.warning(message, service.id, error, exc_info=error if is_bug else None)
                self._failed.add(service.id)
            else:
                self._failed.discard(service.id)
            with self._lock:
                self._services[service.id] = (service, time.monotonic() + interval)
