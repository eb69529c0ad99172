"""Jobs become rows of a table: on SQLite and on PostgreSQL, the same."""

import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest
import sqlalchemy as sa
from sqlalchemy.sql import quoted_name

from blacksmith_dagster import Batch, DeclarationError, DestinationEvent, Event, Job, Secret, Source
from blacksmith_dagster.destinations import SQLDestination
from blacksmith_dagster.errors import SettingsError, Unavailable
from blacksmith_dagster.pipeline.event import JobResult
from tests.support.services.postgres import PostgresServer
from tests.support.waiting import until

departed = Source("airport").accept("departed")


@dataclass
class Database:
    """A destination, what its `connect` has opened, and a way to look into it."""

    url: str
    destination: SQLDestination
    engine: sa.Engine

    def execute(self, statement: str) -> Any:
        with self.engine.begin() as connection:
            result = connection.exec_driver_sql(statement)
            return result.all() if result.returns_rows else None

    def table(self, name: str = "flights", **given: Any) -> DestinationEvent[Any]:
        return self.destination.table(name, receives=departed, **given)

    def load(self, event: DestinationEvent[Any], *data: Any) -> Batch[Any]:
        batch = Batch(
            event.path, [Job(each, Event(each), str(n), 1) for n, each in enumerate(data)]
        )
        event(batch, self.engine)
        return batch


@pytest.fixture
def database(store_url: str) -> Iterator[Database]:
    destination = SQLDestination("warehouse", url=store_url)
    opened = destination.connect()  # type: ignore[misc]
    yield Database(store_url, destination, next(opened))
    opened.close()


def failed(batch: Batch[Any]) -> dict[str, str]:
    """Why each job that failed did, by its key; nothing else was said of any job."""
    assert {verdict.result for verdict in batch.verdicts.values()} <= {JobResult.FAILED}
    return {key: verdict.reason for key, verdict in batch.verdicts.items()}


def test_inserts_without_a_key(database: Database) -> None:
    database.execute("CREATE TABLE flights (id TEXT, delay INT)")
    flights = database.table()
    database.load(flights, {"id": "a", "delay": 1}, {"id": "a", "delay": 1}, {"id": "b"})
    assert database.execute("SELECT id, delay FROM flights ORDER BY id") == [
        ("a", 1),
        ("a", 1),
        ("b", None),
    ]


def test_upserts_by_key(database: Database) -> None:
    database.execute(
        "CREATE TABLE flights (carrier TEXT, flight INT, delay INT, UNIQUE (carrier, flight))"
    )
    flights = database.table(key=["carrier", "flight"])
    database.load(flights, *({"carrier": "UA", "flight": n, "delay": 0} for n in range(100)))
    database.load(flights, *({"carrier": "UA", "flight": n, "delay": n} for n in range(50, 150)))
    rows = database.execute("SELECT flight, delay FROM flights ORDER BY flight")
    assert rows == [(n, n if n >= 50 else 0) for n in range(150)]


def test_fields_that_a_job_lacks_stay_as_they_are(database: Database) -> None:
    database.execute(
        "CREATE TABLE flights (id TEXT PRIMARY KEY, delay INT, gate TEXT DEFAULT 'none')"
    )
    flights = database.table(key=["id"])
    database.load(flights, {"id": "a", "delay": 1}, {"id": "b", "delay": 2, "gate": "B2"})
    database.load(
        flights, {"id": "b", "delay": 3}, {"id": "a", "gate": "A1"}, {"id": "a", "delay": None}
    )
    assert database.execute("SELECT * FROM flights ORDER BY id") == [
        ("a", None, "A1"),
        ("b", 3, "B2"),
    ]


def test_a_table_of_nothing_but_its_key(database: Database) -> None:
    database.execute("CREATE TABLE flights (id TEXT PRIMARY KEY)")
    flights = database.table(key=["id"])
    for _ in range(2):
        assert not failed(database.load(flights, {"id": "a"}, {"id": "b"}, {"id": "a"}))
    assert database.execute("SELECT id FROM flights ORDER BY id") == [("a",), ("b",)]


