"""The promises of every store about quarantine: requests and messages that could not be ingested."""

import random
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
from msgspec.structs import replace

from blacksmith_dagster import HTTP, Blacksmith, Reply, Request, Source
from blacksmith_dagster.errors import KeyReused, NotFound
from blacksmith_dagster.store import Store
from blacksmith_dagster.store.interface import NewEvent, RawRequest
from tests.contract.pipeline import FLIGHTS, departed, new_event

RAW = RawRequest(departed.path, b"\xff\x00{", {"content-type": "text/plain"}, "ValueError: no")


def test_a_raw_request_waits_in_quarantine(store: Store) -> None:
    assert store.quarantine_sizes() == {}
    quarantine_id = store.quarantine(RAW)
    [waiting] = store.quarantined()
    assert (waiting.id, waiting.event_type, waiting.error, waiting.size) == (
        quarantine_id,
        RAW.event_type,
        RAW.error,
        3,
    )
    assert abs((datetime.now(UTC) - waiting.received_at).total_seconds()) < 60
    assert store.in_quarantine(quarantine_id) == RAW
    assert store.quarantine_sizes() == {departed.path: 1}


def test_raw_requests_are_kept_among_the_others(store: Store) -> None:
    one, two = replace(RAW, body=b"1"), replace(RAW, body=b"2")
    first, raw, [], second, other = store.ingest([[new_event(1)], one, [], [new_event(2)], two])
    assert [raw.id for raw in store.quarantined()] == [*raw, *other]
    assert [store.in_quarantine(id_).body for id_ in (*raw, *other)] == [b"1", b"2"]
    assert [store.event(id_).payload for id_ in (*first, *second)] == ['{"n":1}', '{"n":2}']


def test_nothing_is_in_quarantine_of_a_commit_that_failed(store: Store) -> None:
    with pytest.raises(NotFound):
        store.ingest([RAW, [NewEvent("no/such", "{}")]])
    with pytest.raises(NotFound, match="register"):
        store.ingest([[new_event()], replace(RAW, event_type="no/such")])
    assert not store.quarantined()
    assert not store.events()


def test_a_raw_request_stored_again_with_its_key_is_the_same(store: Store) -> None:
    keyed = replace(RAW, key="orders/0@7")
    first = store.quarantine(keyed)
    again = replace(keyed, error="another error")
    assert store.quarantine(again) == first
    assert store.ingest([again, [new_event()], again])[::2] == [[first], [first]]
    assert store.in_quarantine(first) == keyed
    others = [
        store.quarantine(replace(keyed, key="orders/0@8")),
        store.quarantine(replace(keyed, event_type=f"{FLIGHTS}.discarded")),
        store.quarantine(RAW),
        store.quarantine(RAW),
    ]
    assert len({first, *others}) == 5


def test_a_raw_request_stored_by_many_at_once_with_its_key_is_stored_once(store: Store) -> None:
    """Commits that bring the same requests in every order do not deadlock."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")

    def write(number: int) -> dict[str | None, str]:
        chance = random.Random(seed + number)
        ids: dict[str | None, str] = {}
        for _ in range(10):
            raw_requests = [replace(RAW, key=f"k{n}") for n in range(20)]
            chance.shuffle(raw_requests)
            for raw, result in zip(raw_requests, store.ingest(raw_requests), strict=True):
                assert isinstance(result, list)
                ids[raw.key] = result[0]
        return ids

    with ThreadPoolExecutor(6) as threads:
        results = list(threads.map(write, range(6)))
    assert all(ids == results[0] for ids in results)
    assert len(store.quarantined()) == 20


def test_the_oldest_are_listed_first_and_by_event_type(store: Store) -> None:
    other = f"{FLIGHTS}.discarded"
    ids = [
        store.quarantine(replace(RAW, event_type=event_type))
        for event_type in (RAW.event_type, other, RAW.event_type)
    ]
    assert [raw.id for raw in store.quarantined()] == ids
    assert [raw.id for raw in store.quarantined(limit=2)] == ids[:2]
    assert [raw.id for raw in store.quarantined(RAW.event_type)] == ids[::2]
    assert [raw.id for raw in store.quarantined(other)] == ids[1:2]
    assert store.quarantine_sizes() == {RAW.event_type: 2, other: 1}
    with pytest.raises(NotFound, match=departed.path):
        store.quarantined("no/such")


def test_what_is_released_leaves_with_the_events(store: Store) -> None:
    released, stays = store.quarantine(RAW), store.quarantine(RAW)
    [[event_id]] = store.ingest([[new_event(1)]], released=[released])
    assert store.event(event_id).payload == '{"n":1}'
    assert [raw.id for raw in store.quarantined()] == [stays]
    for gone in (released, "qua_0", "qua_x", "evt_1"):
        with pytest.raises(NotFound, match="quarantine list"):
            store.in_quarantine(gone)
        with pytest.raises(NotFound, match=gone):
            store.ingest([[new_event(2)]], released=[stays, gone])
    assert len(store.events()) == 1
    assert [raw.id for raw in store.quarantined()] == [stays]


def test_with_a_reused_key_nothing_is_released(store: Store) -> None:
    store.ingest([[new_event(1, key="a")]])
    waits = store.quarantine(RAW)
    rejected, other = store.ingest([[new_event(2, key="a")], [new_event(3)]], released=[waits])
    assert isinstance(rejected, KeyReused)
    assert other == []
    assert store.in_quarantine(waits) == RAW
    assert len(store.events()) == 1


def test_a_request_released_twice_at_once_stores_its_events_once(store: Store) -> None:
    ids = [store.quarantine(RAW) for _ in range(20)]

    def release(number: int) -> int:
        stored = 0
        for quarantine_id in ids if number % 2 else reversed(ids):
            try:
                store.ingest([[new_event()]], released=[quarantine_id])
            except NotFound:
                continue
            stored += 1
        return stored

    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(release, range(4))) == 20
    assert len(store.events()) == 20
    assert not store.quarantined()


def test_what_is_dropped_is_gone(store: Store) -> None:
    ids = [store.quarantine(RAW) for _ in range(2500)]
    with pytest.raises(NotFound, match="qua_9999"):
        store.drop_quarantined([*ids, "qua_9999"])
    assert store.quarantine_sizes() == {RAW.event_type: 2500}
    store.drop_quarantined([*ids[:-1], ids[0]])
    assert [raw.id for raw in store.quarantined()] == ids[-1:]
    store.drop_quarantined([])


def test_an_id_is_never_given_twice(store: Store) -> None:
    first = store.quarantine(RAW)
    store.drop_quarantined([first])
    assert store.quarantine(RAW) != first


def test_requests_through_a_webhook_are_kept_under_its_source(store: Store) -> None:
    shop = Source("shop")

    @shop.webhook(HTTP("/shop"))
    def arrived(request: Request) -> Reply:
        return Reply()

    with pytest.raises(NotFound, match="register"):
        store.quarantine(replace(RAW, event_type="shop"))
    store.register(Blacksmith(sources=[shop], destinations=[]))
    store.quarantine(replace(RAW, event_type="shop"))
    assert store.quarantine_sizes() == {"shop": 1}
