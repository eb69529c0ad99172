"""From a request to committed events."""

from blacksmith_dagster.gateway.interface import Gateway

__all__ = ["Gateway"]
