"""Each change of a PostgreSQL table arrives once, with the row before and after it."""

import json
import random
import re
import threading
from collections.abc import Iterator
from contextlib import closing

import psutil
import psycopg
import pytest

from blacksmith_dagster.errors import ChangesLost, DeclarationError, SettingsError, Unavailable
from blacksmith_dagster.sources import Change, PostgresSource
from blacksmith_dagster.sources.postgres import follow
from tests.support import randomness
from tests.support.changing import (
    RESPONDS_SOON,
    Changes,
    Ledger,
    ask,
    confirmed,
    run,
    shown,
    wait_until_free,
)
from tests.support.services.postgres import Postgres, PostgresServer

STREAMS = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
CUSTOMERS = "CREATE TABLE customers (id int PRIMARY KEY, name text, note text)"


@pytest.fixture
def url(postgres: Postgres) -> Iterator[str]:
    """An empty database whose slots are dropped with it."""
    url = postgres.create_database()
    yield url
    wait_until_free(url)
    postgres.drop_database(url)


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


def changes_of(url: str, *tables: str, snapshot: bool = False, slot: str | None = None) -> Changes:
    """A source event of the tables' changes, whose slot has the database's name by default."""
    name = slot or url.rpartition("/")[2]
    source = PostgresSource("crm", url=url + RESPONDS_SOON)
    return source.changes("changed", tables=tables, snapshot=snapshot, slot=name)


def test_changes_have_the_row_before_and_after(url: str, ledger: Ledger) -> None:
    run(url, CUSTOMERS)
    event = changes_of(url, "public.customers")
    with ledger.listening(event):
        ledger.wait(lambda: ledger.cursor != "null")
        with psycopg.connect(url) as connection:
            connection.execute("INSERT INTO customers VALUES (1, 'Ada', NULL)")
            connection.execute("UPDATE customers SET name = 'Ada L.'")
            connection.execute("UPDATE customers SET id = 2")
            connection.execute("DELETE FROM customers")
        run(url, "TRUNCATE customers")
        changes = ledger.wait_for(5)
    assert shown(changes) == [
        ("insert", "customers", None, {"id": 1, "name": "Ada", "note": None}),
        ("update", "customers", None, {"id": 1, "name": "Ada L.", "note": None}),
        ("update", "customers", {"id": 1}, {"id": 2, "name": "Ada L.", "note": None}),
        ("delete", "customers", {"id": 2}, None),
        ("truncate", "customers", None, None),
    ]
    assert [change.position for change in changes] == [1, 2, 3, 4, 1]
    assert len({(change.lsn, change.xid, change.committed_at) for change in changes[:4]}) == 1
    assert [change.order for change in changes] == sorted(change.order for change in changes)


def test_full_identity_shows_the_whole_old_row(url: str, ledger: Ledger) -> None:
    run(url, CUSTOMERS, "ALTER TABLE customers REPLICA IDENTITY FULL")
    with ledger.listening(changes_of(url, "customers")):
        ledger.wait(lambda: ledger.cursor != "null")
        run(url, "INSERT INTO customers VALUES (1, 'Ada', 'x')", "UPDATE customers SET note = 'y'")
        run(url, "DELETE FROM customers")
        changes = ledger.wait_for(3)
    before, after = {"id": 1, "name": "Ada", "note": "x"}, {"id": 1, "name": "Ada", "note": "y"}
    assert shown(changes)[1:] == [
        ("update", "customers", before, after),
        ("delete", "customers", after, None),
    ]


def test_an_unchanged_long_value_is_left_out(url: str, ledger: Ledger) -> None:
    run(url, CUSTOMERS, "ALTER TABLE customers ALTER note SET STORAGE EXTERNAL")
    with ledger.listening(changes_of(url, "customers")):
        ledger.wait(lambda: ledger.cursor != "null")
        run(url, "INSERT INTO customers VALUES (1, 'Ada', repeat('x', 100000))")
        run(url, "UPDATE customers SET name = 'Ada L.'")
        inserted, updated = ledger.wait_for(2)
    assert inserted.new["note"] == "x" * 100_000
    assert updated.new == {"id": 1, "name": "Ada L."}


