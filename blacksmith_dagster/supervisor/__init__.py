"""Locks that let one process at a time work, and a register of the services that run."""

from importlib.util import find_spec

from blacksmith_dagster.store.database import Database
from blacksmith_dagster.supervisor.address import parse_consul_url
from blacksmith_dagster.supervisor.interface import LockStatus, Supervisor, registered
from blacksmith_dagster.supervisor.renewals import Lease
from blacksmith_dagster.supervisor.services import (
    GATEWAY,
    SCHEDULER,
    Service,
    ServiceStatus,
    here,
    package_version,
    this_process,
)
from blacksmith_dagster.supervisor.store import StoreSupervisor

__all__ = [
    "GATEWAY",
    "SCHEDULER",
    "Lease",
    "LockStatus",
    "Service",
    "ServiceStatus",
    "StoreSupervisor",
    "Supervisor",
    "here",
    "open_supervisor",
    "package_version",
    "registered",
    "this_process",
]


def open_supervisor(url: str | None, database: Database) -> Supervisor:
    """The supervisor at `url`: `consul://host:8500`; the store's own locks if it is `None` or empty.

    It does not connect yet. `supervisor.address.parse_consul_url` lists what the URL can hold.

    Raises `SettingsError` for another URL, and `ImportError` when Consul's client is not installed.
    """
    if url:
        address = parse_consul_url(url)
        if find_spec("consul") is None:
            raise ImportError(
                "Consul needs its client; run `pip install 'blacksmith-dagster[consul]'`"
            )
        from blacksmith_dagster.supervisor.consul import ConsulSupervisor

        return ConsulSupervisor(address)
    return StoreSupervisor(database)