def test_newest_is_replaced_only_by_one_at_least_as_new(database: Database) -> None:
    database.execute("CREATE TABLE flights (id TEXT PRIMARY KEY, seen TIMESTAMP, note TEXT)")
    flights = database.table(key=["id"], sequence_by="seen")

    def at(id_: str, minute: int, note: str) -> dict[str, str]:
        return {"id": id_, "seen": f"2026-01-01T00:{minute:02}:00Z", "note": note}

    database.execute("INSERT INTO flights (id, note) VALUES ('unknown', 'never seen')")
    database.load(flights, at("older", 5, "kept"), at("same", 5, "old"), at("newer", 5, "old"))
    batch = database.load(
        flights,
        at("older", 4, "lost"),
        at("same", 5, "replaced"),
        at("newer", 6, "replaced"),
        at("unknown", 0, "replaced"),
    )
    assert not failed(batch)
    assert database.execute("SELECT id, note FROM flights ORDER BY id") == [
        ("newer", "replaced"),
        ("older", "kept"),
        ("same", "replaced"),
        ("unknown", "replaced"),
    ]


def test_equal_keys_in_a_batch_keep_the_newest(database: Database) -> None:
    database.execute("CREATE TABLE flights (id TEXT PRIMARY KEY, version INT, note TEXT)")
    flights = database.table(key=["id"], sequence_by="version")
    versions = [("a", 2), ("b", 1), ("a", 3), ("a", 1), ("b", 10), ("b", 9), ("a", 3)]
    data = [{"id": id_, "version": v, "note": f"job {n}"} for n, (id_, v) in enumerate(versions)]
    assert not failed(database.load(flights, *data))
    assert database.execute("SELECT * FROM flights ORDER BY id") == [
        ("a", 3, "job 6"),
        ("b", 10, "job 4"),
    ]


def test_newest_compares_times_not_texts(database: Database) -> None:
    database.execute("CREATE TABLE flights (id TEXT PRIMARY KEY, seen TIMESTAMP)")
    flights = database.table(key=["id"], sequence_by="seen")
    # In texts the second is the greater; it is an hour earlier.
    database.load(
        flights,
        {"id": "a", "seen": "2026-01-01T05:00:00Z"},
        {"id": "a", "seen": "2026-01-01T06:00:00+02:00"},
    )
    assert database.execute("SELECT CAST(seen AS TEXT) FROM flights")[0][0].startswith(
        "2026-01-01 05:00:00"
    )


def test_keys_that_only_the_database_knows_for_equal(database: Database) -> None:
    database.execute("CREATE TABLE flights (at TIMESTAMP PRIMARY KEY, note TEXT)")
    flights = database.table(key=["at"])
    times = ["2026-01-01T05:00:00Z", "2026-01-01T05:00:00+00:00", "2026-01-01T06:00:00+01:00"]
    batch = database.load(flights, *({"at": at, "note": f"job {n}"} for n, at in enumerate(times)))
    assert not failed(batch)
    assert database.execute("SELECT note FROM flights") == [("job 2",)]


def test_a_bad_row_fails_alone(database: Database) -> None:
    database.execute("CREATE TABLE flights (id INT PRIMARY KEY, delay INT CHECK (delay < 1000))")
    flights = database.table(key=["id"])
    bad = {3, 500, 501, 999}
    batch = database.load(
        flights, *({"id": n, "delay": 5000 if n in bad else n} for n in range(1000))
    )
    assert failed(batch).keys() == {str(n) for n in bad}
    assert all("check constraint" in why.lower() for why in failed(batch).values())
    assert database.execute("SELECT id, delay FROM flights ORDER BY id") == [
        (n, n) for n in range(1000) if n not in bad
    ]


def test_a_bad_row_does_not_take_an_earlier_one_of_its_key_along(database: Database) -> None:
    database.execute("CREATE TABLE flights (id TEXT PRIMARY KEY, delay INT CHECK (delay < 1000))")
    flights = database.table(key=["id"])
    batch = database.load(flights, {"id": "a", "delay": 1}, {"id": "a", "delay": 5000})
    assert failed(batch).keys() == {"1"}
    assert database.execute("SELECT delay FROM flights") == [(1,)]


