"""The gateway: an HTTP server that turns requests into committed events."""

from blacksmith_dagster.gateway.server import Gateway, StandardGateway

__all__ = ["Gateway", "StandardGateway"]
