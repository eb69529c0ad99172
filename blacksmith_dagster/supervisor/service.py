"""Processes that serve: how they are registered, and what is said of them."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from blacksmith_dagster.supervisor.interface import Supervisor

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