def test_rollback_makes_nothing(url: str, ledger: Ledger) -> None:
    run(url, CUSTOMERS)
    with ledger.listening(changes_of(url, "customers")):
        ledger.wait(lambda: ledger.cursor != "null")
        with psycopg.connect(url) as connection:
            connection.execute("INSERT INTO customers VALUES (1, 'never', NULL)")
            connection.rollback()
            connection.execute("INSERT INTO customers VALUES (2, 'kept', NULL)")
            connection.execute("SAVEPOINT here")
            connection.execute("INSERT INTO customers VALUES (3, 'never', NULL)")
            connection.execute("ROLLBACK TO here")
        run(url, "INSERT INTO customers VALUES (4, 'kept', NULL)")
        assert [change.new["id"] for change in ledger.wait_for(2)] == [2, 4]


VALUES = {
    "int2": ("-32768", -32768),
    "int8": ("9223372036854775807", 9223372036854775807),
    "float8": ("0.1", 0.1),
    "float4": ("'-Infinity'", "-Infinity"),
    "float8 ": ("'NaN'", "NaN"),
    "numeric": ("1234567890.12345678901234567890", "1234567890.12345678901234567890"),
    "bool": ("true", True),
    "text": ("E'a\\n\"ü\"'", 'a\n"ü"'),
    "char(3)": ("'a'", "a  "),
    "uuid": (
        f"'{'a' * 8}-{'b' * 4}-{'c' * 4}-{'d' * 4}-{'e' * 12}'",
        "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee",
    ),
    "json": ("""'{"a": [1, 2.5, null]}'""", {"a": [1, 2.5, None]}),
    "jsonb": ("'1e30'", 10**30),
    "json ": ("'[1e999]'", "[1e999]"),
    "json  ": ("""'["\\ud800"]'""", '["\\ud800"]'),
    "bytea": ("'\\x00ff'", "AP8="),
    "date": ("'2026-01-31'", "2026-01-31"),
    "time": ("'12:30:00.5'", "12:30:00.5"),
    "timestamp": ("'2026-01-31 12:30:00.5'", "2026-01-31T12:30:00.5"),
    "timestamptz": ("'2026-01-31 12:30:00+02'", "2026-01-31T10:30:00Z"),
    "timestamptz ": ("'infinity'", "infinity"),
    "timestamptz  ": ("'0044-03-15 12:00:00+00 BC'", "0044-03-15 12:00:00+00 BC"),
    "interval": ("'1 day 2 hours'", "P1DT2H"),
    "int4[]": ("'{{1,NULL},{3,4}}'", [[1, None], [3, 4]]),
    "text[]": ("""'{"a,b",NULL,"NULL","q\\"{}"}'""", ["a,b", None, "NULL", 'q"{}']),
    "int4[] ": ("'[0:1]={1,2}'", [1, 2]),
    "int4[]  ": ("'{}'", []),
    "bytea[]": ("ARRAY['\\x00ff'::bytea]", ["AP8="]),
    "timestamptz[]": ("'{\"2026-01-31 12:30:00+00\"}'", ["2026-01-31T12:30:00Z"]),
    "box[]": ("'{(1,1),(0,0);(2,2),(1,1)}'", ["(1,1),(0,0)", "(2,2),(1,1)"]),
    "inet": ("'10.0.0.1/8'", "10.0.0.1/8"),
    "int4range": ("'[1,5)'", "[1,5)"),
    "positive": ("7", 7),
    "mood": ("'fine'", "fine"),
    "mood[]": ("'{fine,sad}'", "{fine,sad}"),
    "text ": ("NULL", None),
}
"""By type: a value in SQL, and the same value in a change."""


