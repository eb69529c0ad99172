"""Checks and upgrades the store's schema. Its versions are Alembic revisions, in `versions/`."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine

from blacksmith_dagster.errors import SchemaOutdated

# Not alembic_version: the database may belong to an application that has a table of that name.
VERSION_TABLE = "blacksmith_version"


def upgrade(conn: Connection, label: str) -> None:
    """Upgrade the schema to this package's version. The caller prevents concurrent upgrades.

    Raises `SchemaOutdated` for a store with a version that this package does not know.
    """
    with conn.begin():
        config = _config()
        _check_known(_current(conn), ScriptDirectory.from_config(config), label)
        config.attributes["connection"] = conn
        command.upgrade(config, "head")


def check_schema(engine: Engine, label: str) -> None:
    """Raise `SchemaOutdated` unless the schema has this package's version."""
    script = ScriptDirectory.from_config(_config())
    head = script.get_current_head()
    with engine.connect() as conn:
        current = _current(conn)
    _check_known(current, script, label)
    if current != head:
        raise SchemaOutdated(
            f"the store {label} has version {current or 'none yet'}, this package needs {head}; "
            "run `blacksmith store upgrade`"
        )


def _current(conn: Connection) -> str | None:
    context = MigrationContext.configure(conn, opts={"version_table": VERSION_TABLE})
    return context.get_current_revision()


def _check_known(current: str | None, script: ScriptDirectory, label: str) -> None:
    if current is None or current in {version.revision for version in script.walk_revisions()}:
        return
    raise SchemaOutdated(
        f"the store {label} has version {current} of the schema, which this blacksmith-dagster does not "
        "know; nothing in it was changed. Open it with the version that created it, or a later one. A "
        "store older than 0.1.0 cannot be upgraded: let the version that created it load what is "
        "pending (`blacksmith status` shows it), and start again with an empty store: set "
        "BLACKSMITH_STORE_URL to a new file, database or schema"
    )


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.set_main_option("path_separator", "os")
    return config
