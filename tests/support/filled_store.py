"""Stores that each version of the schema has filled, kept in `tests/contract/filled_stores/`.

`python -m tests.support.filled_store` writes those of the newest version: a dump for each database, and
what the code of that version read from it. Later versions are tested by upgrading them.
"""

import sqlite3
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import psycopg
from sqlalchemy import make_url

from blacksmith_dagster import Blacksmith, Destination, Migration
from blacksmith_dagster.pipeline.event import JobResult
from blacksmith_dagster.pipeline.retention import Retention
from blacksmith_dagster.store import Store, open_store, schema, tables
from blacksmith_dagster.store.records import (
    Cursor,
    Deviation,
    Lane,
    ListenerStatus,
    LoadVerdict,
    NewEvent,
    NewJob,
    RawRequest,
    ReplayMode,
    ReplayRequest,
    SelectedJob,
)
from blacksmith_dagster.supervisor import StoreSupervisor
from blacksmith_dagster.wanderer import MigrationRequest, Wanderer
from tests.support.pipelines.store import (
    FLIGHTS,
    SEATS,
    airport,
    app,
    append,
    claimed,
    departed,
    flights,
    ingest_events,
    take_over,
    warehouse,
)
from tests.support.services.postgres import PostgresServer, binaries

FOLDER = Path(__file__).parents[1] / "contract" / "filled_stores"
UNDELIVERABLE = "warehouse/undeliverable"
READER = "landing"


def keyed_event() -> NewEvent:
    """An event with all that an event can have."""
    return NewEvent(
        departed.path,
        '{"n": "keyed"}',
        [NewJob(FLIGHTS, "ValueError: its `when` raised"), NewJob(SEATS)],
        key="first",
        digest=b"digest",
        context='{"ip": "192.0.2.1"}',
        version="2026-01",
        sent_at=datetime(2026, 1, 2, 3, 4, 5, 678901, UTC),
    )


def fill(store: Store) -> None:
    """Give a new store rows in every table, in the states that jobs, loads and replays can have."""
    store.register(app)
    _purge_history(store)
    parent = append(store, keyed_event(), Cursor(READER, None, "20"))
    append(store, NewEvent(departed.path, '{"n": "child"}', [NewJob(FLIGHTS)], parent=parent))
    ingest_events(store, 12, to=(FLIGHTS, SEATS))
    raw = RawRequest(departed.path, b"\xff\x00{", {"content-type": "text/plain"}, "no JSON", "raw")
    store.quarantine.add(raw)
    store.log.note_listener(ListenerStatus(departed.path, "a host", 3, error="away"))
    _load_flights(store)
    _replay_seats(store)
    _migrate(store)
    _leave_a_process(store)
    store.maintain()


def _purge_history(store: Store) -> None:
    """Import events of January, and purge those of its first day."""
    for day in (1, 2):
        old = NewEvent(departed.path, f'{{"day": {day}}}')
        store.log.append([[old, old]], received_at=datetime(2026, 1, day, tzinfo=UTC))
    list(store.log.purge({departed.path: Retention(timedelta(days=30), timedelta(days=30))}))


def _load_flights(store: Store) -> None:
    """Leave jobs that succeeded, failed, were discarded, marked for discard, lost, and an open load."""
    token = take_over(store)
    store.loads.record(claimed(store, token, 3), LoadVerdict())
    load = claimed(store, token, 4)
    failed, discarded, marked, _ = load.rows
    store.loads.record(
        load,
        LoadVerdict(
            [
                Deviation(failed.seq, JobResult.FAILED, "not yet", 60.0),
                Deviation(discarded.seq, JobResult.DISCARDED, "too late"),
                Deviation(marked.seq, JobResult.FAILED, "never", 60.0),
            ],
            outcomes=[
                NewEvent(flights.discarded.path, "{}", [NewJob(UNDELIVERABLE)], parent=discarded.id)
            ],
        ),
    )
    store.loads.record(
        claimed(store, token, 2), LoadVerdict(raised="the warehouse is away", delay=60.0)
    )
    store.loads.release(claimed(store, token, 1))
    by_hand = take_over(store, "a person", Lane.DISCARD)
    store.loads.mark_for_discard(by_hand, [marked.id], "by hand")
    claimed(store, token, 1)
    claimed(store, take_over(store, "another loader"), 1)  # the load before it is lost


def _replay_seats(store: Store) -> None:
    """Leave a replay that was killed: it has planned, edited and loaded a part."""
    token = take_over(store, to=SEATS)
    store.loads.abandon(load := claimed(store, token), "it took too long")
    store.loads.record(claimed(store, token), LoadVerdict())
    now = datetime.now(UTC)
    request = ReplayRequest(
        now - timedelta(days=1), now + timedelta(days=1), (ReplayMode.ALL,), new_key=True
    )
    replaying = take_over(store, "replay", Lane.REPLAY, SEATS)
    replay = store.replays.begin(replaying, request, [departed.path], "run")
    selected = [SelectedJob(row.seq, "succeeded") for row in load.rows[:4]]
    selected[1] = selected[1]._replace(payload='{"n": "edited"}')
    store.replays.plan(replaying, replay, load.rows[4].seq, selected, 2)
    store.loads.record(claimed(store, replaying, 2), LoadVerdict())


