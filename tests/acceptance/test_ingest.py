"""Lines of a landed file are ingested like requests, together with the file's cursor."""

from collections.abc import Iterator
from contextlib import closing

import pytest

from blacksmith_dagster import Request
from blacksmith_dagster.errors import CursorMoved
from blacksmith_dagster.ingest import ingest
from blacksmith_dagster.store import Store, open_store
from blacksmith_dagster.store.records import Cursor
from tests.support.pipelines.gateway import accepted, blacksmith, keyed, odd


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with closing(open_store(store_url, upgrade=True)) as opened:
        opened.register(blacksmith)
        yield opened


def test_cursor_is_committed_with_the_events(store: Store) -> None:
    lines = [Request(b'{"wanted": true}'), Request(b'{"wanted": false}')]
    ids = ingest(blacksmith, store, accepted, lines, Cursor("landing", None, "2"))
    assert [store.log.event(event_id).payload for (event_id,) in ids] == [
        '{"wanted": true}',
        '{"wanted": false}',
    ]
    assert [list(store.log.event(event_id).destinations) for (event_id,) in ids] == [
        ["lake/waters"],
        [],
    ]
    assert store.log.cursor("landing") == "2"
    with pytest.raises(CursorMoved):
        ingest(blacksmith, store, accepted, lines, Cursor("landing", None, "2"))
    assert len(store.log.newest()) == 2
    # Lines without an event move the cursor too.
    assert ingest(blacksmith, store, accepted, [], Cursor("landing", "2", "3")) == []
    assert store.log.cursor("landing") == "3"


def test_line_that_cannot_be_ingested_goes_to_quarantine(store: Store) -> None:
    lines = [Request(b'"reject"'), Request(b'"reply"'), Request(b'"raise"')]
    assert ingest(blacksmith, store, odd, lines) == [[], [], []]
    lines = [Request(b"{"), Request(b'{"wanted": 1}'), Request(b"[1, 2]")]
    ids = ingest(blacksmith, store, accepted, lines)
    assert [len(event_ids) for event_ids in ids] == [0, 1, 2]
    assert [raw.error.partition(":")[0] for raw in store.quarantine.oldest()] == [
        "Reject",
        "RuntimeError",
        "BadRequest",
    ]


def test_key_that_came_before_with_other_data_goes_to_quarantine(store: Store) -> None:
    ((first,),) = ingest(blacksmith, store, keyed, [Request(b'{"key": "k", "n": 1}')])
    lines = [Request(b'{"key": "k", "n": 1}'), Request(b'{"key": "k", "n": 2}')]
    assert ingest(blacksmith, store, keyed, lines) == [[first], []]
    (quarantined,) = store.quarantine.oldest()
    assert quarantined.error.startswith("KeyReused")
    assert store.quarantine.get(quarantined.id).body == b'{"key": "k", "n": 2}'