def test_bad_rows_are_found_by_halving(database: Database) -> None:
    database.execute("CREATE TABLE flights (id INT PRIMARY KEY, delay INT CHECK (delay < 1000))")
    flights = database.table(key=["id"])
    sent: list[str] = []
    sa.event.listen(database.engine, "before_cursor_execute", lambda *given: sent.append(given[2]))
    batch = database.load(
        flights, *({"id": n, "delay": 5000 if n == 700 else n} for n in range(1000))
    )
    assert failed(batch).keys() == {"700"}
    assert sum("INSERT" in statement for statement in sent) <= 21  # 1 + 2 log2(1000)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param({"id": None}, id="key is null"),
        pytest.param({"id": "a", "at": "yesterday, about noon"}, id="no time"),
        pytest.param({"id": "half a pair: \ud800"}, id="lone surrogate"),
        pytest.param({"id": "a", "gate": 1, "altitude": 2}, id="unknown field"),
        pytest.param(["a"], id="no object"),
        pytest.param({"id": "a", "delay": 2**70}, id="integer too large"),
        pytest.param({"id": "a", "must": None}, id="not null"),
        pytest.param({"id": "a", "airport": "XXX"}, id="foreign key"),
    ],
)
def test_what_cannot_be_kept_fails_alone(database: Database, value: Any) -> None:
    if database.engine.dialect.name == "sqlite":
        sa.event.listen(database.engine, "connect", _check_foreign_keys)
        database.engine.dispose()
    database.execute("CREATE TABLE airports (code VARCHAR(3) PRIMARY KEY)")
    database.execute(
        "CREATE TABLE flights (id TEXT PRIMARY KEY, at TIMESTAMP, delay BIGINT, "
        "must INT NOT NULL DEFAULT 0, airport VARCHAR(3) REFERENCES airports DEFERRABLE)"
    )
    flights = database.table(key=["id"])
    batch = database.load(flights, {"id": "before"}, value, {"id": "after"})
    assert failed(batch).keys() == {"1"}
    assert database.execute("SELECT id FROM flights ORDER BY id") == [("after",), ("before",)]


def _check_foreign_keys(connection: Any, _: object) -> None:
    connection.execute("PRAGMA foreign_keys = ON")


def test_a_deferred_constraint_fails_its_row_alone(postgres_url: str) -> None:
    with _opened(SQLDestination("warehouse", url=postgres_url)) as database:
        database.execute("CREATE TABLE airports (code TEXT PRIMARY KEY)")
        database.execute(
            "CREATE TABLE flights (id TEXT PRIMARY KEY, "
            "airport TEXT REFERENCES airports DEFERRABLE INITIALLY DEFERRED)"
        )
        batch = database.load(
            database.table(key=["id"]), {"id": "a"}, {"id": "b", "airport": "XXX"}
        )
        assert failed(batch).keys() == {"1"}
        assert database.execute("SELECT id FROM flights") == [("a",)]


def test_what_a_trigger_refuses_fails_alone(postgres_url: str) -> None:
    with _opened(SQLDestination("warehouse", url=postgres_url)) as database:
        database.execute("CREATE TABLE flights (id INT PRIMARY KEY)")
        database.execute(
            "CREATE FUNCTION low() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "IF NEW.id > 1 THEN RAISE 'flight %% is over 1', NEW.id; END IF; RETURN NEW; END $$"
        )
        database.execute(
            "CREATE TRIGGER low BEFORE INSERT ON flights FOR EACH ROW EXECUTE FUNCTION low()"
        )
        batch = database.load(database.table(key=["id"]), {"id": 0}, {"id": 2}, {"id": 1})
        assert failed(batch) == {"1": "flight 2 is over 1"}


def test_a_reason_does_not_hold_the_whole_row(database: Database) -> None:
    database.execute("CREATE TABLE flights (id TEXT PRIMARY KEY, must INT NOT NULL, passport TEXT)")
    batch = database.load(
        database.table(key=["id"]), {"id": "a", "must": None, "passport": "P-1234"}
    )
    assert "must" in failed(batch)["0"]
    assert "P-1234" not in failed(batch)["0"]


def test_a_column_that_was_added_is_known_without_a_restart(database: Database) -> None:
    database.execute("CREATE TABLE flights (id TEXT PRIMARY KEY)")
    flights = database.table(key=["id"])
    assert not failed(database.load(flights, {"id": "a"}))
    assert "no column 'gate'" in failed(database.load(flights, {"id": "b", "gate": "B2"}))["0"]
    database.execute("ALTER TABLE flights ADD COLUMN gate TEXT")
    assert not failed(database.load(flights, {"id": "b", "gate": "B2"}))
    assert database.execute("SELECT * FROM flights ORDER BY id") == [("a", None), ("b", "B2")]


