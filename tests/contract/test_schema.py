"""The versions of the store's schema: each is upgraded with what is in it, or rejected unchanged."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from click.testing import CliRunner
from sqlalchemy import make_url

from blacksmith_dagster.cli import main
from blacksmith_dagster.errors import SchemaOutdated, StoreError, Unavailable
from blacksmith_dagster.store import Store, open_store, postgres, schema
from blacksmith_dagster.store.records import Lane, LoadVerdict
from blacksmith_dagster.store.tables import metadata
from tests.support import filled_store
from tests.support.filled_store import FOLDER, contents, everything_in, keyed_event, restore
from tests.support.next_version import NEXT, next_schema
from tests.support.pipelines.store import FLIGHTS, SEATS, app, append, ingest_events, take_over
from tests.support.waiting import until

VERSIONS = [
    version.revision for version in ScriptDirectory.from_config(schema._config()).walk_revisions()
]
DESTINATIONS = (FLIGHTS, SEATS, filled_store.UNDELIVERABLE)


def version_of(store: Store) -> str:
    with store.database.reading() as conn:
        query = f"SELECT version_num FROM {schema.VERSION_TABLE}"
        return str(conn.exec_driver_sql(query).scalar_one())


def set_version(store: Store, version: str) -> None:
    with store.database.writing() as conn:
        conn.exec_driver_sql(f"UPDATE {schema.VERSION_TABLE} SET version_num = '{version}'")


def differences(store: Store) -> list[Any]:
    """What the database has that `store/tables.py` does not say, and the reverse."""
    options = {
        "include_name": lambda name, kind, _: kind != "table" or name in metadata.tables,
        "compare_type": False,  # SQLite reports other types than those declared
    }
    with store.database.engine.connect() as conn:
        return list(compare_metadata(MigrationContext.configure(conn, opts=options), metadata))


def includes(new: Any, old: Any) -> bool:
    """Whether all of `old` is in `new`, whose records may have more fields."""
    if isinstance(old, dict):
        return all(name in new and includes(new[name], value) for name, value in old.items())
    if isinstance(old, list):
        return len(new) == len(old) and all(map(includes, new, old))
    return bool(new == old)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_filled_store_of_each_version_is_upgraded(new_store_url: str, version: str) -> None:
    """Nothing that was in it is lost or changed, and everything that waited is loaded."""
    file = FOLDER / f"{version}.{make_url(new_store_url).get_backend_name()}.sql"
    restore(new_store_url, file.read_text())
    with closing(open_store(new_store_url, upgrade=True)) as store:
        assert version_of(store) == str(schema.newest())
        assert differences(store) == []
        assert includes(contents(store), json.loads(file.with_suffix(".json").read_text()))
        store.register(app)
        assert store.log.event(append(store, keyed_event())).payload == keyed_event().payload
        store.maintain()
        ingest_events(store, 3, to=DESTINATIONS)
        until(lambda: loaded(store), 90)  # some of a store that was just made are due in a minute
        counts = [store.counts.of(path) for path in DESTINATIONS]
        assert [count.succeeded + count.discarded for count in counts] == [17, 16, 4]


def loaded(store: Store) -> bool:
    """Load everything that is due; returns whether nothing is pending any more."""
    for destination in DESTINATIONS:
        for lane in (Lane.LOAD, Lane.REPLAY):
            token = take_over(store, "a loader", lane, destination)
            while load := store.loads.claim(token, 100, 10):
                store.loads.record(load, LoadVerdict())
    return all(store.counts.of(destination).pending == 0 for destination in DESTINATIONS)


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_each_version_has_a_filled_store(database: str) -> None:
    """`python -m tests.support.filled_store` makes it."""
    assert {path.name for path in FOLDER.glob(f"*.{database}.sql")} == {
        f"{version}.{database}.sql" for version in VERSIONS
    }
    newest = (FOLDER / f"{schema.newest()}.{database}.sql").read_text()
    assert [name for name in metadata.tables if f"INTO {name} " not in rows_of(newest)] == []


def rows_of(script: str) -> str:
    """The INSERT statements of a dump, with plain names of tables."""
    lines = [line for line in script.splitlines() if line.startswith("INSERT")]
    plain = "\n".join(lines).replace('"', "").replace("public.", "")
    return plain.replace("events_0 ", "events ").replace("jobs_0 ", "jobs ").replace("(", " (")


def test_schema_of_next_minor_version_is_rejected_by_older_code(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says what to install and changes nothing; a running gateway is no longer ready."""
    with closing(open_store(store_url, upgrade=True)) as store:
        next_major = f"{schema.newest().major + 1}.0"
        set_version(store, next_major)
        says = rf"version {next_major} of the schema.*pip install --upgrade blacksmith-dagster"
        with pytest.raises(SchemaOutdated, match=says):
            store.ready()
        before = everything_in(store_url)
        for upgrade in (False, True):
            with pytest.raises(SchemaOutdated, match=says):
                open_store(store_url, upgrade=upgrade)
        monkeypatch.setenv("BLACKSMITH_STORE_URL", store_url)
        result = CliRunner().invoke(main, ["store", "upgrade"])
        assert result.exit_code == 1
        assert "pip install --upgrade blacksmith-dagster" in result.output
        assert everything_in(store_url) == before


@pytest.fixture
def next_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The schema with one version more, which adds columns and a function; yields its file."""
    folder = next_schema(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(schema, "FOLDER", folder)
        schema.newest.cache_clear()
        yield folder / "versions" / "next.py"
    schema.newest.cache_clear()


def test_an_upgrade_that_fails_changes_nothing(store_url: str, next_version: Path) -> None:
    script = next_version.read_text()
    before = everything_in(store_url)
    next_version.write_text(f'{script}\n    op.execute("SELECT no_such_column")\n')
    with pytest.raises((StoreError, Unavailable), match="no_such_column"):
        open_store(store_url, upgrade=True)
    assert everything_in(store_url) == before
    next_version.write_text(script)
    with closing(open_store(store_url, upgrade=True)) as store:
        assert version_of(store) == str(NEXT)


def test_an_upgrade_waits_for_a_transaction_and_nothing_waits_for_the_upgrade(
    postgres_url: str, next_version: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long transaction uses a table that changes. Events are stored meanwhile."""
    script = next_version.read_text()
    next_version.unlink()
    with closing(open_store(postgres_url, upgrade=True)) as store, ThreadPoolExecutor() as threads:
        store.register(app)
        next_version.write_text(script)
        schema.newest.cache_clear()
        monkeypatch.setattr(postgres, "_UPGRADE_PAUSE", 0.1)
        tried = threading.Semaphore(0)
        upgrade = schema.upgrade

        def counted(*arguments: Any) -> None:
            tried.release()
            upgrade(*arguments)

        monkeypatch.setattr(schema, "upgrade", counted)
        with psycopg.connect(postgres_url) as reader:
            reader.execute("SELECT count(*) FROM events")
            upgrading = threads.submit(open_store, postgres_url, upgrade=True)
            for _ in range(2):
                tried.acquire()
                ingest_events(store, 1)
            assert not upgrading.done()
        with closing(upgrading.result(30)) as upgraded:
            assert version_of(upgraded) == str(NEXT)
            assert len(upgraded.log.newest()) == 2
        monkeypatch.setattr(postgres, "_UPGRADE_ATTEMPTS", 0)
        with pytest.raises(Unavailable, match=r"Run `blacksmith store upgrade` again.*pg_stat_act"):
            open_store(postgres_url, upgrade=True)
