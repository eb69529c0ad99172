"""Cancelled departures, in a table that was added later: a backfill loads its first rows."""

from datetime import datetime

import msgspec
import sqlalchemy as sa

from assets.flights import Flight, departed
from blacksmith_dagster import Event, Flow, Schedule, Secret
from blacksmith_dagster.destinations import SQLDestination


class Cancellation(msgspec.Struct):
    """A flight that did not leave."""

    carrier: str
    flight: int
    time_hour: datetime
    origin: str
    dest: str


def is_cancelled(event: Event[Flight]) -> bool:
    """Whether the flight never left."""
    return event.data.dep_time is None


def cancellation(event: Event[Flight]) -> Cancellation:
    """The columns of the table."""
    flight = event.data
    return Cancellation(flight.carrier, flight.flight, flight.time_hour, flight.origin, flight.dest)


reports = SQLDestination("reports", url=Secret("WAREHOUSE_URL"), schedule=Schedule("@every 10s"))
cancellations = reports.table(
    "cancellations",
    receives=Flow(departed, when=is_cancelled, transform=cancellation),
    key=["carrier", "flight", "time_hour"],
    # Each night the day before: events without a job, and discarded jobs.
    backfill_schedule="0 3 * * *",
    definition=sa.Table(
        "cancellations",
        sa.MetaData(),
        sa.Column("carrier", sa.Text, primary_key=True),
        sa.Column("flight", sa.Integer, primary_key=True),
        sa.Column("time_hour", sa.DateTime(timezone=True), primary_key=True),
        sa.Column("origin", sa.Text),
        sa.Column("dest", sa.Text),
    ),
)