def test_values_are_reported_by_their_type_in_a_snapshot_and_after(
    url: str, ledger: Ledger
) -> None:
    columns = ", ".join(f"c{place} {type_}" for place, type_ in enumerate(VALUES))
    values = ", ".join(value for value, _ in VALUES.values())
    run(
        url,
        "CREATE TYPE mood AS ENUM ('fine', 'sad')",
        "CREATE DOMAIN positive AS int CHECK (value > 0)",
        f"CREATE TABLE typed (id int PRIMARY KEY, {columns}, made int GENERATED ALWAYS AS (id) STORED)",
        f"INSERT INTO typed VALUES (1, {values})",
    )
    with ledger.listening(changes_of(url, "typed", snapshot=True)):
        ledger.wait_for(2)
        run(url, f"INSERT INTO typed VALUES (2, {values})")
        read, completed, inserted = ledger.wait_for(3)
    assert (read.operation, completed.operation) == ("snapshot", "snapshot_completed")
    expected = {f"c{place}": value for place, (_, value) in enumerate(VALUES.values())}
    assert inserted.new == {"id": 2} | expected
    assert read.new == {"id": 1} | expected
    json.dumps(inserted.new, allow_nan=False)


def test_bytes_that_are_no_utf8_are_escaped(postgres: Postgres, ledger: Ledger) -> None:
    name = "blacksmith_bytes"
    run(
        postgres.url,
        f"CREATE DATABASE {name} ENCODING 'SQL_ASCII' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'",
    )
    url = postgres.url.rpartition("/")[0] + f"/{name}"
    try:
        run(url, CUSTOMERS)
        with ledger.listening(changes_of(url, "customers")):
            ledger.wait(lambda: ledger.cursor != "null")
            run(url, "INSERT INTO customers VALUES (1, E'caf\\xe9', NULL)")
            assert ledger.wait_for(1)[0].new["name"] == "caf\\xe9"
    finally:
        wait_until_free(url)
        postgres.drop_database(url)


def test_big_transaction_restarted_in_the_middle_comes_once(url: str, ledger: Ledger) -> None:
    run(url, CUSTOMERS)
    event = changes_of(url, "customers")
    with ledger.listening(event):
        ledger.wait(lambda: ledger.cursor != "null")
    run(url, "INSERT INTO customers SELECT i, 'x', NULL FROM generate_series(1, 20000) i")
    run(url, "UPDATE customers SET name = 'y' WHERE id <= 10")
    for ledger.stop_after in (1, 7_000, 19_999, 20_000, 20_001, None):
        wait_until_free(url)
        with ledger.listening(event):
            ledger.wait(lambda: len(ledger.data) >= (ledger.stop_after or 20_010))
    assert [change.new["id"] for change in ledger.wait_for(20_010)] == [
        *range(1, 20_001),
        *range(1, 11),
    ]


def test_snapshot_then_stream_has_no_gap(url: str, ledger: Ledger) -> None:
    seed = randomness.new_seed()
    run(
        url,
        CUSTOMERS,
        "INSERT INTO customers SELECT i, 'first', NULL FROM generate_series(1, 3000) i",
    )
    done = threading.Event()
    writers = [
        threading.Thread(target=_write_at_random, args=[url, random.Random(seed + n), done])
        for n in range(3)
    ]
    for writer in writers:
        writer.start()
    try:
        with ledger.listening(changes_of(url, "customers", snapshot=True)):
            ledger.wait(
                lambda: any(change.operation == "snapshot_completed" for change in ledger.data)
            )
            ledger.wait(lambda: len(ledger.data) > 4_000)
            done.set()
            for writer in writers:
                writer.join()
            run(url, "INSERT INTO customers VALUES (0, 'last', NULL)")
            ledger.wait(lambda: ledger.data[-1].new and ledger.data[-1].new["id"] == 0)
    finally:
        done.set()
    with psycopg.connect(url) as connection:
        rows = connection.execute("SELECT id, name FROM customers").fetchall()
    assert _replayed(ledger.data) == dict(rows)


