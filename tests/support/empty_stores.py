"""Empty stores to copy: creating the tables costs a test more than the rest of its setup."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blacksmith_dagster.store import open_store
from tests.support.services.postgres import Postgres


def make_sqlite_template(folder: Path) -> Path:
    """The file of an empty store."""
    path = folder / "store.db"
    open_store(f"sqlite:///{path}").close()
    return path


def copy_sqlite(template: Path, folder: Path) -> str:
    """Copy an empty store into `folder`; returns its URL."""
    path = folder / "store.db"
    shutil.copyfile(template, path)
    return f"sqlite:///{path}"


@contextmanager
def postgres_template(postgres: Postgres) -> Iterator[str]:
    """The URL of an empty store, to be given to `Postgres.create_database`."""
    url = postgres.create_database()
    open_store(url, upgrade=True).close()
    yield url
    postgres.drop_database(url)
