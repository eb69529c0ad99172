"""An asset downstream of the warehouse: mean delays, with pandas."""

import base64
import io

import pandas
from dagster import AutomationCondition, MaterializeResult, MetadataValue, asset
from matplotlib.figure import Figure
from sqlalchemy import create_engine

from assets.flights import flights
from blacksmith_dagster import Secret
from blacksmith_dagster.orchestration import asset_key

_QUERY = "select time_hour, dep_delay from flights where dep_delay is not null"


@asset(
    deps=[asset_key(flights)],
    automation_condition=(
        AutomationCondition.any_deps_updated()
        & ~AutomationCondition.any_deps_in_progress()
        & ~AutomationCondition.in_progress()
    ),
    group_name="delays",
    kinds={"pandas"},
)
def daily_delays() -> MaterializeResult[None]:
    """The mean delay at departure of each day in New York, in minutes."""
    engine = create_engine(Secret("WAREHOUSE_URL").reveal())
    try:
        rows = pandas.read_sql(_QUERY, engine)
    finally:
        engine.dispose()
    hours = pandas.to_datetime(rows["time_hour"], utc=True).dt.tz_convert("America/New_York")
    delays = rows.groupby(hours.dt.date)["dep_delay"].mean()
    return MaterializeResult(
        metadata={
            "flights": len(rows),
            "days": len(delays),
            "mean_delay_minutes": round(float(rows["dep_delay"].mean()), 1),
            "plot": MetadataValue.md(_plot(delays)),
        }
    )


def _plot(delays: "pandas.Series[float]") -> str:
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    axes.bar(list(delays.index), delays.to_numpy())
    axes.set_ylabel("mean delay, minutes")
    figure.autofmt_xdate()
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=80)
    return (
        f"![mean delay a day](data:image/png;base64,{base64.b64encode(image.getvalue()).decode()})"
    )
