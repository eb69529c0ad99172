"""The promises of every store about quarantine: requests and messages that could not be ingested."""

import random
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from msgspec.structs import replace
from sqlalchemy import text

from blacksmith_dagster import HTTP, Blacksmith, Reply, Request, Source
from blacksmith_dagster.errors import KeyReused, NotFound
from blacksmith_dagster.pipeline.source import SourceProperties
from blacksmith_dagster.scheduler.purge import purge
from blacksmith_dagster.store import Store
from blacksmith_dagster.store.quarantine import Selection
from blacksmith_dagster.store.records import NewEvent, RawRequest
from blacksmith_dagster.supervisor.store import StoreSupervisor
from tests.support import randomness
from tests.support.pipelines.store import FLIGHTS, departed, event_ids, new_event
from tests.support.waiting import until

RAW = RawRequest(departed.path, b"\xff\x00{", {"content-type": "text/plain"}, "ValueError: no")


def test_a_raw_request_waits_in_quarantine(store: Store) -> None:
    assert store.quarantine.sizes() == {}
    quarantine_id = store.quarantine.add(RAW)
    [waiting] = store.quarantine.oldest()
    assert (waiting.id, waiting.event_type, waiting.error, waiting.size) == (
        quarantine_id,
        RAW.event_type,
        RAW.error,
        3,
    )
    assert abs((datetime.now(UTC) - waiting.received_at).total_seconds()) < 60
    assert store.quarantine.get(quarantine_id) == RAW
    assert store.quarantine.sizes() == {departed.path: 1}


def test_raw_requests_are_kept_among_the_others(store: Store) -> None:
    one, two = replace(RAW, body=b"1"), replace(RAW, body=b"2")
    first, raw, nothing, second, other = event_ids(
        store.log.append([[new_event(1)], one, [], [new_event(2)], two])
    )
    assert nothing == []
    assert [raw.id for raw in store.quarantine.oldest()] == [*raw, *other]
    assert [store.quarantine.get(id_).body for id_ in (*raw, *other)] == [b"1", b"2"]
    assert [store.log.event(id_).payload for id_ in (*first, *second)] == ['{"n":1}', '{"n":2}']


def test_nothing_is_in_quarantine_of_a_commit_that_failed(store: Store) -> None:
    with pytest.raises(NotFound):
        store.log.append([RAW, [NewEvent("no/such", "{}")]])
    with pytest.raises(NotFound, match="register"):
        store.log.append([[new_event()], replace(RAW, event_type="no/such")])
    assert not store.quarantine.oldest()
    assert not store.log.newest()


def test_a_raw_request_stored_again_with_its_key_is_the_same(store: Store) -> None:
    keyed = replace(RAW, key="orders/0@7")
    first = store.quarantine.add(keyed)
    again = replace(keyed, error="another error")
    assert store.quarantine.add(again) == first
    assert store.log.append([again, [new_event()], again])[::2] == [[first], [first]]
    assert store.quarantine.get(first) == keyed
    others = [
        store.quarantine.add(replace(keyed, key="orders/0@8")),
        store.quarantine.add(replace(keyed, event_type=f"{FLIGHTS}.discarded")),
        store.quarantine.add(RAW),
        store.quarantine.add(RAW),
    ]
    assert len({first, *others}) == 5


def test_a_raw_request_stored_by_many_at_once_with_its_key_is_stored_once(store: Store) -> None:
    """Commits that bring the same requests in every order do not deadlock."""
    seed = randomness.new_seed()

    def write(number: int) -> dict[str | None, str]:
        chance = random.Random(seed + number)
        ids: dict[str | None, str] = {}
        for _ in range(10):
            raw_requests = [replace(RAW, key=f"k{n}") for n in range(20)]
            chance.shuffle(raw_requests)
            for raw, result in zip(raw_requests, store.log.append(raw_requests), strict=True):
                assert isinstance(result, list)
                ids[raw.key] = result[0]
        return ids

    with ThreadPoolExecutor(6) as threads:
        results = list(threads.map(write, range(6)))
    assert all(ids == results[0] for ids in results)
    assert len(store.quarantine.oldest()) == 20