def _migrate(store: Store) -> None:
    """Run a migration, and let the next one fail."""

    def fail(*_: Any) -> None:
        raise ValueError("no such column")

    lake = Destination(
        "lake",
        migrations=[
            Migration(20260101000000, "one", lambda *_: None),
            Migration(20260102000000, "two", fail),
        ],
    )
    migrated = Blacksmith(sources=[airport], destinations=[warehouse, lake])
    with closing(StoreSupervisor(store.database)) as supervisor:
        Wanderer(migrated, database=store.database, supervisor=supervisor, holder="a person").run(
            MigrationRequest()
        )


def _leave_a_process(store: Store) -> None:
    """Leave the lock and the service of a process that was killed long ago."""
    began = datetime(2026, 1, 1, tzinfo=UTC)
    expired = 0.0 if store.label.startswith("sqlite") else began
    process = {"id": "killed", "address": "192.0.2.1", "boot": "", "expires_at": expired}
    with store.database.writing() as conn:
        lease = {"key": f"load/{FLIGHTS}", "holder": "a host", "since": began}
        conn.execute(tables.leases.insert(), {**process, **lease})
        service = {"name": "blacksmith-gateway", "version": "0.1.0rc1", "tags": ""}
        conn.execute(tables.services.insert(), {**process, **service})


def contents(store: Store) -> dict[str, Any]:
    """What the code reads from a store, as JSON has it."""
    events = store.log.newest(limit=1000)
    paths = (FLIGHTS, SEATS, UNDELIVERABLE)
    read: dict[str, Any] = {
        "events": events,
        "transitions": {event.id: store.history.transitions(event.id) for event in events},
        "counts": {path: store.counts.of(path) for path in paths},
        "days": store.counts.days(datetime(2026, 1, 1, tzinfo=UTC).date()),
        "quarantine": [(raw, store.quarantine.get(raw.id)) for raw in store.quarantine.oldest()],
        "cursor": store.log.cursor(READER),
        "listeners": store.log.listeners(),
        "replays": {path: store.replays.newest(path) for path in paths},
        "unsettled": {path: store.replays.unsettled(path) for path in paths},
        "migrations": _migrations(store),
    }
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(read))
    return plain


def _migrations(store: Store) -> Sequence[Any]:
    with store.database.reading() as conn:
        rows = conn.exec_driver_sql(
            "SELECT m.scope, m.version, m.name, m.state, t.state, t.error FROM migrations m"
            " JOIN migration_transitions t ON t.migration = m.id ORDER BY t.id"
        )
        return [tuple(row) for row in rows]


def everything_in(url: str) -> str:
    """Everything in a database, as text that shows whether anything in it was changed."""
    if url.startswith("sqlite"):
        return dump(url)
    with psycopg.connect(url) as connection:  # a pg_dump fits its own version only
        rows = connection.execute(
            "SELECT schema_to_xml_and_xmlschema('public', true, false, '')::text"
            " UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'"
            " UNION ALL SELECT pg_get_constraintdef(oid) FROM pg_constraint"
            " WHERE connamespace = 'public'::regnamespace"
            " UNION ALL SELECT pg_get_functiondef(oid) FROM pg_proc"
            " WHERE pronamespace = 'public'::regnamespace"
        )
        return "\n".join(row[0] for row in rows)


def dump(url: str) -> str:
    """Everything in a database, as SQL."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(str(make_url(url).database))) as connection:
            return "\n".join(connection.iterdump())
    command = [str(binaries() / "pg_dump"), "--inserts", "--no-owner", "-d", url]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    # psql's own commands, one of which is random, and comments
    return "\n".join(line for line in lines if line and not line.startswith(("\\", "--")))


def restore(url: str, script: str) -> None:
    """Run what `dump` returned in an empty database."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(str(make_url(url).database))) as connection:
            connection.executescript(script)
        return
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(script.encode())


def write(url: str) -> None:
    """Fill the empty database at `url`, and keep it."""
    name = f"{schema.newest()}.{make_url(url).get_backend_name()}"
    FOLDER.mkdir(exist_ok=True)
    with closing(open_store(url, upgrade=True)) as store:
        fill(store)
        read = msgspec.json.format(msgspec.json.encode(contents(store)))
    (FOLDER / f"{name}.json").write_bytes(read + b"\n")
    (FOLDER / f"{name}.sql").write_text(dump(url) + "\n")


def main() -> None:
    """Write the stores of the newest version."""
    with tempfile.TemporaryDirectory() as folder:
        write(f"sqlite:///{folder}/store.db")
    with closing(PostgresServer(durable=False)) as server:
        server.start()
        write(server.create_database())


if __name__ == "__main__":
    main()
