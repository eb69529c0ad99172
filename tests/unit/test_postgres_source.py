"""The declaration of a PostgreSQL source, without a connection."""

from datetime import UTC, datetime

import pytest

from blacksmith_dagster import CDC, DeclarationError, Secret
from blacksmith_dagster.sources import Change, Notification, PostgresSource


def source() -> PostgresSource:
    return PostgresSource("crm", url=Secret("CRM_URL"), retention="30d", owners=["team:crm"])


def test_events_are_listened_for_and_inherit() -> None:
    crm = source()
    changed = crm.changes("changed", tables=["public.customers"], tags={"a": "b"})
    alerts = crm.notifications("alerts", channel="alerts")
    assert [type(event.trigger) for event in crm.events.values()] == [CDC, CDC]
    assert (changed.model, alerts.model) == (Change, Notification)
    assert (changed.retention, changed.owners) == (crm.retention, crm.owners)
    assert changed.tags == {"a": "b"}
    assert alerts.description == "The notifications on the channel alerts."


@pytest.mark.parametrize("tables", [[], "public.customers", [""]])
def test_tables_are_named(tables: list[str]) -> None:
    with pytest.raises(DeclarationError, match=r"tables=\['public.customers'\]"):
        source().changes("changed", tables=tables)


@pytest.mark.parametrize("slot", ["Upper", "a-b", "", "x" * 64])
def test_a_slot_has_a_name_that_postgresql_accepts(slot: str) -> None:
    with pytest.raises(DeclarationError, match="give a slot= of up to 63"):
        source().changes("changed", tables=["t"], slot=slot)


@pytest.mark.parametrize("channel", ["", "x" * 64, "ü" * 32])
def test_a_channel_has_a_name_that_postgresql_accepts(channel: str) -> None:
    with pytest.raises(DeclarationError, match="1 to 63 bytes"):
        source().notifications("alerts", channel=channel)


def test_url_is_a_secret_or_text() -> None:
    with pytest.raises(DeclarationError, match="Secret"):
        PostgresSource("crm", url=None)  # type: ignore[arg-type]


def test_order_is_that_of_the_commits() -> None:
    now = datetime.now(UTC)
    places = [("0/9", 0), ("0/9", 2), ("0/9", 10), ("0/10", 1), ("F/FFFFFFFF", 1), ("10/0", 1)]
    orders = [Change("insert", "public", "t", lsn, place, now).order for lsn, place in places]
    assert orders == sorted(orders)
