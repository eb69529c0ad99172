"""Locks, so that one instance at a time loads."""

from urllib.parse import urlsplit

from blacksmith_dagster.errors import SettingsError
from blacksmith_dagster.store import Store
from blacksmith_dagster.store.sql import SQLStore
from blacksmith_dagster.supervisor.interface import Lease, LockStatus, Supervisor
from blacksmith_dagster.supervisor.store import StoreSupervisor

__all__ = ["Lease", "LockStatus", "StoreSupervisor", "Supervisor", "open_supervisor"]


def open_supervisor(url: str | None, store: Store) -> Supervisor:
    """The supervisor at `url`; the store's own locks if it is `None` or empty.

    Raises `SettingsError` if there is none for such a URL.
    """
    if url:
        raise SettingsError(
            f"BLACKSMITH_SUPERVISOR_URL: no supervisor answers to {urlsplit(url).scheme or '?'}://; "
            "unset it, and the store keeps the locks"
        )
    if not isinstance(store, SQLStore):
        raise SettingsError(
            f"{type(store).__name__} keeps no locks; pass a supervisor to whoever loads"
        )
    return StoreSupervisor(store)
