"""The PostgreSQL server of the tests behaves as other tests rely on."""

import psycopg
import pytest

from tests.support.services.postgres import Postgres, PostgresServer


def _count(url: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT count(*) FROM items").fetchone()
        assert row is not None
        return int(row[0])


def _insert_one(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS items (id int)")
        connection.execute("INSERT INTO items VALUES (1)")


def test_killed_server_keeps_what_was_committed(durable_postgres: PostgresServer) -> None:
    url = durable_postgres.create_database()
    _insert_one(url)
    with psycopg.connect(url) as connection:
        durable_postgres.kill()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    durable_postgres.start()
    assert _count(url) == 1
    durable_postgres.restart("immediate")
    assert _count(url) == 1


def test_a_database_is_new_or_a_copy(postgres: Postgres, postgres_url: str) -> None:
    _insert_one(postgres_url)
    copy = postgres.create_database(template=postgres_url)
    _insert_one(copy)
    assert (_count(postgres_url), _count(copy)) == (1, 2)
    postgres.drop_database(copy)
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(copy)
