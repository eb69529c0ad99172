"""The services that run: one per process, as a supervisor registers them."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from importlib.metadata import version

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
