"""A pretend next version of the package, whose schema has two columns more and a function more."""

import shutil
from pathlib import Path

from blacksmith_dagster.store import schema
from tests.support.processes.blacksmith import ROOT_FOLDER

NEXT = schema.newest()._replace(minor=schema.newest().minor + 1)
ORIGIN = "the next version"  # what its gateway writes to the column `origin` of an event

_VERSION = f"""
import sqlalchemy as sa
from alembic import op

revision = "{NEXT}"
down_revision = "{schema.newest()}"


def upgrade():
    op.add_column("events", sa.Column("origin", sa.Text))
    op.add_column("loads", sa.Column("weight", sa.Integer, nullable=False, server_default="1"))
    if op.get_bind().dialect.name == "postgresql":
        op.execute('''
            CREATE FUNCTION ingest_from(text, int[], text[], text[], text[], text[], timestamptz[],
                bigint[], int[], int[], text[], timestamptz) RETURNS bigint[] LANGUAGE plpgsql AS $$
            DECLARE
                made bigint[] := ingest($2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12);
            BEGIN
                UPDATE events SET origin = $1 WHERE seq = ANY (made);
                RETURN made;
            END $$''')
"""
# What its code does otherwise, by file.
_CHANGES = {
    "tables.py": """
events.append_column(Column("origin", Text))
loads.append_column(Column("weight", Integer, nullable=False, server_default="1"))
""",
    "postgres.py": f"""
_INGEST = _INGEST.replace("ingest(", "ingest_from('{ORIGIN}', ")
""",
    "sqlite.py": f"""
_EVENT = _EVENT.replace("parent)", "parent, origin)").replace("?)", "?, '{ORIGIN}')")
""",
}


def next_schema(folder: Path) -> Path:
    """A copy of the schema's folder in `folder`, with one version more; returns its path."""
    copy = Path(shutil.copytree(schema.FOLDER, folder / "schema"))
    (copy / "versions" / "next.py").write_text(_VERSION)
    return copy


def next_package(folder: Path) -> Path:
    """The next version of the package, in `folder`, beside today's tests; returns the folder."""
    package = folder / "blacksmith_dagster"
    shutil.copytree(ROOT_FOLDER / "blacksmith_dagster", package)
    (package / "store/schema/versions/next.py").write_text(_VERSION)
    for name, change in _CHANGES.items():
        with (package / "store" / name).open("a") as file:
            file.write(change)
    (folder / "tests").symlink_to(ROOT_FOLDER / "tests")
    return folder