def _write_at_random(url: str, randomly: random.Random, done: threading.Event) -> None:
    with psycopg.connect(url) as connection:
        while not done.is_set():
            for _ in range(randomly.randint(1, 5)):
                number = randomly.randint(1, 6000)
                statement = randomly.choice(
                    [
                        f"INSERT INTO customers VALUES ({number}, 'new') ON CONFLICT DO NOTHING",
                        f"UPDATE customers SET name = name || '.' WHERE id = {number}",
                        f"DELETE FROM customers WHERE id = {number}",
                    ]
                )
                try:
                    connection.execute(statement)
                except psycopg.errors.DeadlockDetected:
                    connection.rollback()
            (connection.rollback if randomly.random() < 0.1 else connection.commit)()


def _replayed(changes: list[Change]) -> dict[int, str]:
    """The table after all changes; each change must fit the rows before it."""
    rows: dict[int, str] = {}
    for change in changes:
        if change.operation in ("snapshot", "insert"):
            assert change.new is not None
            assert change.new["id"] not in rows, change
            rows[change.new["id"]] = change.new["name"]
        elif change.operation == "update":
            assert change.new is not None
            # One more dot than before: no update was left out or came twice.
            assert change.new["name"] == rows[change.new["id"]] + ".", change
            rows[change.new["id"]] = change.new["name"]
        elif change.operation == "delete":
            assert change.old is not None
            del rows[change.old["id"]]
    return rows


def test_an_interrupted_snapshot_starts_over(url: str, ledger: Ledger) -> None:
    run(url, CUSTOMERS, "CREATE TABLE orders (id int PRIMARY KEY)")
    run(url, "INSERT INTO customers SELECT i, 'x', NULL FROM generate_series(1, 10) i")
    run(url, "INSERT INTO orders VALUES (1)")
    event = changes_of(url, "customers", "orders", snapshot=True)
    ledger.stop_after = 5
    with ledger.listening(event):
        ledger.wait_for(5)
    wait_until_free(url)
    run(url, "DELETE FROM customers WHERE id = 1")
    ledger.stop_after = None
    with ledger.listening(event):
        changes = ledger.wait_for(5 + 9 + 1 + 1 + 1)
        first, second = changes[0].lsn, changes[-1].lsn
        assert first != second
        assert [change.lsn for change in changes] == [first] * 5 + [second] * 12
        assert [change.new["id"] for change in changes[5:14]] == list(range(2, 11))
        assert [(change.operation, change.table) for change in changes[14:]] == [
            ("snapshot_completed", "customers"),
            ("snapshot", "orders"),
            ("snapshot_completed", "orders"),
        ]
    wait_until_free(url)
    run(url, "INSERT INTO orders VALUES (2)")
    with ledger.listening(event):  # a finished one does not
        assert ledger.wait_for(18)[-1].new == {"id": 2}


@pytest.mark.parametrize("when", ["at rest", "created again"])
def test_slot_dropped(url: str, ledger: Ledger, when: str) -> None:
    run(url, CUSTOMERS)
    event = changes_of(url, "customers", slot="blacksmith_first")
    with ledger.listening(event):  # no change has come yet
        ledger.wait(lambda: ledger.cursor != "null")
    wait_until_free(url)
    run(url, "INSERT INTO customers VALUES (1, 'lost', NULL)")
    run(url, "SELECT pg_drop_replication_slot('blacksmith_first')")
    if when == "created again":
        create = "SELECT pg_create_logical_replication_slot('blacksmith_first', 'pgoutput')"
        run(url, create)
    error = ledger.listen(event)
    assert isinstance(error, ChangesLost)
    lsn = json.loads(ledger.cursor)["lsn"]
    for fact in ("blacksmith_first", f"committed after {lsn}", "slot='...'", "snapshot=True"):
        assert fact in str(error)
    assert isinstance(ledger.listen(event), ChangesLost)  # and not only once

    ledger.error = None
    again = changes_of(url, "customers", slot="blacksmith_second", snapshot=True)
    with ledger.listening(again):
        changes = ledger.wait_for(2)
    assert shown(changes)[0] == (
        ("snapshot", "customers", None, {"id": 1, "name": "lost", "note": None})
    )


