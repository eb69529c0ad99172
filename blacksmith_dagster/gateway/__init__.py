"""From a request to committed events."""

from blacksmith_dagster.gateway.interface import Gateway
from blacksmith_dagster.gateway.standard import StandardGateway
from blacksmith_dagster.gateway.take import take

__all__ = ["Gateway", "StandardGateway", "take"]
