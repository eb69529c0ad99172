"""Locks and services kept by Consul."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple

import consul
import requests
from consul.callback import CB

from blacksmith_dagster.errors import SettingsError, Unavailable
from blacksmith_dagster.redaction import clean, hide, one_line
from blacksmith_dagster.supervisor.address import ConsulAddress
from blacksmith_dagster.supervisor.interface import LockStatus, Supervisor
from blacksmith_dagster.supervisor.renewals import Lease
from blacksmith_dagster.supervisor.services import (
    GATEWAY,
    SCHEDULER,
    Service,
    ServiceStatus,
    here,
)

PREFIX = "blacksmith/"
"""The prefix of every lock's key in Consul."""

_LONGEST_CALL = 5.0  # seconds
_LONGEST_QUERY = 1.0  # seconds of a blocking query: `close` waits for its end
_POLL = 0.1  # seconds between two tries while Consul withholds a free lock (lock-delay)
_LONGEST_MESSAGE = 200  # characters of an error response
_LEAST_DEREGISTRATION = 60.0  # seconds; Consul's minimum


class ConsulSupervisor(Supervisor):
    """Keeps locks as keys under `blacksmith/` in Consul, each with a session of its own.

    Only its time to live ends a session, not the failure of its agent's node, so a holder always
    knows before another process may acquire the lock. A call may take a third of the time to live, 5
    seconds at most.

    >>> supervisor = ConsulSupervisor(parse_consul_url("consul://127.0.0.1:8500"))  # doctest: +SKIP
    >>> with supervisor.acquire("load/warehouse/flights", "me") as lease:  # doctest: +SKIP
    ...     lease.confirm()
    True
    """

    def __init__(self, address: ConsulAddress) -> None:
        super().__init__(address.label, address.ttl)
        self._lock_delay = address.lock_delay
        if address.token:
            hide(address.token)
        self._client = consul.Consul(
            address.host,
            address.port,
            scheme=address.scheme,
            dc=address.dc,
            verify=address.verify,
            cert=address.certificate,
            connections_timeout=min(self._ttl / 3, _LONGEST_CALL),
        )
        self._client.token = address.token  # overrides the token of the environment
        session = self._client.http.session
        session.trust_env = False  # ignore proxies and .netrc
        session.max_redirects = 0  # a redirect would pass the token on
        if address.namespace:
            session.headers["X-Consul-Namespace"] = address.namespace

    def close(self) -> None:
        """See `Supervisor.close`."""
        super().close()
        self._client.http.session.close()

    # -- locks
    def acquire(self, key: str, holder: str, *, wait: float = 0.0) -> Lease | None:
        """See `Supervisor.acquire`."""
        give_up = time.monotonic() + wait
        lease: Lease | None = None
        acquired, state = False, _KeyState()
        try:
            while True:
                left = give_up - time.monotonic()
                state = self._read(key, state.version if state.session else None, left)
                if state.session is None:
                    if lease is not None and lease.lost.is_set():
                        self._release(lease)
                        lease = None
                    lease = lease or self._open_session(key)
                    acquired = self._try_acquire(lease, holder)
                    if acquired:
                        return lease
                left = give_up - time.monotonic()
                pause = 0.0 if state.session else min(_POLL, max(left, 0.0))
                if left <= 0 or self._renewals.closing.wait(pause):
                    return None
        finally:
            if lease is not None and not acquired:
                self._release(lease)

    def status(self, key: str) -> LockStatus:
        """See `Supervisor.status`."""
        state = self._read(key)
        return LockStatus(key, False) if state.session is None else _status(key, state.value)

    def locks(self) -> Sequence[LockStatus]:
        """See `Supervisor.locks`."""
        with self._translate_errors():
            _, entries = self._client.kv.get(PREFIX, recurse=True)
        return [
            _status(entry["Key"].removeprefix(PREFIX), entry["Value"])
            for entry in entries or ()
            if "Session" in entry
        ]

    def _read(self, key: str, version: str | None = None, wait: float = 0.0) -> _KeyState:
        """A lock's key; with `version`, wait up to `wait` seconds for another version of it."""
        timeout = f"{max(min(wait, _LONGEST_QUERY), 0.001) * 1000:.0f}ms"
        with self._translate_errors():
            version, entry = self._client.kv.get(PREFIX + key, index=version, wait=timeout)
        if entry is None:
            return _KeyState(version)
        return _KeyState(version, entry.get("Session"), entry["Value"])

    def _open_session(self, key: str) -> Lease:
        # session.create rejects a time to live below 10 s, which the server may allow.
        sent = time.monotonic()
        session = {
            "Name": PREFIX + key,
            "TTL": f"{self._ttl:g}s",
            "LockDelay": f"{self._lock_delay:g}s",
            "Checks": [],
            "NodeChecks": [],
            "Behavior": "release",
        }
        with self._translate_errors():
            session_id = self._client.http.put(
                CB.json(is_id=True),
                "/v1/session/create",
                params=[("dc", self._client.dc)] if self._client.dc else [],
                headers=self._client.prepare_headers(),
                data=json.dumps(session),
            )
        lease = self._lease(key, session_id, sent)
        self._renewals.add(lease)
        return lease

    def _try_acquire(self, lease: Lease, holder: str) -> bool:
        value = {"holder": holder, "address": here(), "since": datetime.now(UTC).isoformat()}
        with self._translate_errors():
            return bool(
                self._client.kv.put(PREFIX + lease.key, json.dumps(value), acquire=lease.id)
            )

    def _renew(self, leases: Sequence[Lease]) -> None:
        for lease in leases:
            sent = time.monotonic()
            try:
                with self._translate_errors():
                    self._client.session.renew(lease.id)
            except _SessionEnded:
                lease.lost.set()
            else:
                lease.lost.move(sent + self._ttl)

    def _confirm(self, lease: Lease) -> bool:
        with self._translate_errors():
            _, entry = self._client.kv.get(PREFIX + lease.key, consistency="consistent")
        return entry is not None and entry.get("Session") == lease.id

    def _unlock(self, lease: Lease) -> None:
        with self._translate_errors():
            # The key first: destroying a session that holds keys starts their lock-delay.
            self._client.kv.put(PREFIX + lease.key, None, release=lease.id)
            self._client.session.destroy(lease.id)

    # -- services
    def services(self) -> Sequence[ServiceStatus]:
        """See `Supervisor.services`."""
        services: list[ServiceStatus] = []
        with self._translate_errors():
            _, names = self._client.catalog.services()
            for name in sorted(names):
                if name.startswith("blacksmith-"):
                    _, entries = self._client.health.service(name)
                    services += sorted(map(_service, entries), key=lambda service: service.id)
        return services

    def _register(self, service: Service) -> None:
        """Register the service if the agent does not know it, for example after a restart."""
        seconds = f"{self._ttl / 2:g}s"
        expiry = self._renewals.registration_seconds
        if service.health is None:
            check: dict[str, Any] = {"TTL": f"{expiry:g}s"}
        else:
            check = {
                "HTTP": service.health,
                "Interval": seconds,
                "Timeout": seconds,
                "TLSSkipVerify": True,  # the certificate may be for another address
            }
        check["DeregisterCriticalServiceAfter"] = f"{max(_LEAST_DEREGISTRATION, expiry):g}s"
        check["Status"] = "passing"
        with self._translate_errors():
            if service.id not in self._client.agent.services():
                self._client.agent.service.register(
                    service.name,
                    service.id,
                    service.host,
                    service.port,
                    list(service.tags),
                    check,
                    meta={"version": service.version},
                )
            if service.health is None:
                self._client.agent.check.ttl_pass(f"service:{service.id}")

    def _deregister(self, service: Service) -> None:
        # If this fails, Consul deregisters it once its check has failed for long enough.
        with self._translate_errors():
            self._client.agent.service.deregister(service.id)

    # -- calls
    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        """Raise the client's errors as ours, which say what to do and never show the token."""
        try:
            yield
        except requests.RequestException as error:
            raise Unavailable(
                f"{self.label} does not respond ({type(error).__name__}); check that a Consul agent "
                "runs there and that BLACKSMITH_SUPERVISOR_URL names it. The call is retried"
            ) from error
        except consul.NotFound as error:
            raise _SessionEnded(f"{self.label} has no such session any more") from error
        except (consul.ACLPermissionDenied, consul.ACLDisabled) as error:
            raise SettingsError(
                f"{self.label} refuses {'the token' if self._client.token else 'a call without token'}"
                f" ({_message_of(error)}); set CONSUL_HTTP_TOKEN to a token that may write the keys "
                f"under {PREFIX}, sessions, and the services {GATEWAY} and {SCHEDULER}"
            ) from error
        except consul.ConsulException as error:
            raise Unavailable(
                f"{self.label} failed ({_message_of(error)}); the call is retried"
            ) from error


def _message_of(error: Exception) -> str:
    return one_line(clean(str(error)), _LONGEST_MESSAGE)


class _SessionEnded(Unavailable):
    """Consul has ended the session, or never had it."""


class _KeyState(NamedTuple):
    """What Consul has under a key: its version, the session that holds it, its value."""

    version: str | None = None
    session: str | None = None
    value: bytes | None = None


def _status(key: str, value: bytes | None) -> LockStatus:
    """The status of a held lock, from the value that its holder wrote, if it is readable."""
    try:
        record = json.loads(value or b"")
        since = datetime.fromisoformat(record["since"])
        return LockStatus(key, True, str(record["holder"]), str(record["address"]), since)
    except (ValueError, KeyError, TypeError):
        return LockStatus(key, True)


def _service(entry: Mapping[str, Any]) -> ServiceStatus:
    service = entry["Service"]
    host = service["Address"] or entry["Node"]["Address"]
    return ServiceStatus(
        service["Service"],
        service["ID"],
        Service(service["Service"], service["ID"], host, service["Port"] or None).address,
        all(check["Status"] == "passing" for check in entry["Checks"]),
        (service["Meta"] or {}).get("version", ""),
        tuple(service["Tags"] or ()),
    )