def test_a_table_is_read_once_per_process(database: Database) -> None:
    database.execute("CREATE TABLE flights (id TEXT PRIMARY KEY)")
    flights = database.table(key=["id"])
    database.load(flights, {"id": "a"})
    sent: list[str] = []
    sa.event.listen(database.engine, "before_cursor_execute", lambda *given: sent.append(given[2]))
    database.load(flights, {"id": "b"})
    assert [each for each in sent if "pg_attribute" in each or "table_x" in each] == []
    assert sum("INSERT" in each for each in sent) == 1


def test_a_declaration_may_be_opened_on_another_database(tmp_path: Path) -> None:
    warehouse = SQLDestination("warehouse", url=Secret("WAREHOUSE_URL"))
    table = sa.Table("flights", sa.MetaData(), sa.Column("id", sa.Text, primary_key=True))
    flights = warehouse.table("flights", receives=departed, key=["id"], definition=table)
    for name in ("one", "two"):
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("WAREHOUSE_URL", f"sqlite:///{tmp_path}/{name}.db")
            with _opened(warehouse) as database:
                database.load(flights, {"id": name})
                assert database.execute("SELECT id FROM flights") == [(name,)]


def test_no_table_is_made_unless_asked(database: Database) -> None:
    with pytest.raises(DeclarationError, match="no table 'flights'; create it, or declare it with"):
        database.load(database.table(), {"id": "a"})
    assert not sa.inspect(database.engine).has_table("flights")


def test_create_makes_the_table_that_it_is_given(database: Database) -> None:
    table = sa.Table(
        "Flight Log",
        sa.MetaData(),
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("n", sa.Integer),
    )
    flights = database.table(key=["id"], definition=table)
    database.load(flights, {"id": "a", "n": 1})
    database.load(flights, {"id": "a", "n": 2})
    assert database.execute('SELECT * FROM "Flight Log"') == [("a", 2)]


def test_a_table_in_a_schema(postgres_url: str) -> None:
    with _opened(SQLDestination("warehouse", url=postgres_url)) as database:
        database.execute('CREATE SCHEMA "Raw"')
        table = sa.Table(
            "flights",
            sa.MetaData(schema="Raw"),
            sa.Column("id", sa.Text, primary_key=True),
            sa.Column("n", sa.Integer),
        )
        flights = database.table(key=["id"], sequence_by="n", definition=table)
        for n in (2, 1, 3, 2):
            database.load(flights, {"id": "a", "n": n})
        assert database.execute('SELECT * FROM "Raw".flights') == [("a", 3)]


def test_names_that_look_like_sql(database: Database) -> None:
    name = 'x"); DROP TABLE flights; --'
    column = [
        "na'me",
        'quo"ted',
        "per%cent",
        "co:lon",
        "paren)thesis",
        "ünïcode 漢",
        quoted_name("nothing", True),
        name,
    ]
    columns = [sa.Column(each, sa.Text) for each in column]
    table = sa.Table(
        "drop table", sa.MetaData(), sa.Column("select", sa.Text, primary_key=True), *columns
    )
    flights = database.table(key=["select"], sequence_by='quo"ted', definition=table)
    data = {each: f"{each}'; DROP TABLE flights; --" for each in ["select", *column]}
    assert not failed(database.load(flights, data, data))
    with database.engine.connect() as connection:
        assert [dict(row._mapping) for row in connection.execute(sa.select(table))] == [data]


class Everything(msgspec.Struct):
    id: int
    text: str
    real: float
    exact: Decimal
    flag: bool
    at: datetime
    day: date
    raw: bytes
    document: dict[str, Any]
    listed: list[Any]
    missing: int | None
    uuid: UUID


