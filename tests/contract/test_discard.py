"""Discarding by hand, on SQLite and PostgreSQL."""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from blacksmith_dagster import Batch, Destination, Source
from blacksmith_dagster.errors import NotFound, UsageError
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.scheduler import StandardScheduler, load
from blacksmith_dagster.scheduler.discard import discard, retire
from blacksmith_dagster.store import Store
from blacksmith_dagster.supervisor import Supervisor, open_supervisor
from tests.support.pipelines.one_event import ingest, pipeline

WITHOUT_IT = Blacksmith(sources=[Source("airport")], destinations=[])


@pytest.fixture
def supervisor(store: Store) -> Iterator[Supervisor]:
    with closing(open_supervisor(None, store.database)) as supervisor:
        yield supervisor


def fail(batch: Batch[Any]) -> None:
    for job in batch:
        batch.fail(job, "not today")


def test_discarded_by_hand_is_received(store: Store, supervisor: Supervisor) -> None:
    received: list[tuple[Any, str, str | None, int]] = []
    desk = Destination("desk")
    app, flights = pipeline(fail, desk)

    @desk.event(receives=flights.discarded)
    def undeliverable(batch: Batch[Any]) -> None:
        for job in batch:
            assert job.cause is not None
            received.append((job.data, job.cause.outcome, job.cause.error, job.cause.attempts))

    app = Blacksmith(sources=list(app.sources.values()), destinations=[*app.destinations.values()])
    store.register(app)
    first, second, third = ingest(store, [{"n": n} for n in range(3)])
    with closing(StandardScheduler()) as scheduler:
        load(app, flights, scheduler, store=store, supervisor=supervisor)
        ids = [third, first, first]
        services: dict[str, Any] = {"store": store, "supervisor": supervisor}
        assert discard(app, flights, scheduler, ids, "gone\0", **services) == 2
        assert discard(app, flights, scheduler, ids, "gone", **services) == 0  # they wait no more
        load(app, undeliverable, scheduler, **services)
    counts = store.counts.of(flights.path)
    assert (counts.retrying, counts.discarded) == (1, 2)
    assert sorted(received, key=lambda job: job[0]["n"]) == [
        ({"n": 0}, "discarded", "gone\\0", 1),
        ({"n": 2}, "discarded", "gone\\0", 1),
    ]
    assert store.history.transitions(second)[-1].state == "failed"


def test_an_id_that_no_event_has(store: Store, supervisor: Supervisor) -> None:
    app, flights = pipeline(fail)
    store.register(app)
    services: dict[str, Any] = {"store": store, "supervisor": supervisor}
    with closing(StandardScheduler()) as scheduler, pytest.raises(NotFound):
        discard(app, flights, scheduler, ["evt_none"], "gone", **services)


def test_retire_discards_all_that_waits(store: Store, supervisor: Supervisor) -> None:
    app, flights = pipeline(fail, batch_size=1000)
    store.register(app)
    ingest(store, [{"n": n} for n in range(1500)])
    with closing(StandardScheduler()) as scheduler:
        load(app, flights, scheduler, store=store, supervisor=supervisor)
    ingest(store, [{"n": n} for n in range(1200)])
    assert store.counts.orphans(WITHOUT_IT)[0].pending == 2700
    assert retire(flights.path, "retired", store=store, supervisor=supervisor) == 2700
    assert store.counts.orphans(WITHOUT_IT) == []
    assert store.counts.of(flights.path).discarded == 2700


def test_retire_refuses_what_is_being_loaded(
    store: Store, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blacksmith_dagster.scheduler.discard._WAIT", 0.0)
    app, flights = pipeline(fail)
    store.register(app)
    lease = supervisor.acquire(f"load/{flights.path}", "run 17")
    assert lease is not None
    with lease, pytest.raises(UsageError, match="run 17"):
        retire(flights.path, "retired", store=store, supervisor=supervisor)


def test_retire_what_never_was(store: Store, supervisor: Supervisor) -> None:
    with pytest.raises(NotFound):
        retire("warehouse/nothing", "retired", store=store, supervisor=supervisor)
