"""Checks and upgrades the store's schema.

Its versions are Alembic revisions, in `versions/`, numbered `1.0`, `1.1`, `2.0`. While the first number
stays, a version only adds to the schema, and code of an earlier version works with it too: gateways and
loaders continue while the store is upgraded, and beside newer ones. Where the first number rises, older
code is rejected. The number in the store says all of that, to code that has never heard of it.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from blacksmith_dagster.errors import SchemaOutdated

# Not alembic_version: the database may belong to an application that has a table of that name.
VERSION_TABLE = "blacksmith_version"

FOLDER = Path(__file__).parent


class SchemaVersion(NamedTuple):
    """A version of the schema. Code works with its own, and with later ones of the same `major`.

    >>> print(SchemaVersion.parse("1.12"))
    1.12
    """

    major: int
    minor: int

    @classmethod
    def parse(cls, text: str) -> SchemaVersion | None:
        """The version that is written so; `None` if it is from before the first release."""
        match = re.fullmatch(r"(\d+)\.(\d+)", text)
        return cls(int(match[1]), int(match[2])) if match else None

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


def upgrade(conn: Connection, label: str) -> None:
    """Upgrade the schema to this package's version, unless the store has it or a later one that this
    package works with. All or nothing. The caller prevents concurrent upgrades.

    Raises `SchemaOutdated` for a store that this package cannot work with.
    """
    with conn.begin():
        if conn.dialect.name == "sqlite":
            conn.exec_driver_sql("BEGIN IMMEDIATE")  # its driver begins no transaction before DDL
        if is_behind(_current(conn), newest(), label):
            config = _config()
            config.attributes["connection"] = conn
            command.upgrade(config, "head")


def check_version(conn: Connection, label: str) -> None:
    """Raise `SchemaOutdated` unless this package works with the schema as it is."""
    current, needed = _current(conn), newest()
    if is_behind(current, needed, label):
        raise SchemaOutdated(
            f"the store {label} has version {current or 'none yet'} of the schema, this package needs "
            f"{needed}; run `blacksmith store upgrade`"
        )


@cache
def newest() -> SchemaVersion:
    """This package's version of the schema: of the package that runs, should another be installed over
    it meanwhile."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    version = SchemaVersion.parse(head or "")
    assert version is not None
    return version


def is_behind(current: str | None, needed: SchemaVersion, label: str) -> bool:
    """Whether a store of the version `current` must be upgraded before code that needs `needed` can use
    it. `None`: it is empty.

    Raises `SchemaOutdated` if no upgrade helps: the store is too new for the code, or from before the
    first release.
    """
    if current is None:
        return True
    version = SchemaVersion.parse(current)
    if version is None:
        raise SchemaOutdated(
            f"the store {label} has version {current} of the schema, which is from before "
            "blacksmith-dagster 0.1.0rc1 and cannot be upgraded; nothing in it was changed. Let the "
            "version that created it load what is pending (`blacksmith status` shows it), and start "
            "again with an empty store: set BLACKSMITH_STORE_URL to a new file, database or schema"
        )
    if version.major > needed.major:
        raise SchemaOutdated(
            f"the store {label} has version {version} of the schema, and this blacksmith-dagster works "
            f"with {needed.major}.x only; nothing in the store was changed. A newer blacksmith-dagster "
            "has upgraded it: install that one here too, `pip install --upgrade blacksmith-dagster`"
        )
    return version < needed


def _current(conn: Connection) -> str | None:
    context = MigrationContext.configure(conn, opts={"version_table": VERSION_TABLE})
    return context.get_current_revision()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(FOLDER))
    config.set_main_option("path_separator", "os")
    return config
