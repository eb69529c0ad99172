"""Pipelines with migrations, and the stores, supervisors and wanderers of several runs."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from blacksmith_dagster import (
    Batch,
    Blacksmith,
    Destination,
    Migration,
    Source,
)
from blacksmith_dagster.destinations import SQLDestination
from blacksmith_dagster.destinations.dialects import open_engine
from blacksmith_dagster.scheduler import StandardScheduler, Summary
from blacksmith_dagster.scheduler import load as load_due
from blacksmith_dagster.store import Store, open_store
from blacksmith_dagster.supervisor import StoreSupervisor, Supervisor, open_supervisor
from blacksmith_dagster.wanderer import Wanderer

ONE, TWO, THREE, FOUR, FIVE = (20260100000000 + day * 1_000_000 for day in range(1, 6))
TTL = 2.0

airport = Source("airport")
departed = airport.accept("departed")


def migration(version: int, up: Any = None, down: Any = None) -> Migration:
    """A migration, by default one that creates the table `t<day>`."""
    table = f"t{version // 1_000_000 % 100}"
    return Migration(
        version, table, up or f"CREATE TABLE {table} (n INTEGER);", down or f"DROP TABLE {table};"
    )


def warehouse(
    url: str, migrations: Path | Sequence[Migration], name: str = "warehouse", **options: Any
) -> SQLDestination:
    """A destination at `url`, whose event `flights` loads nowhere."""
    destination = SQLDestination(name, url=url, migrations=migrations, **options)

    @destination.event(receives=departed, name="flights")
    def load(batch: Batch[Any], engine: sa.Engine) -> None:
        """Accept all jobs."""

    return destination


def application(*destinations: Destination[Any]) -> Blacksmith:
    return Blacksmith(sources=[airport], destinations=destinations)


def tables(url: str) -> set[str]:
    """The tables `t1`, `t2` and so on of a database."""
    engine = open_engine("test", url)
    try:
        return {
            name for name in sa.inspect(engine).get_table_names() if re.fullmatch(r"t\d+", name)
        }
    finally:
        engine.dispose()


class Runs:
    """Makes stores, supervisors and wanderers, each with its own connections.

    `supervisor_url` is passed to `open_supervisor`; without it, the store keeps the locks, with a short
    time to live.
    """

    def __init__(
        self, store_url: str, opened: contextlib.ExitStack, supervisor_url: str | None
    ) -> None:
        self.store_url = store_url
        self.supervisor_url = supervisor_url
        self._opened = opened

    def store(self, app: Blacksmith | None = None) -> Store:
        store: Store = self._opened.enter_context(
            contextlib.closing(open_store(self.store_url, upgrade=True))
        )
        if app:
            store.register(app)
        return store

    def supervisor(self, store: Store) -> Supervisor:
        supervisor: Supervisor = (
            open_supervisor(self.supervisor_url, store.database)
            if self.supervisor_url
            else StoreSupervisor(store.database, ttl=TTL)
        )
        return self._opened.enter_context(contextlib.closing(supervisor))

    def wanderer(self, app: Blacksmith, **options: Any) -> Wanderer:
        store = self.store(app)
        return Wanderer(
            app,
            database=store.database,
            supervisor=options.pop("supervisor", None) or self.supervisor(store),
            holder=options.pop("holder", "a test"),
            **options,
        )


@contextlib.contextmanager
def runs(store_url: str, supervisor_url: str | None = None) -> Iterator[Runs]:
    with contextlib.ExitStack() as opened:
        yield Runs(store_url, opened, supervisor_url)


SCOPE, FLIGHTS = "destination:warehouse", "warehouse/flights"


def load(wandering: Runs, app: Blacksmith) -> Summary:
    """A scheduled load of the flights."""
    store = wandering.store()
    with closing(StandardScheduler()) as scheduler:
        return load_due(
            app,
            app.destination_events[FLIGHTS],
            scheduler,
            store=store,
            supervisor=wandering.supervisor(store),
        )
