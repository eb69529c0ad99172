"""What users' code says with a secret in it is kept without it."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import pytest
from starlette.testclient import TestClient

from blacksmith_dagster import (
    HTTP,
    Batch,
    Blacksmith,
    Cause,
    Destination,
    DestinationEvent,
    Event,
    Flow,
    RetryPolicy,
    Secret,
    Source,
)
from blacksmith_dagster.gateway.app import create_app
from blacksmith_dagster.scheduler import LoadReport, StandardScheduler
from blacksmith_dagster.scheduler import load as load_due
from blacksmith_dagster.store import Store, open_store
from blacksmith_dagster.store.records import NewEvent
from blacksmith_dagster.supervisor import open_supervisor
from tests.support.pipelines.one_event import airport, departed, ingest
from tests.support.waiting import until

VARIABLE = "BLACKSMITH_TEST_WAREHOUSE_URL"
CANARY = "cAnAry5d0c91"
PASSWORD = Secret(VARIABLE)
SOON = RetryPolicy(max_retries=1, delay="400ms")


def trip(*_: object) -> NoReturn:
    raise ConnectionError(f"cannot log in as app:{PASSWORD.reveal()}")


def failing(batch: Batch[Any]) -> None:
    for job in batch:
        batch.fail(job, f"{PASSWORD.reveal()} was refused")


def discarding(batch: Batch[Any]) -> None:
    for job in batch:
        batch.discard(job, f"{PASSWORD.reveal()} was refused")


def nothing(batch: Batch[Any]) -> None: ...


def transformed(event: Event[Any]) -> Any:
    return trip(event)


@pytest.fixture
def store(store_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv(VARIABLE, CANARY)
    with closing(open_store(store_url, upgrade=True)) as store:
        yield store


def test_an_error_that_holds_a_secret_is_kept_without_it(
    store: Store, store_url: str, tmp_path: Path
) -> None:
    lake: Destination[Any] = Destination("lake", retry=SOON)
    raising: DestinationEvent[Any] = lake.event(receives=departed, name="raising")(trip)
    for name, function in (("failing", failing), ("discarding", discarding)):
        lake.event(receives=departed, name=name)(function)
    lake.event(receives=Flow(departed, transform=transformed), name="transforming")(nothing)
    connecting: Destination[int] = Destination("house", connect=trip, retry=SOON)

    @connecting.event(receives=departed, name="flights")
    def unreached(batch: Batch[Any], connection: Any) -> None:
        """Never called: `connect` raises."""

    causes: list[Cause | None] = []
    reported: Destination[Any] = Destination("reported")

    @reported.event(receives=[raising.failed, raising.discarded])
    def outcomes(batch: Batch[Any]) -> None:
        causes.extend(job.cause for job in batch)

    app = Blacksmith(sources=[airport], destinations=[lake, connecting, reported])
    store.register(app)
    reports: list[LoadReport] = []
    shown: list[Any] = [reports, causes]
    retrying = discarded = 0
    with (
        closing(open_supervisor(None, store.database)) as locks,
        closing(StandardScheduler()) as scheduler,
    ):

        def load(path: str) -> None:
            until(lambda: store.counts.next_due(path) == 0)
            event = app.destination_events[path]
            load_due(app, event, scheduler, store=store, supervisor=locks, report=reports.append)

        for path in app.destination_events:
            if path == outcomes.path:
                continue
            (id_,) = ingest(store, [{"n": 1}], path)
            load(path)
            shown.append(kept := store.history.jobs("retrying", path))
            retrying += len(kept)
            if kept:
                load(path)
            shown.append(kept := store.history.jobs("discarded", path))
            discarded += len(kept)
            shown += [store.log.event(id_), store.history.transitions(id_)]
        load(outcomes.path)
    assert (retrying, discarded) == (4, 5)
    assert [cause and cause.outcome for cause in causes] == ["failed", "failed", "discarded"]
    text = msgspec.json.encode(shown).decode()
    assert text.count("cannot log in as app:***") >= 8
    assert "*** was refused" in text
    assert CANARY not in text
    if store_url.startswith("sqlite"):
        with closing(sqlite3.connect(tmp_path / "store.db")) as database:
            rows = "\n".join(database.iterdump())
        assert "cannot log in as app:***" in rows
        assert CANARY not in rows
        assert not [path for path in tmp_path.iterdir() if CANARY.encode() in path.read_bytes()]


def test_a_request_that_trips_a_function_is_logged_and_kept_without_secrets(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    vault = Source("vault")
    vault.event(HTTP("/vault/opened"), name="opened")(trip)
    app = Blacksmith(sources=[vault], destinations=[])
    store.register(app)
    with TestClient(create_app(app, store, queue=10)) as client:
        response = client.post("/vault/opened", json={"n": 1})
    assert response.status_code == 202
    [kept] = store.quarantine.oldest()
    assert response.json() == {"ids": [], "quarantined": [kept.id]}
    assert kept.error == "ConnectionError: cannot log in as app:***"
    assert "in trip\n" in caplog.text  # with its traceback
    assert "ConnectionError: cannot log in as app:***" in caplog.text
    assert CANARY not in caplog.text


def test_a_stranger_does_not_learn_where_the_store_is(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    app = Blacksmith(sources=[airport], destinations=[])
    store.register(app)
    store.log.append([[NewEvent(departed.path, str(n)) for n in range(3)]])
    with store.database.writing() as conn:
        store.database.set_sequence(conn, 1)
    with TestClient(create_app(app, store, queue=10)) as client:
        response = client.get("/_health")
    assert response.status_code == 503
    assert response.json()["detail"] == "the store cannot accept events; the gateway's log says why"
    assert "blacksmith store repair" in caplog.text
