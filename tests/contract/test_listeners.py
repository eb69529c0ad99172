"""The promises of every store about the status of listeners."""

from datetime import UTC, datetime

from msgspec.structs import replace

from blacksmith_dagster.store import Store
from blacksmith_dagster.store.records import ListenerStatus


def test_the_last_status_of_a_listener_is_stored(store: Store) -> None:
    assert store.log.listeners() == []
    read_at = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    store.log.note_listener(ListenerStatus("shop/ordered", "a@1", 12, "messages", read_at))
    store.log.note_listener(
        ListenerStatus("bank/changed", "b@2", None, "bytes", None, "the slot is gone")
    )
    newest = ListenerStatus("shop/ordered", "c@3", 2**40, "bytes", None, "no broker")
    store.log.note_listener(newest)
    changed, ordered = store.log.listeners()
    assert replace(ordered, at=None) == newest
    assert replace(changed, at=None) == ListenerStatus(
        "bank/changed", "b@2", None, "bytes", None, "the slot is gone"
    )
    assert changed.at is not None
    assert ordered.at is not None
    assert changed.at <= ordered.at
    assert abs((datetime.now(UTC) - ordered.at).total_seconds()) < 60
    store.log.note_listener(replace(newest, error=None, read_at=read_at))
    assert [(status.error, status.read_at) for status in store.log.listeners()][1] == (
        None,
        read_at,
    )
