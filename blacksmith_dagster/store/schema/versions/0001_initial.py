"""The first version of the schema: one SQL script per database."""

import secrets
from datetime import UTC, datetime
from pathlib import Path

from alembic import op
from sqlalchemy import column, table, text

from blacksmith_dagster.store.tables import Instant

revision = "0001_initial"
down_revision = None


def upgrade() -> None:
    """Create the tables."""
    dialect = op.get_bind().dialect.name
    script = Path(__file__).with_suffix(f".{dialect}.sql").read_text()
    # The driver's own cursor, which does not read '%' or ':' in the script as parameters.
    cursor = op.get_bind().connection.cursor()
    for statement in _statements(script):
        cursor.execute(statement)
    epochs = table("epochs", column("first_seq"), column("epoch"), column("began_at", Instant()))
    began = {"first_seq": 0, "epoch": secrets.token_hex(4), "began_at": datetime.now(UTC)}
    op.bulk_insert(epochs, [began])
    op.execute(text("INSERT INTO counter VALUES (0)"))


def _statements(script: str) -> list[str]:
    """The statements of a script: each ends with ';' at the end of a line, outside function bodies."""
    statements, lines, inside = [], [], False
    for line in script.splitlines():
        lines.append(line)
        inside ^= line.count("$$") % 2 == 1
        if line.endswith(";") and not inside:
            statements.append("\n".join(lines))
            lines = []
    return statements