def test_values_arrive_as_what_they_are(database: Database) -> None:
    table = sa.Table(
        "flights",
        sa.MetaData(),
        sa.Column("id", sa.BigInteger, primary_key=True),
        sa.Column("text", sa.Text),
        sa.Column("real", sa.Double),
        sa.Column("exact", sa.Numeric(20, 4, asdecimal=False)),
        sa.Column("flag", sa.Boolean),
        sa.Column("at", sa.DateTime(timezone=True)),
        sa.Column("day", sa.Date),
        sa.Column("raw", sa.LargeBinary),
        sa.Column("document", sa.JSON),
        sa.Column("listed", sa.JSON),
        sa.Column("missing", sa.Integer),
        sa.Column("uuid", sa.Text),
    )
    uuid = UUID(int=1)
    struct = Everything(
        id=2**62,
        text="NULL, \\x00, ' \" \\ ünï 漢 \t\n",
        real=0.1,
        exact=Decimal("12345.6789"),
        flag=True,
        at=datetime(2026, 1, 1, 5, 0, 0, 123456, UTC),
        day=date(2026, 1, 2),
        raw=b"\x00\xff'",
        document={"a": [1, None, "x"], "at": datetime(2026, 1, 1, tzinfo=UTC)},
        listed=[1, "2", {"c": 3}],
        missing=None,
        uuid=uuid,
    )
    expected = msgspec.structs.asdict(struct) | {
        "exact": 12345.6789,
        "document": {"a": [1, None, "x"], "at": "2026-01-01T00:00:00Z"},
        "uuid": str(uuid),
    }
    flights = database.table(key=["id"], definition=table)
    assert not failed(database.load(flights, struct))
    assert _only_row(database, table) == expected

    # The same, as JSON has it: what a source without a model would bring.
    database.execute("DELETE FROM flights")
    plain = msgspec.to_builtins(struct)
    del plain["raw"]
    assert not failed(database.load(flights, plain))
    assert _only_row(database, table) == expected | {"raw": None}


def _only_row(database: Database, table: sa.Table) -> dict[str, Any]:
    with database.engine.connect() as connection:
        row = dict(connection.execute(sa.select(table)).one()._mapping)
    if row["at"].tzinfo is None:  # SQLite: times are kept in UTC, without a zone
        row["at"] = row["at"].replace(tzinfo=UTC)
    return row


def test_a_time_with_an_offset_is_kept_in_utc_where_there_are_no_zones(database: Database) -> None:
    database.execute("CREATE TABLE flights (id TEXT PRIMARY KEY, at TIMESTAMP)")
    flights = database.table(key=["id"])
    database.load(
        flights,
        {"id": "text", "at": "2026-01-01T05:00:00-05:00"},
        {"id": "value", "at": datetime.fromisoformat("2026-01-01T05:00:00-05:00")},
        {"id": "zoneless", "at": "2026-01-01T10:00:00"},
    )
    table = sa.table("flights", sa.column("id"), sa.column("at", sa.DateTime))
    with database.engine.connect() as connection:
        assert {row.at for row in connection.execute(sa.select(table))} == {
            datetime(2026, 1, 1, 10)  # noqa: DTZ001
        }


def test_numbers_that_json_lacks(postgres_url: str) -> None:
    with _opened(SQLDestination("warehouse", url=postgres_url)) as database:
        database.execute("CREATE TABLE flights (id INT PRIMARY KEY, delay FLOAT8, exact NUMERIC)")
        flights = database.table(key=["id"])
        batch = database.load(
            flights,
            {"id": 1, "delay": float("inf")},
            {"id": 2, "delay": float("-inf")},
            {"id": 3, "delay": float("nan")},
            {"id": 4, "exact": 10**40 + 1},
        )
        assert not failed(batch)
        assert database.execute("SELECT id FROM flights WHERE delay = 'infinity'") == [(1,)]
        assert database.execute("SELECT id FROM flights WHERE delay = '-infinity'") == [(2,)]
        assert database.execute("SELECT id FROM flights WHERE delay = 'nan'") == [(3,)]
        assert database.execute("SELECT exact FROM flights WHERE id = 4") == [(10**40 + 1,)]


def test_types_that_only_postgresql_has(postgres_url: str) -> None:
    with _opened(SQLDestination("warehouse", url=postgres_url)) as database:
        database.execute("CREATE TYPE \"Mood\" AS ENUM ('calm', 'late')")
        database.execute("CREATE DOMAIN code AS VARCHAR(3) CHECK (VALUE = upper(VALUE))")
        database.execute(
            'CREATE TABLE flights (id INT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, mood "Mood", '
            "origin code, stops TEXT[], place POINT, net INET, at TIMESTAMPTZ DEFAULT now(), "
            "shout TEXT GENERATED ALWAYS AS (upper(origin)) STORED)"
        )
        flights = database.table()
        batch = database.load(
            flights,
            {
                "mood": "late",
                "origin": "EWR",
                "stops": ["a", "b,{}"],
                "place": "(1,2)",
                "net": "::1",
            },
            {"mood": "furious"},
            {"origin": "ewr"},
            {"origin": "EWRX"},
            {"shout": "EWR"},
        )
        assert failed(batch).keys() == {"1", "2", "3", "4"}
        row = "SELECT mood::text, origin, stops, place::text, net::text, at IS NOT NULL, shout"
        assert database.execute(f"{row} FROM flights") == [
            ("late", "EWR", ["a", "b,{}"], "(1,2)", "::1/128", True, "EWR")
        ]


