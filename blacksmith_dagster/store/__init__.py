"""The store: the log of events and jobs, on PostgreSQL or SQLite. `open_store` opens one by its URL."""

from __future__ import annotations

from importlib.util import find_spec
from urllib.parse import parse_qs

from sqlalchemy.engine import URL

from blacksmith_dagster.errors import SettingsError
from blacksmith_dagster.settings import parse_url
from blacksmith_dagster.store.database import Database
from blacksmith_dagster.store.store import Store

__all__ = ["Store", "open_store", "read_url"]


def open_store(url: str, *, upgrade: bool = False, repair: bool = False) -> Store:
    """The store at `url`: `sqlite:////absolute/path` or `postgresql://...`.

    A SQLite file and its tables are created if they don't exist. PostgreSQL's tables are only checked,
    unless `upgrade`: then they are created or upgraded to this package's version. Several processes may
    do so at once. A restored or promoted store is rejected, unless `repair` (see `Store.repair`).

    Raises `SettingsError` for another URL, `SchemaOutdated`, `SequenceWentBack`, `Unavailable`, and
    `ImportError` when PostgreSQL's driver is not installed.
    """
    store = Store(_open_database(read_url(url), upgrade))
    try:
        if repair:
            store.repair()
        store.ready()
    except BaseException:
        store.close()
        raise
    return store


def read_url(url: str) -> URL:
    """Parse a store's URL. Raises `SettingsError`, whose message never shows the password."""
    parsed = parse_url(
        url,
        "the store's URL",
        "Write sqlite:////path/store.db or postgresql://user:password@host:5432/database, and "
        "percent-encode special characters in the password (@ as %40, : as %3A, / as %2F)",
    )
    if len(parsed.hosts) > 1:
        raise SettingsError(
            "the store's URL names several hosts; name them as options, ?host=one:5432&host=two:5432"
        )
    host, port = parsed.hosts[0] if parsed.hosts else (None, None)
    options = parse_qs(parsed.query)
    return URL.create(
        parsed.scheme,
        parsed.username,
        parsed.password,
        host,
        port,
        parsed.path[1:] or None,
        {name: values if len(values) > 1 else values[0] for name, values in options.items()},
    )


def _open_database(url: URL, upgrade: bool) -> Database:
    backend = url.get_backend_name()
    if backend == "sqlite":
        from blacksmith_dagster.store.sqlite import SQLiteDatabase

        return SQLiteDatabase(url)
    if backend in ("postgresql", "postgres"):
        if find_spec("psycopg") is None:
            raise ImportError(
                "PostgreSQL needs its driver; run `pip install 'blacksmith-dagster[postgres]'`"
            )
        from blacksmith_dagster.store.postgres import PostgresDatabase

        return PostgresDatabase(url, upgrade=upgrade)
    raise SettingsError(
        f"unsupported store {url.drivername!r}: use sqlite:////path or postgresql://..."
    )
