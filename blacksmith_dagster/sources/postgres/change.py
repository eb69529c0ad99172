"""What comes out of a PostgreSQL database: changes of rows, and notifications."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal, TypeAlias

import msgspec

Operation: TypeAlias = Literal[
    "insert", "update", "delete", "truncate", "snapshot", "snapshot_completed"
]


class Change(msgspec.Struct, frozen=True):
    """A row that was changed, as its transaction left it; or one as a snapshot found it.

    - `operation`: 'insert', 'update', 'delete', 'truncate' (all of the table's rows), 'snapshot' (a
      row that was there when listening began), 'snapshot_completed' (all of the table's rows have
      come).
    - `schema`, `table`: which table, as it was called then.
    - `lsn`: where in the database's log the transaction was committed, or the snapshot was taken, as
      PostgreSQL writes it: '0/16B3748'.
    - `position`: the change's place in its transaction, 1 for the first; 0 in a snapshot.
    - `committed_at`: when that was, by the database's clock.
    - `xid`: the transaction's number; `None` in a snapshot.
    - `new`: the row by columns; `None` for 'delete' and 'truncate'. A long value that an update has
      not touched is not sent, and its column is missing here.
    - `old`: what the row was before: by default `None` for an update that left the key as it was,
      else the columns of the key; all columns if the table has REPLICA IDENTITY FULL.

    >>> from datetime import UTC
    >>> change = Change("insert", "public", "customers", "0/16B3748", 1, datetime.now(UTC))
    >>> change.order
    '00000000016B3748-00000001'
    """

    operation: Operation
    schema: str
    table: str
    lsn: str
    position: int
    committed_at: datetime
    xid: int | None = None
    new: dict[str, Any] | None = None
    old: dict[str, Any] | None = None

    @property
    def order(self) -> str:
        """Where the change lies among all of its database: a later one's is greater, as text.

        Kept beside a row, as a destination's `newest`, it decides between two changes of it.
        """
        return f"{parse_lsn(self.lsn):016X}-{self.position:08d}"


class Notification(msgspec.Struct, frozen=True):
    """A NOTIFY that was heard. `pid`: the number of the server's process that sent it.

    >>> Notification("alerts", '{"disk": "full"}', 4711).channel
    'alerts'
    """

    channel: str
    payload: str
    pid: int


def parse_lsn(lsn: str) -> int:
    """A place in the log as a number.

    >>> parse_lsn("1/A")
    4294967306
    """
    high, _, low = lsn.partition("/")
    return int(high, 16) << 32 | int(low, 16)


def format_lsn(number: int) -> str:
    """A place in the log as PostgreSQL writes it.

    >>> format_lsn(4294967306)
    '1/A'
    """
    return f"{number >> 32:X}/{number & 0xFFFFFFFF:X}"