def test_a_batch_is_one_transaction(database: Database) -> None:
    """A reader sees nothing of a batch, or all of it: also when its statement had to be halved."""
    database.execute("CREATE TABLE flights (id INT PRIMARY KEY, delay INT CHECK (delay < 1000))")
    flights = database.table(key=["id"])
    commits: list[Any] = []
    sa.event.listen(database.engine, "commit", commits.append)
    bad = {1, 10_400}
    batch = database.load(
        flights, *({"id": n, "delay": 5000 if n in bad else 0} for n in range(10_500))
    )
    assert failed(batch).keys() == {"1", "10400"}
    assert len(commits) == 1
    assert database.execute("SELECT count(*) FROM flights") == [(10_498,)]


def test_a_key_that_is_not_unique_names_the_fix(database: Database) -> None:
    database.execute("CREATE TABLE flights (id TEXT, delay INT)")
    with pytest.raises(DeclarationError, match='is not unique; CREATE UNIQUE INDEX ON "flights"'):
        database.load(database.table(key=["id"]), {"id": "a", "delay": 1})


def test_a_key_or_newest_that_the_table_lacks(database: Database) -> None:
    database.execute("CREATE TABLE flights (id TEXT PRIMARY KEY)")
    with pytest.raises(
        DeclarationError, match="no column number, seen, which key= or sequence_by="
    ):
        database.load(database.table(key=["number"], sequence_by="seen"), {"id": "a"})


def test_a_table_that_went_away_and_came_back(database: Database) -> None:
    database.execute("CREATE TABLE flights (id TEXT PRIMARY KEY)")
    flights = database.table(key=["id"])
    database.load(flights, {"id": "a"})
    database.execute("DROP TABLE flights")
    with pytest.raises((DeclarationError, Unavailable), match="flights"):
        database.load(flights, {"id": "b"})
    with pytest.raises(DeclarationError, match="no table 'flights'"):
        database.load(flights, {"id": "b"})
    database.execute("CREATE TABLE flights (id TEXT PRIMARY KEY, delay INT)")
    assert not failed(database.load(flights, {"id": "b", "delay": 1}))


def test_a_server_that_goes_away_is_no_row_s_fault(durable_postgres: PostgresServer) -> None:
    with _opened(SQLDestination("warehouse", url=durable_postgres.url)) as database:
        database.execute("CREATE TABLE flights (id INT PRIMARY KEY)")
        flights = database.table(key=["id"])
        database.load(flights, {"id": 1})
        durable_postgres.kill()
        batch = Batch(flights.path, [Job({"id": 2}, Event({}), "2", 1)])
        with pytest.raises(Unavailable, match="the database rejected the batch"):
            flights(batch, database.engine)
        assert not batch.verdicts
        durable_postgres.start()
        flights(batch, database.engine)  # the pool has found out that its connection is dead
        assert database.execute("SELECT count(*) FROM flights") == [(2,)]


def test_a_connection_cut_in_the_middle_is_no_row_s_fault(postgres_url: str) -> None:
    with _opened(SQLDestination("warehouse", url=postgres_url)) as database:
        database.execute("CREATE TABLE flights (id INT PRIMARY KEY)")
        flights = database.table(key=["id"])
        with database.engine.connect() as blocker:
            blocker.exec_driver_sql("LOCK TABLE flights")
            seen: list[BaseException] = []
            thread = threading.Thread(target=_load_into, args=(database, flights, seen))
            thread.start()
            until(
                lambda: database.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE wait_event_type = 'Lock' AND query LIKE 'INSERT%%'"
                )
            )
            thread.join()
        assert isinstance(seen[0], Unavailable)
        assert not failed(database.load(flights, {"id": 1}))


def test_a_statement_ends_with_the_load_s_timeout(postgres_url: str) -> None:
    with _opened(SQLDestination("warehouse", url=postgres_url)) as database:
        database.execute("CREATE TABLE flights (id INT PRIMARY KEY)")
        flights = database.table(key=["id"], timeout="500ms")
        with database.engine.connect() as blocker:
            blocker.exec_driver_sql("LOCK TABLE flights")
            with pytest.raises(Unavailable, match="statement timeout"):
                database.load(flights, {"id": 1})


