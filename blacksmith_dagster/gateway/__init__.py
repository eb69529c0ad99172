"""The gateway: an HTTP server that turns requests into committed events."""

from blacksmith_dagster.gateway.interface import Gateway
from blacksmith_dagster.gateway.server import StandardGateway

__all__ = ["Gateway", "StandardGateway"]
