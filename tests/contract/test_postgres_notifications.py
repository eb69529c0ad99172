"""Each notification that PostgreSQL sends while the listener runs becomes an event."""

import contextlib
from typing import Any

import psycopg
import pytest

from blacksmith_dagster.errors import Unavailable
from blacksmith_dagster.sources import Notification, PostgresSource
from tests.support.changing import Ledger, ask
from tests.support.services.postgres import PostgresServer


def alerts_of(url: str) -> Any:
    return PostgresSource("crm", url=url).notifications("alerts", channel='al"erts')


def notify(url: str, *payloads: str, channel: str = 'al"erts') -> int:
    """Notify in one transaction; returns the process of the server."""
    with psycopg.connect(url) as connection:
        for payload in payloads:
            connection.execute("SELECT pg_notify(%s, %s)", [channel, payload])
        return connection.info.backend_pid


def wait_for_listener(ledger: Ledger, url: str) -> None:
    # A finished LISTEN is the last statement of its session.
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND state = 'idle'"
        " AND datname = current_database()"
    )
    ledger.wait(lambda: ask(url, query) == 1)


def test_notifications_arrive_in_order_with_their_payload(postgres_url: str) -> None:
    ledger, longest = Ledger(), "ü" * 3999
    with ledger.listening(alerts_of(postgres_url)):
        wait_for_listener(ledger, postgres_url)
        notify(postgres_url, "elsewhere", channel="alerts")
        first = notify(postgres_url, "one", "", longest)
        second = notify(postgres_url, "two")
        notifications = ledger.wait_for(4)
    assert notifications == [
        Notification('al"erts', "one", first),
        Notification('al"erts', "", first),
        Notification('al"erts', longest, first),
        Notification('al"erts', "two", second),
    ]
    assert ledger.cursor == "null"  # there is nothing to continue from


def test_many_notifications_all_arrive(postgres_url: str) -> None:
    ledger = Ledger()
    with ledger.listening(alerts_of(postgres_url)):
        wait_for_listener(ledger, postgres_url)
        with psycopg.connect(postgres_url) as connection:
            connection.execute(
                "SELECT pg_notify('al\"erts', i::text) FROM generate_series(1, 20000) i"
            )
        assert [notification.payload for notification in ledger.wait_for(20_000)] == [
            str(number) for number in range(1, 20_001)
        ]


def test_listening_continues_after_a_restart_of_the_database(
    durable_postgres: PostgresServer,
) -> None:
    url, ledger = durable_postgres.create_database(), Ledger()
    with ledger.listening(alerts_of(url), retried=True):
        wait_for_listener(ledger, url)
        notify(url, "before")
        ledger.wait_for(1)
        durable_postgres.restart()
        wait_for_listener(ledger, url)
        notify(url, "after")
        assert [notification.payload for notification in ledger.wait_for(2)] == ["before", "after"]


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_database_that_goes_away_is_reported(durable_postgres: PostgresServer, how: str) -> None:
    url, ledger = durable_postgres.create_database(), Ledger()
    with ledger.listening(alerts_of(url)):
        wait_for_listener(ledger, url)
        getattr(durable_postgres, how)()
        with contextlib.suppress(Unavailable):
            ledger.wait(lambda: False)
    assert isinstance(ledger.error, Unavailable)
    assert "crm/alerts at postgresql://127.0.0.1:" in str(ledger.error)
