"""A small application whose destination records what it receives, and a store filled by hand."""

from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from dagster import DagsterInstance, Definitions, ExecuteInProcessResult
from sqlalchemy import update

from blacksmith_dagster import Batch, Blacksmith, Destination, RetryPolicy, Schedule, Source
from blacksmith_dagster.orchestration import BlacksmithResource, build_definitions
from blacksmith_dagster.scheduler import StandardScheduler
from blacksmith_dagster.store import Store, open_store
from blacksmith_dagster.store.records import NewEvent, NewJob
from blacksmith_dagster.store.tables import events

TODAY = datetime.now(UTC).date()


class Pipeline:
    """Source `airport` with `departed`; destination `lake` with `flights` (on the destination's
    schedule), `movements` (on its own, a cron) and `undeliverable` (what `flights` discards)."""

    def __init__(
        self,
        store_url: str,
        *,
        interval: str = "@every 10m",
        batch_size: int = 1000,
        judge: Callable[[Batch[Any]], None] = lambda batch: None,
        scheduler: StandardScheduler | None = None,
        timeout: str = "1m",
    ) -> None:
        self.store_url = store_url
        self.resource = BlacksmithResource(store_url=store_url)
        self.loaded: dict[str, list[str]] = {"flights": [], "movements": [], "undeliverable": []}
        self.airport = Source("airport", owners=["team:flights"], tags={"tier": "1"})
        self.departed = self.airport.accept("departed", description="A flight has left.")
        self.lake = Destination(
            "lake",
            schedule=Schedule(interval),
            retry=RetryPolicy(max_retries=1),
            batch_size=batch_size,
            timeout=timeout,
            owners=["data@example.com"],
        )

        @self.lake.event(receives=self.departed)
        def flights(batch: Batch[Any]) -> None:
            """Each flight,

            as it came.
            """
            self.loaded["flights"] += [job.event.id or "" for job in batch]
            judge(batch)

        @self.lake.event(receives=self.departed, schedule=Schedule("0 3 * * *"))
        def movements(batch: Batch[Any]) -> None:
            self.loaded["movements"] += [job.event.id or "" for job in batch]

        @self.lake.event(receives=flights.discarded)
        def undeliverable(batch: Batch[Any]) -> None:
            self.loaded["undeliverable"] += [job.event.parent or "" for job in batch]

        self.flights, self.movements, self.undeliverable = flights, movements, undeliverable
        self.app = Blacksmith(
            sources=[self.airport],
            destinations=[self.lake],
            scheduler=scheduler,
        )

    @property
    def definitions(self) -> Definitions:
        return build_definitions(
            self.app, start_date=TODAY - timedelta(days=30), resource=self.resource
        )

    def open(self) -> Store:
        store = open_store(self.store_url, upgrade=True)
        store.register(self.app)
        return store

    def receive(
        self, number: int, day: date = TODAY, to: Sequence[str] = ("lake/flights",)
    ) -> list[str]:
        """Store events with a job for each destination event of `to`, received on `day`."""
        store = self.open()
        try:
            new = NewEvent("airport/departed", "{}", [NewJob(path) for path in to])
            (ids,) = store.log.append([[new] * number])
            assert isinstance(ids, list)
            if day != TODAY:
                _move(store, [store.log.event(event_id).seq for event_id in ids], day)
            return ids
        finally:
            store.close()

    def run(
        self, instance: DagsterInstance, job: str = "load_lake", raise_on_error: bool = True
    ) -> ExecuteInProcessResult:
        """Execute a load job in this process."""
        return self.definitions.resolve_job_def(job).execute_in_process(
            instance=instance, raise_on_error=raise_on_error
        )


def _move(store: Store, seqs: Sequence[int], day: date) -> None:
    # Only the database's clock says when an event was received, so the test corrects it afterwards.
    noon = datetime.combine(day, time(12), UTC)
    with store.database.writing() as connection:
        connection.execute(
            update(events).where(events.c.seq.in_(list(seqs))).values(received_at=noon)
        )