def test_a_slot_that_the_server_invalidated_is_reported(durable_postgres: PostgresServer) -> None:
    url, ledger = durable_postgres.create_database(), Ledger()
    run(url, CUSTOMERS, "ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'")
    run(url, "ALTER SYSTEM SET max_wal_size = '32MB'", "SELECT pg_reload_conf()")
    event = changes_of(url, "customers")
    with ledger.listening(event):
        ledger.wait(lambda: ledger.cursor != "null")
    wait_until_free(url)
    for _ in range(4):
        run(url, "INSERT INTO customers VALUES (1, 'x', NULL)", "DELETE FROM customers")
        run(url, "SELECT pg_switch_wal()", "CHECKPOINT")
    assert ask(url, "SELECT wal_status FROM pg_replication_slots") == "lost"
    error = ledger.listen(event)
    assert isinstance(error, ChangesLost)
    assert "max_slot_wal_keep_size" in str(error)


@pytest.mark.parametrize("when", ["at rest", "created again"])
def test_publication_dropped_is_reported(url: str, ledger: Ledger, when: str) -> None:
    run(url, CUSTOMERS)
    event = changes_of(url, "customers", slot="blacksmith_published")
    with ledger.listening(event):
        ledger.wait(lambda: ledger.cursor != "null")
    wait_until_free(url)
    run(url, "DROP PUBLICATION blacksmith_published", "INSERT INTO customers VALUES (1)")
    if when == "created again":  # and missing for a part of the log
        run(url, "CREATE PUBLICATION blacksmith_published FOR TABLE customers")
    for _ in range(2):
        assert isinstance(error := ledger.listen(event), ChangesLost)
        assert "publication" in str(error)
        assert "snapshot=True" in str(error)
        wait_until_free(url)


def test_table_altered(url: str, ledger: Ledger) -> None:
    run(url, CUSTOMERS)
    with ledger.listening(changes_of(url, "customers")):
        ledger.wait(lambda: ledger.cursor != "null")
        run(
            url,
            "INSERT INTO customers VALUES (1, 'a', 'b')",
            "ALTER TABLE customers ADD COLUMN age int DEFAULT 5",
            "INSERT INTO customers VALUES (2, 'a', 'b', 6)",
            "ALTER TABLE customers DROP COLUMN note",
            "ALTER TABLE customers RENAME name TO called",
            "ALTER TABLE customers ALTER age TYPE text",
            "UPDATE customers SET called = 'c' WHERE id = 1",
            "ALTER TABLE customers RENAME TO clients",
            "DELETE FROM clients WHERE id = 1",
        )
        changes = ledger.wait_for(4)
    assert shown(changes) == [
        ("insert", "customers", None, {"id": 1, "name": "a", "note": "b"}),
        ("insert", "customers", None, {"id": 2, "name": "a", "note": "b", "age": 6}),
        ("update", "customers", None, {"id": 1, "called": "c", "age": "5"}),
        ("delete", "clients", {"id": 1}, None),
    ]


def test_changes_continue_after_a_restart_of_the_database(durable_postgres: PostgresServer) -> None:
    url, ledger = durable_postgres.create_database(), Ledger()
    run(url, CUSTOMERS)
    event = changes_of(url, "customers")
    written = 0
    with ledger.listening(event, retried=True):
        ledger.wait(lambda: ledger.cursor != "null")
        for how in ("fast", "immediate", "kill", "fast"):
            for _ in range(20):
                statement = f"INSERT INTO customers SELECT i FROM generate_series({written + 1}, "
                run(url, f"{statement}{written + 50}) i")
                written += 50
            if how == "kill":
                durable_postgres.kill()
                durable_postgres.start()
            else:
                durable_postgres.restart(how)  # type: ignore[arg-type]
        run(url, "INSERT INTO customers VALUES (0)")
        ledger.wait(lambda: ledger.data and ledger.data[-1].new["id"] == 0)
    assert [change.new["id"] for change in ledger.data] == [*range(1, written + 1), 0]


