"""Children: events that are stored with their parents."""

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from msgspec.structs import replace

from blacksmith_dagster.errors import KeyReused
from blacksmith_dagster.store import Store
from blacksmith_dagster.store.records import Cursor, NewEvent
from tests.support import randomness
from tests.support.pipelines.store import FLIGHTS, claimed, event_ids, new_event, take_over


def child(number: int, of: int | str, *, key: str | None = None) -> NewEvent:
    return replace(new_event(number, key=key), parent=of)


def parents(store: Store, ids: Sequence[str]) -> list[str | None]:
    return [store.log.event(event_id).parent for event_id in ids]


def test_children_have_the_public_id_of_their_parent(store: Store) -> None:
    first, second = store.log.append(
        [
            [new_event(1), child(2, 0), child(3, 1), child(4, 0)],
            [new_event(5), new_event(6), child(7, 1)],
        ]
    )
    assert isinstance(first, list)
    assert isinstance(second, list)
    assert parents(store, first) == [None, first[0], first[1], first[0]]
    assert parents(store, second) == [None, None, second[1]]


def test_children_have_jobs_of_their_own(store: Store) -> None:
    [ids] = store.log.append([[new_event(1), child(2, 0)]])
    assert isinstance(ids, list)
    load = claimed(store, take_over(store, to=FLIGHTS))
    assert [(row.id, row.parent) for row in load.rows] == [(ids[0], None), (ids[1], ids[0])]


@pytest.mark.parametrize("before", [True, False], ids=["before", "in the same commit"])
def test_a_child_of_an_event_that_is_known_by_its_key_has_its_id(
    store: Store, before: bool
) -> None:
    parent = new_event(1, key="a")
    if before:
        store.log.append([[new_event(0)], [parent]])
    first, second = store.log.append([[parent, child(2, 0)], [new_event(3), parent, child(4, 1)]])
    assert isinstance(first, list)
    assert isinstance(second, list)
    assert second[1] == first[0]
    assert parents(store, [first[1], second[2]]) == [first[0], first[0]]
    assert parents(store, [second[0]]) == [None]


def test_a_child_that_is_known_by_its_key_keeps_its_parent(store: Store) -> None:
    [first] = store.log.append([[new_event(1), child(2, 0, key="c")]])
    [second] = store.log.append([[new_event(3), child(2, 0, key="c"), child(4, 1), new_event(5)]])
    assert isinstance(first, list)
    assert isinstance(second, list)
    assert second[1] == first[1]
    assert parents(store, second) == [None, first[0], first[1], None]


def test_a_rejected_family_takes_no_others_parents(store: Store) -> None:
    store.log.append([[new_event(1, key="a")]])
    rejected, kept = store.log.append(
        [
            [new_event(2), child(3, 0), child(4, 0, key="a")],
            [new_event(5), new_event(6), new_event(7), child(8, 2)],
        ]
    )
    assert isinstance(rejected, KeyReused)
    assert isinstance(kept, list)
    assert parents(store, kept) == [None, None, None, kept[2]]


def test_a_child_may_come_later_than_its_parent(store: Store) -> None:
    [[parent]] = event_ids(store.log.append([[new_event(1)]]))
    [ids] = store.log.append(
        [[child(2, parent), child(3, 0)]], cursors=[Cursor("orders/0", None, "1")]
    )
    assert isinstance(ids, list)
    assert parents(store, ids) == [parent, ids[0]]


def test_a_family_may_be_large(store: Store) -> None:
    family = [new_event(0), *(child(n, 0 if n % 2 else n - 1) for n in range(1, 20_000))]
    [ids] = store.log.append([family])
    assert isinstance(ids, list)
    assert parents(store, [ids[1], ids[-2], ids[-1]]) == [ids[0], ids[-3], ids[0]]


def test_families_that_are_kept_at_once_stay_together(store: Store) -> None:
    """Their sequence numbers interleave; each child still has its own parent."""
    seed = randomness.new_seed()

    def write(number: int) -> list[list[str]]:
        chance = random.Random(seed + number)
        stored: list[list[str]] = []
        for _ in range(15):
            size = chance.randint(1, 30)
            keyed = f"{number}.{len(stored)}" if chance.random() < 0.5 else None
            family = [
                new_event(0, key=keyed),
                *(child(n, chance.randrange(n)) for n in range(1, size)),
            ]
            [ids] = store.log.append([family])
            assert isinstance(ids, list)
            assert parents(store, ids) == [
                ids[event.parent] if isinstance(event.parent, int) else None for event in family
            ]
            stored.append(ids)
        return stored

    with ThreadPoolExecutor(6) as threads:
        families = [ids for stored in threads.map(write, range(6)) for ids in stored]
    all_ids = [event_id for ids in families for event_id in ids]
    assert len(set(all_ids)) == len(all_ids)
