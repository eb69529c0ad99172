"""The cursors of readers: they move in the commit that stores what was read, or not at all."""

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from blacksmith_dagster.errors import CursorMoved, KeyReused, NotFound
from blacksmith_dagster.store import Store
from blacksmith_dagster.store.records import Cursor, NewEvent, RawRequest
from tests.support import randomness
from tests.support.pipelines.store import departed, event_ids, new_event

RAW = RawRequest(departed.path, b"{", {}, "BadRequest: no JSON")


def test_a_cursor_is_committed_with_its_events(store: Store) -> None:
    assert store.log.cursor("landing") is None
    store.log.append([[new_event(1)]], cursors=[Cursor("landing", None, "10")])
    store.log.append([[new_event(2)]], cursors=[Cursor("landing", "10", "20")])
    for before in (None, "10"):
        with pytest.raises(CursorMoved, match="landing"):
            store.log.append([[new_event(3)]], cursors=[Cursor("landing", before, "30")])
    assert store.log.cursor("landing") == "20"
    assert len(store.log.newest()) == 2


def test_several_readers_move_together(store: Store) -> None:
    store.log.append([], cursors=[Cursor("orders/1", None, "7")])
    store.log.append(
        [[new_event()]],
        cursors=[
            Cursor("orders/2", None, "1"),
            Cursor("orders/0", None, "1"),
            Cursor("orders/1", "7", "9"),
        ],
    )
    assert [store.log.cursor(f"orders/{n}") for n in range(3)] == ["1", "9", "1"]


def test_if_one_reader_was_moved_by_another_nothing_is_kept(store: Store) -> None:
    released = store.quarantine.add(RAW)
    store.log.append([], cursors=[Cursor("orders/0", None, "1"), Cursor("orders/1", None, "1")])
    with pytest.raises(CursorMoved, match=r"the cursor of orders/1 has moved: another process"):
        store.log.append(
            [[new_event(1, key="a")], RAW],
            cursors=[Cursor("orders/0", "1", "2"), Cursor("orders/1", "0", "2")],
            released=[released],
        )
    assert [store.log.cursor(f"orders/{n}") for n in range(2)] == ["1", "1"]
    assert not store.log.newest()
    assert [raw.id for raw in store.quarantine.oldest()] == [released]
    # The key is still free: with other data it makes an event.
    assert isinstance(store.log.append([[new_event(2, key="a")]])[0], list)


def test_a_reused_key_leaves_nothing_of_what_was_read_with_it(store: Store) -> None:
    [[first]] = event_ids(store.log.append([[new_event(1, key="a")]]))
    cursor = Cursor("orders/0", None, "4")
    results = store.log.append(
        [[new_event(2)], [new_event(3, key="a")], RAW, [new_event(4, key="b")]],
        cursors=[cursor],
    )
    assert isinstance(results[1], KeyReused)
    assert [results[n] for n in (0, 2, 3)] == [[], [], []]
    assert store.log.cursor("orders/0") is None
    assert [event.id for event in store.log.newest()] == [first]
    assert not store.quarantine.oldest()
    # The others continue from the same cursor.
    again = store.log.append([[new_event(2)], RAW, [new_event(5, key="b")]], cursors=[cursor])
    assert [len(ids) for ids in again if isinstance(ids, list)] == [1, 1, 1]
    assert len(store.log.newest()) == 3


def test_without_cursors_a_reused_key_leaves_the_others(store: Store) -> None:
    store.log.append([[new_event(1, key="a")]])
    reused, raw, kept = store.log.append([[new_event(2, key="a")], RAW, [new_event(3, key="b")]])
    assert isinstance(reused, KeyReused)
    assert raw == [quarantined.id for quarantined in store.quarantine.oldest()]
    assert isinstance(kept, list)
    assert kept[0] in {event.id for event in store.log.newest()}


def test_a_reader_moves_for_what_was_ingested_before(store: Store) -> None:
    """A message that came twice: its event is stored already, and the reader moves past it."""
    [[first]] = event_ids(store.log.append([[new_event(1, key="a")]]))
    cursor = Cursor("orders/0", None, "1")
    assert store.log.append([[new_event(1, key="a")]], cursors=[cursor]) == [[first]]
    assert store.log.cursor("orders/0") == "1"


def test_an_unknown_event_moves_no_cursor(store: Store) -> None:
    with pytest.raises(NotFound):
        store.log.append([[NewEvent("no/such", "{}")]], cursors=[Cursor("orders/0", None, "1")])
    assert store.log.cursor("orders/0") is None


def test_readers_that_are_moved_in_every_order_do_not_deadlock(store: Store) -> None:
    """Many processes believe that they are the readers: each step is made once."""
    steps, seed = 15, randomness.new_seed()
    readers = [f"orders/{n}" for n in range(8)]

    def read_on(number: int) -> int:
        """Move all readers to the end, in steps; returns how many steps this process made."""
        chance, own_steps = random.Random(seed + number), 0
        while (before := store.log.cursor(readers[0])) != str(steps):
            after = str(int(before or 0) + 1)
            cursors = [Cursor(reader, before, after) for reader in readers]
            chance.shuffle(cursors)
            try:
                store.log.append([[new_event(int(after))]], cursors=cursors)
                own_steps += 1
            except CursorMoved:
                continue
        return own_steps

    with ThreadPoolExecutor(6) as threads:
        own_steps = list(threads.map(read_on, range(6)))
    assert sum(own_steps) == steps
    assert sorted(event.payload for event in store.log.newest()) == sorted(
        f'{{"n":{n}}}' for n in range(1, steps + 1)
    )
