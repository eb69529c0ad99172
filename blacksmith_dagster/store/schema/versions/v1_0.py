"""The schema of the first release. Frozen: a change of the tables is another version."""

import secrets
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy as sa
from alembic import op

from blacksmith_dagster.store.tables import Instant

revision = "1.0"
down_revision = None


def upgrade() -> None:
    """Create the tables, and PostgreSQL's functions and table partitions."""
    bind = op.get_bind()
    script = Path(__file__).with_name(f"v1_0.{bind.dialect.name}.sql").read_text()
    # The driver's own cursor, which does not read '%' or ':' in a function as parameters.
    cursor = bind.connection.cursor()
    if bind.dialect.name == "postgresql":
        cursor.execute(script)
    else:
        for statement in script.split(";\n"):  # the driver's executescript() would commit
            cursor.execute(statement)
    epochs = sa.table(
        "epochs", *map(sa.column, ("first_seq", "epoch")), sa.column("began_at", Instant)
    )
    epoch = {"first_seq": 0, "epoch": secrets.token_hex(4), "began_at": datetime.now(UTC)}
    op.bulk_insert(epochs, [epoch])
    op.execute("INSERT INTO counter (upto) VALUES (0)")