def test_slot_never_passes_what_is_committed(url: str, ledger: Ledger) -> None:
    run(url, CUSTOMERS, "CREATE TABLE other (id int)")
    with ledger.listening(changes_of(url, "customers")):
        ledger.wait(lambda: ledger.cursor != "null")
        ledger.held.set()
        run(url, "INSERT INTO customers VALUES (1, 'held', NULL)")
        ledger.wait(lambda: ledger.listener.cursor["change"] == 1)
        written = ledger.listener.cursor["lsn"]
        confirmed_before = confirmed(url)
        for _ in range(5):  # meanwhile the server asks for reports
            run(url, "INSERT INTO other VALUES (1)")
            query = "SELECT reply_time > now() FROM pg_stat_replication"
            with psycopg.connect(url) as connection:  # its now() is when this began
                ledger.wait(lambda: connection.execute(query).fetchone() == (True,))  # noqa: B023
        assert confirmed(url) == confirmed_before
        ledger.held.clear()
        run(url, "INSERT INTO customers VALUES (2, 'kept', NULL)")
        ledger.wait_for(2)
        ledger.wait(lambda: confirmed(url) > confirmed_before)
        assert confirmed(url) > int(ask(url, f"SELECT '{written}'::pg_lsn - '0/0'"))


def test_idle_wal_is_released(url: str, ledger: Ledger) -> None:
    run(url, CUSTOMERS, "CREATE TABLE other (id int)")
    with ledger.listening(changes_of(url, "customers")):
        ledger.wait(lambda: ledger.cursor != "null")
        run(url, "INSERT INTO other SELECT generate_series(1, 10000)")
        end = int(ask(url, "SELECT pg_current_wal_lsn() - '0/0'"))
        ledger.wait(lambda: confirmed(url) >= end)
    assert ledger.data == []


def test_a_database_with_a_listener_shuts_down(durable_postgres: PostgresServer) -> None:
    url, ledger = durable_postgres.create_database(), Ledger()
    run(url, CUSTOMERS)
    with ledger.listening(changes_of(url, "customers")):
        ledger.wait(lambda: ledger.cursor != "null")
        run(url, "INSERT INTO customers VALUES (1, 'x', NULL)")
        ledger.wait_for(1)
        process = durable_postgres.process
        assert process is not None
        process.terminate()  # it waits for its standbys, and so for the listener
        assert process.wait(30) == 0
        ledger.wait_for(1) if ledger.error is None else None
    assert isinstance(ledger.error, Unavailable)


def test_stopping_does_not_wait_for_a_slot_that_waits_for_a_transaction(
    durable_postgres: PostgresServer,
) -> None:
    url, ledger = durable_postgres.create_database(), Ledger()
    run(url, CUSTOMERS)
    connection = psycopg.connect(url)
    connection.execute("CREATE TABLE other (id int)")  # a slot is created once this has ended
    with closing(connection), ledger.listening(changes_of(url, "customers")):
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'CREATE_REPLICATION%'"
        ledger.wait(lambda: ask(url, waiting))
    assert ledger.error is None
    assert ledger.cursor == "null"


