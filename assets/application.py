"""The application: what the gateway serves and Dagster loads."""

from assets.cancellations import reports
from assets.flights import airport, alerts, desk, warehouse
from assets.weather import station
from blacksmith_dagster import Blacksmith

blacksmith = Blacksmith(sources=[airport, station], destinations=[warehouse, alerts, desk, reports])