def test_sqlite_waits_for_another_writer(tmp_path: Path) -> None:
    with _opened(SQLDestination("warehouse", url=f"sqlite:///{tmp_path}/w.db")) as database:
        database.execute("CREATE TABLE flights (id INT PRIMARY KEY)")
        flights = database.table(key=["id"])
        database.load(flights, {"id": 1})
        other = sa.create_engine(database.url)
        with closing(other.raw_connection()) as writer:
            writer.execute("BEGIN IMMEDIATE")
            seen: list[BaseException] = []
            thread = threading.Thread(target=_load_into, args=(database, flights, seen))
            thread.start()
            thread.join(0.3)
            assert thread.is_alive(), "it did not wait"
            writer.rollback()
            thread.join()
        other.dispose()
        assert not seen
        assert database.execute("SELECT count(*) FROM flights") == [(2,)]


def test_two_loads_of_one_table_lose_nothing(database: Database) -> None:
    database.execute("CREATE TABLE flights (id INT PRIMARY KEY, version INT)")
    first = database.table("flights", key=["id"], sequence_by="version")
    second = SQLDestination("other", url=database.url).table(
        "flights", receives=departed, key=["id"], sequence_by="version"
    )
    errors: list[BaseException] = []

    def load(event: DestinationEvent[Any], parity: int) -> None:
        try:
            for version in range(parity, 40, 2):
                database.load(event, *({"id": n, "version": version} for n in range(50)))
        except BaseException as error:  # noqa: BLE001 — told to the test's thread
            errors.append(error)

    threads = [threading.Thread(target=load, args=each) for each in ((first, 0), (second, 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert database.execute("SELECT DISTINCT version FROM flights") == [(39,)]


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://loader:canary-77@127.0.0.1:1/warehouse",
        "postgresql://loader:canary-77@127.0.0.1:1/warehouse?connect_timeout=canary-77",
        "postgresql://loader:canary-77@[::1/warehouse",
        "postgresql://loader:canary-77@127.0.0.1:port/warehouse",
        "mysql://loader:canary-77@127.0.0.1/warehouse",
        "canary-77",
    ],
)
def test_no_error_shows_the_password(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WAREHOUSE_URL", url)
    destination = SQLDestination("warehouse", url=Secret("WAREHOUSE_URL"))
    flights = destination.table("flights", receives=departed)
    with (
        caplog.at_level("DEBUG"),
        pytest.raises((SettingsError, Unavailable)) as caught,
        _opened(destination) as database,
    ):
        database.load(flights, {"id": "a"})
    error: BaseException | None = caught.value
    while error is not None:
        if (
            "connect_timeout" not in url
        ):  # the driver quotes an option, which is no place for a secret
            assert "canary-77" not in str(error)
        error = error.__cause__
    assert "canary-77" not in caplog.text + repr(destination) + str(vars(destination))


def test_a_missing_driver_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "psycopg", None)
    opened = SQLDestination("warehouse", url="postgresql://127.0.0.1/w").connect()  # type: ignore[misc]
    with pytest.raises(ImportError, match=r"pip install 'blacksmith-dagster\[postgres\]'"):
        next(opened)


def test_wrong_declarations() -> None:
    warehouse = SQLDestination("warehouse", url="sqlite://")
    with pytest.raises(DeclarationError, match=r"write a list, as in \['id'\]"):
        warehouse.table("flights", receives=departed, key="id")
    with pytest.raises(DeclarationError, match="give the key too"):
        warehouse.table("flights", receives=departed, sequence_by="seen")
    with pytest.raises(
        DeclarationError, match=r"sequence_by='seen' is part of the key.*name a column that"
    ):
        warehouse.table("flights", receives=departed, key=["id", "seen"], sequence_by="seen")


def _load_into(database: Database, event: DestinationEvent[Any], seen: list[BaseException]) -> None:
    try:
        database.load(event, {"id": 2})
    except BaseException as error:  # noqa: BLE001 — told to the test's thread
        seen.append(error)


class _opened:  # noqa: N801 — used like a function
    def __init__(self, destination: SQLDestination) -> None:
        self._destination = destination

    def __enter__(self) -> Database:
        self._connection = self._destination.connect()  # type: ignore[misc]
        return Database(str(self._destination.url), self._destination, next(self._connection))

    def __exit__(self, *_: object) -> None:
        self._connection.close()