@pytest.mark.slow
def test_silent_server_is_reported(
    durable_postgres: PostgresServer, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "_PING_SECONDS", 0.5)
    monkeypatch.setattr(follow, "_SILENT_SECONDS", 2.0)
    url = durable_postgres.create_database()
    run(url, CUSTOMERS)
    with ledger.listening(changes_of(url, "customers")):
        ledger.wait(lambda: ledger.cursor != "null" and ask(url, STREAMS))
        server = psutil.Process(durable_postgres.process.pid)  # type: ignore[union-attr]
        processes = [server, *server.children(recursive=True)]
        for process in processes:
            process.suspend()
        try:
            with pytest.raises(Unavailable, match="silent for 2 seconds"):
                ledger.wait(lambda: False)
        finally:
            for process in processes:
                process.resume()


def test_partitions_come_as_their_table(url: str, ledger: Ledger) -> None:
    run(
        url,
        "CREATE TABLE parts (id int, day date, PRIMARY KEY (id, day)) PARTITION BY RANGE (day)",
        "CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM ('2026-01-01') TO ('2027-01-01')",
        "INSERT INTO parts VALUES (1, '2026-01-01')",
    )
    with ledger.listening(changes_of(url, "parts", snapshot=True)):
        ledger.wait_for(2)
        run(url, "INSERT INTO parts VALUES (2, '2026-01-02')")
        assert [(change.table, change.operation) for change in ledger.wait_for(3)] == [
            ("parts", "snapshot"),
            ("parts", "snapshot_completed"),
            ("parts", "insert"),
        ]


def test_a_publication_created_by_hand_chooses_rows_and_columns(url: str, ledger: Ledger) -> None:
    if int(ask(url, "SHOW server_version_num")) < 150_000:
        pytest.skip("a publication chooses rows and columns from PostgreSQL 15 on")
    run(url, CUSTOMERS, "INSERT INTO customers VALUES (1, 'a', 'secret'), (-1, 'b', 'secret')")
    name = url.rpartition("/")[2]
    run(url, f"CREATE PUBLICATION {name} FOR TABLE customers (id, name) WHERE (id > 0)")
    with ledger.listening(changes_of(url, "customers", snapshot=True)):
        ledger.wait_for(2)
        run(url, "INSERT INTO customers VALUES (-2, 'b', 'secret'), (2, 'b', 'secret')")
        assert [change.new for change in ledger.wait_for(3)] == [
            {"id": 1, "name": "a"},
            None,
            {"id": 2, "name": "b"},
        ]


def test_tables_declared_later_are_added(url: str, ledger: Ledger) -> None:
    run(url, CUSTOMERS, "CREATE TABLE orders (id int PRIMARY KEY)")
    with ledger.listening(changes_of(url, "customers")):
        ledger.wait(lambda: ledger.cursor != "null")
    wait_until_free(url)
    run(url, "INSERT INTO customers VALUES (1)", "INSERT INTO orders VALUES (1)")
    with ledger.listening(changes_of(url, "customers", "orders")):
        ledger.wait_for(1)
        run(url, "INSERT INTO orders VALUES (2)")
        assert [(change.table, change.new["id"]) for change in ledger.wait_for(2)] == [
            ("customers", 1),
            ("orders", 2),
        ]


def test_second_reader_of_a_slot_is_reported(url: str, ledger: Ledger) -> None:
    run(url, CUSTOMERS)
    event = changes_of(url, "customers")
    with ledger.listening(event):
        ledger.wait(lambda: ledger.cursor != "null")
        error = Ledger().listen(event)
        assert isinstance(error, Unavailable)
        assert "another deployment" in str(error)


def test_table_that_is_missing_is_named(url: str, ledger: Ledger) -> None:
    error = ledger.listen(changes_of(url, "public.custmers"))
    assert isinstance(error, DeclarationError)
    assert "no table 'public.custmers'" in str(error)
    assert isinstance(ledger.listen(changes_of(url, "a.b.c.d")), DeclarationError)


