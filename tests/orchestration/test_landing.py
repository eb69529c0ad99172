"""The example's sensor on landed files."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from dagster import DagsterInstance, SkipReason, build_sensor_context

from assets.application import blacksmith
from blacksmith_dagster.errors import CursorMoved
from blacksmith_dagster.orchestration import BlacksmithResource, build_definitions
from blacksmith_dagster.store import Store, open_store
from scripts import demo
from sensors.landing import ingest_file, landing

FLIGHTS = demo.as_rows(demo.read_flights(whole_year=False)[:3000])
LINES = [msgspec.json.encode(row) + b"\n" for row in FLIGHTS]


@pytest.fixture
def folder(tmp_path: Path, store_url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BLACKSMITH_HOME", str(tmp_path))
    monkeypatch.setenv("BLACKSMITH_STORE_URL", store_url)
    folder = tmp_path / "landing"
    folder.mkdir()
    return folder


@pytest.fixture
def store(folder: Path, store_url: str) -> Iterator[Store]:
    with contextlib.closing(open_store(store_url, upgrade=True)) as store:
        store.register(blacksmith)
        yield store


def tick() -> str:
    resource = BlacksmithResource()
    build_definitions(blacksmith, start_date="2026-01-01", resource=resource)
    with (
        DagsterInstance.ephemeral() as instance,
        build_sensor_context(instance=instance, resources={"blacksmith": resource}) as context,
    ):
        reason = landing(context)
    assert isinstance(reason, SkipReason)
    assert reason.skip_message is not None
    return reason.skip_message


def awaiting(store: Store) -> int:
    return store.counts.of("warehouse/flights").awaiting


def test_nothing_landed(store: Store, folder: Path) -> None:
    assert tick() == f"nothing new in {folder}"


def test_each_line_is_ingested_once_as_the_file_grows(store: Store, folder: Path) -> None:
    file = folder / "flights.ndjson"
    file.write_bytes(b"".join(LINES[:1000]) + LINES[1000][:20])
    assert tick() == "events ingested: 1000 from flights.ndjson"  # the last line has no end yet
    assert tick().startswith("nothing new")
    file.write_bytes(b"".join(LINES))
    assert tick() == "events ingested: 2000 from flights.ndjson"
    assert awaiting(store) == 3000


def test_a_bad_line_is_quarantined_and_stops_nothing(store: Store, folder: Path) -> None:
    (folder / "flights.ndjson").write_bytes(LINES[0] + b"{no json\n\n" + LINES[1])
    assert tick() == "events ingested: 2 from flights.ndjson"
    [quarantined] = store.quarantine.oldest()
    assert store.quarantine.get(quarantined.id).body == b"{no json"


def test_a_reader_that_was_overtaken_ingests_nothing(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = folder / "flights.ndjson"
    file.write_bytes(b"".join(LINES[:10]))
    ever = float("inf")
    read, overtaken = store.log.cursor, False

    def cursor_then_overtaken(reader: str) -> str | None:
        nonlocal overtaken
        cursor = read(reader)
        if not overtaken:
            overtaken = True
            assert ingest_file(store, file, ever) == 10
        return cursor

    monkeypatch.setattr(store.log, "cursor", cursor_then_overtaken)
    with pytest.raises(CursorMoved):
        ingest_file(store, file, ever)
    assert awaiting(store) == 10
