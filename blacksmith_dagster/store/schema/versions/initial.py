"""The only version of the schema before the first release: the tables of `tables.py`.

A change of the tables gives this version a new revision id. From the first release on, its tables must
stay as they are: write them here as they were then, and add a version for each change.
"""

import secrets
from datetime import UTC, datetime
from pathlib import Path

from alembic import op

from blacksmith_dagster.store.tables import counter, epochs, metadata

revision = "5d0c7e92b41f"
down_revision = None

_FUNCTIONS = Path(__file__).parents[1] / "functions"


def upgrade() -> None:
    """Create the tables, and PostgreSQL's functions and table partitions."""
    bind = op.get_bind()
    metadata.create_all(bind, checkfirst=False)
    if bind.dialect.name == "postgresql":
        # The driver's own cursor, which does not read '%' or ':' in a function as parameters.
        cursor = bind.connection.cursor()
        for function in sorted(_FUNCTIONS.glob("*.sql")):
            cursor.execute(function.read_text())
        # Room in each page for the update that closes a load.
        cursor.execute("ALTER TABLE loads SET (fillfactor = 80)")
        # Uses up the first number: last_value does not show whether a sequence was ever called.
        cursor.execute("SELECT nextval('event_seq')")
        cursor.execute("SELECT make_partitions()")
    began = {"first_seq": 0, "epoch": secrets.token_hex(4), "began_at": datetime.now(UTC)}
    op.bulk_insert(epochs, [began])
    op.bulk_insert(counter, [{"upto": 0}])