def test_table_without_a_key_is_not_published(url: str, ledger: Ledger) -> None:
    run(url, "CREATE TABLE keyless (id int)", "INSERT INTO keyless VALUES (1)")
    error = ledger.listen(changes_of(url, "keyless"))
    assert isinstance(error, DeclarationError)
    assert "REPLICA IDENTITY FULL" in str(error)
    run(url, "UPDATE keyless SET id = 2")  # which fails on a published table
    run(url, "ALTER TABLE keyless REPLICA IDENTITY FULL")
    ledger.error = None
    with ledger.listening(changes_of(url, "keyless")):
        ledger.wait(lambda: ledger.cursor != "null")
        run(url, "UPDATE keyless SET id = 3")
        assert shown(ledger.wait_for(1)) == [("update", "keyless", {"id": 2}, {"id": 3})]


def test_view_is_not_published(url: str, ledger: Ledger) -> None:
    run(url, "CREATE VIEW seen AS SELECT 1 AS id")
    error = ledger.listen(changes_of(url, "seen"))
    assert isinstance(error, DeclarationError)
    assert re.search('views|"seen" is not a table', str(error))  # from 15 on; before


@pytest.mark.postgres
def test_wrong_wal_level_is_reported(ledger: Ledger) -> None:
    with closing(PostgresServer(durable=False, wal_level="replica")) as server:
        server.start()
        run(server.url, CUSTOMERS)
        error = ledger.listen(changes_of(server.url, "customers"))
    assert isinstance(error, SettingsError)
    assert "set wal_level = logical" in str(error)


def test_missing_rights_are_reported_without_the_password(url: str, ledger: Ledger) -> None:
    run(url, CUSTOMERS)
    role = url.rpartition("/")[2] + "_reader"
    as_role = url.replace("postgres@", f"{role}:hunter22@")
    run(url, f"CREATE ROLE {role} LOGIN PASSWORD 'hunter22'")
    try:
        errors = [ledger.listen(changes_of(as_role, "customers"))]
        run(url, f"ALTER ROLE {role} REPLICATION")
        errors.append(ledger.listen(changes_of(as_role, "customers")))
        run(url, f"GRANT CREATE ON DATABASE {url.rpartition('/')[2]} TO {role}")
        run(url, f"ALTER TABLE customers OWNER TO {role}")
        ledger.error = None
        with ledger.listening(changes_of(as_role, "customers")):
            ledger.wait(lambda: ledger.cursor != "null")
        wait_until_free(url)
        run(url, "ALTER TABLE customers ENABLE ROW LEVEL SECURITY")
        run(url, "ALTER TABLE customers FORCE ROW LEVEL SECURITY")
        hidden = changes_of(as_role, "customers", slot=f"{role}_hidden", snapshot=True)
        errors.append(ledger.listen(hidden))
        wait_until_free(url)
    finally:
        run(url, f"DROP PUBLICATION IF EXISTS {url.rpartition('/')[2]}")
        run(url, f"REASSIGN OWNED BY {role} TO postgres", f"DROP OWNED BY {role}")
        run(url, f"DROP ROLE {role}")
    assert all(isinstance(error, SettingsError) for error in errors)
    assert "REPLICATION" in str(errors[0])
    assert "CREATE PUBLICATION" in str(errors[1])
    assert "row-level security" in str(errors[2])
    assert "hunter22" not in "".join(map(str, errors))


def test_unreadable_and_unreachable_urls_are_reported_without_the_password() -> None:
    for url in ("mysql://u:hunter22@h/d", "postgresql://u:hunter22@h:x:y/d%zz", "hunter22"):
        event = PostgresSource("crm", url=url).changes("changed", tables=["t"])
        error = Ledger().listen(event)
        assert isinstance(error, SettingsError)
        assert "hunter22" not in str(error)
    away = PostgresSource("crm", url="postgresql://u:hunter22@127.0.0.1:1/d")
    error = Ledger().listen(away.changes("changed", tables=["t"]))
    assert isinstance(error, Unavailable)
    assert "crm/changed at postgresql://127.0.0.1:1/d" in str(error)
    assert "hunter22" not in str(error)
