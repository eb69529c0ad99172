"""The versions of the store's schema, by Alembic."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine

from blacksmith_dagster.errors import SchemaOutdated

# A name of its own: the database may be an application's, with an alembic_version of its own.
VERSION_TABLE = "blacksmith_version"


def upgrade(conn: Connection) -> None:
    """Bring the schema to this package's version. The caller sees to it that it runs once at a time."""
    with conn.begin():
        config = _config()
        config.attributes["connection"] = conn
        command.upgrade(config, "head")


def check_schema(engine: Engine, label: str) -> None:
    """Raise `SchemaOutdated` unless the schema is of this package's version."""
    script = ScriptDirectory.from_config(_config())
    wanted = script.get_current_head()
    with engine.connect() as conn:
        context = MigrationContext.configure(conn, opts={"version_table": VERSION_TABLE})
        found = context.get_current_revision()
    if found == wanted:
        return
    if found is not None and found not in {each.revision for each in script.walk_revisions()}:
        raise SchemaOutdated(
            f"the store {label} is of version {found}, which a newer blacksmith-dagster made; "
            "install that version or a later one"
        )
    raise SchemaOutdated(
        f"the store {label} is of version {found or 'none yet'}, this package needs {wanted}; "
        "run `blacksmith store upgrade`"
    )


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.set_main_option("path_separator", "os")
    return config