def test_the_oldest_are_listed_first_and_by_event_type(store: Store) -> None:
    other = f"{FLIGHTS}.discarded"
    ids = [
        store.quarantine.add(replace(RAW, event_type=event_type))
        for event_type in (RAW.event_type, other, RAW.event_type)
    ]
    assert [raw.id for raw in store.quarantine.oldest()] == ids
    assert [raw.id for raw in store.quarantine.oldest(limit=2)] == ids[:2]
    assert [raw.id for raw in store.quarantine.oldest(RAW.event_type)] == ids[::2]
    assert [raw.id for raw in store.quarantine.oldest(other)] == ids[1:2]
    assert store.quarantine.sizes() == {RAW.event_type: 2, other: 1}
    with pytest.raises(NotFound, match=departed.path):
        store.quarantine.oldest("no/such")


def test_what_is_released_leaves_with_the_events(store: Store) -> None:
    released, stays = store.quarantine.add(RAW), store.quarantine.add(RAW)
    [[event_id]] = event_ids(store.log.append([[new_event(1)]], released=[released]))
    assert store.log.event(event_id).payload == '{"n":1}'
    assert [raw.id for raw in store.quarantine.oldest()] == [stays]
    for gone in (released, "qua_0", "qua_x", "evt_1"):
        with pytest.raises(NotFound, match="quarantine list"):
            store.quarantine.get(gone)
        with pytest.raises(NotFound, match=gone):
            store.log.append([[new_event(2)]], released=[stays, gone])
    assert len(store.log.newest()) == 1
    assert [raw.id for raw in store.quarantine.oldest()] == [stays]


def test_with_a_reused_key_nothing_is_released(store: Store) -> None:
    store.log.append([[new_event(1, key="a")]])
    waits = store.quarantine.add(RAW)
    rejected, other = store.log.append([[new_event(2, key="a")], [new_event(3)]], released=[waits])
    assert isinstance(rejected, KeyReused)
    assert other == []
    assert store.quarantine.get(waits) == RAW
    assert len(store.log.newest()) == 1


def test_a_request_released_twice_at_once_stores_its_events_once(store: Store) -> None:
    ids = [store.quarantine.add(RAW) for _ in range(20)]

    def release(number: int) -> int:
        stored = 0
        for quarantine_id in ids if number % 2 else reversed(ids):
            try:
                store.log.append([[new_event()]], released=[quarantine_id])
            except NotFound:
                continue
            stored += 1
        return stored

    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(release, range(4))) == 20
    assert len(store.log.newest()) == 20
    assert not store.quarantine.oldest()


def test_what_is_dropped_is_gone(store: Store) -> None:
    ids = [store.quarantine.add(RAW) for _ in range(2500)]
    with pytest.raises(NotFound, match="qua_9999"):
        store.quarantine.drop([*ids, "qua_9999"])
    assert store.quarantine.sizes() == {RAW.event_type: 2500}
    store.quarantine.drop([*ids[:-1], ids[0]])
    assert [raw.id for raw in store.quarantine.oldest()] == ids[-1:]
    store.quarantine.drop([])


def test_an_id_is_never_given_twice(store: Store) -> None:
    first = store.quarantine.add(RAW)
    store.quarantine.drop([first])
    assert store.quarantine.add(RAW) != first


def test_requests_through_a_webhook_are_kept_under_its_source(store: Store) -> None:
    shop = Source("shop")

    @shop.webhook(HTTP("/shop"))
    def arrived(request: Request) -> Reply:
        return Reply()

    with pytest.raises(NotFound, match="register"):
        store.quarantine.add(replace(RAW, event_type="shop"))
    store.register(Blacksmith(sources=[shop], destinations=[]))
    store.quarantine.add(replace(RAW, event_type="shop"))
    assert store.quarantine.sizes() == {"shop": 1}


LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
INSTANT = timedelta(microseconds=1)


def test_quarantine_dropped_by_the_hundred_thousand(store: Store) -> None:
    store.log.append([replace(RAW, error="KeyError: 'id'"), replace(RAW, key="a key")])
    with store.database.writing() as conn:
        is_sqlite = conn.dialect.name == "sqlite"
        body = "zeroblob(5000)" if is_sqlite else "convert_to(repeat('x', 5000), 'UTF8')"
        insertion = text(
            f"""
WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 100000)
INSERT INTO quarantine (event_type, received_at, headers, body, error)
SELECT event_type, received_at, headers, {body}, 'ValueError: 100% wrong_'
  FROM numbers CROSS JOIN quarantine
 WHERE key IS NULL"""
        )
        conn.execute(insertion)
    selected = Selection(source="airport", error="100% wrong_")
    assert store.quarantine.size(selected) == 100_000
    transactions = [*store.quarantine.drop_selected(selected)]
    assert sum(transactions) == 100_000
    assert max(transactions) <= 1000
    assert store.quarantine.sizes() == {departed.path: 2}


@pytest.mark.parametrize(
    ("selected", "left"),
    [
        (Selection(), []),
        (Selection(source="airport"), ["FlightsDiscarded"]),
        (Selection(source="air"), ["KeyError", "ValueError", "FlightsDiscarded"]),
        (Selection(event_type=departed.path), ["FlightsDiscarded"]),
        (Selection(error="Error"), ["FlightsDiscarded"]),
        (Selection(source="airport", error="Key"), ["ValueError", "FlightsDiscarded"]),
        (Selection(error="%"), ["KeyError", "ValueError", "FlightsDiscarded"]),
        (Selection(before=LONG_AGO), ["KeyError", "ValueError", "FlightsDiscarded"]),
        (Selection(before=datetime(2200, 1, 1, tzinfo=UTC)), []),
    ],
)
def test_what_is_selected_is_dropped(store: Store, selected: Selection, left: list[str]) -> None:
    outcome = f"{FLIGHTS}.discarded"
    store.log.append(
        [
            replace(RAW, error="KeyError"),
            replace(RAW, error="ValueError"),
            replace(RAW, error="FlightsDiscarded", event_type=outcome),
        ]
    )
    assert store.quarantine.size(selected) == 3 - len(left)
    assert sum(store.quarantine.drop_selected(selected)) == 3 - len(left)
    assert [item.error for item in store.quarantine.oldest()] == left


@pytest.mark.parametrize(
    ("properties", "is_kept"),
    [
        ({}, True),
        ({"retention": "1h"}, True),
        ({"retention": INSTANT}, False),
        ({"retention": INSTANT, "quarantine_retention": "1h"}, True),
        ({"quarantine_retention": INSTANT}, False),
        ({"retention": INSTANT, "quarantine_retention": "forever"}, True),
    ],
)
def test_quarantine_follows_retention(
    store: Store, properties: SourceProperties, is_kept: bool
) -> None:
    site = Source("site", **properties)
    seen = site.accept("seen")
    site.webhook(HTTP("/site"))(lambda request: seen.of(request.json()))
    app = Blacksmith(sources=[site], destinations=[])
    store.register(app)
    for path in (seen.path, site.name):
        store.quarantine.add(replace(RAW, event_type=path))
    waiting = store.quarantine.expired(app.retention())
    until(lambda: is_kept or sum(map(store.quarantine.size, waiting.values())) == 2)
    locks = StoreSupervisor(store.database)
    report = purge(app, store=store, supervisor=locks, holder="test")
    assert report.quarantined == (0 if is_kept else 2)
    assert store.quarantine.sizes() == ({"site": 1, "site/seen": 1} if is_kept else {})
