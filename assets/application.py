"""The application: what the gateway serves and Dagster loads."""

from assets.flights import airport, alerts, desk, warehouse
from blacksmith_dagster import Blacksmith

blacksmith = Blacksmith(
    sources=[airport],
    destinations=[warehouse, alerts, desk],
    since="2026-01-01",
)
