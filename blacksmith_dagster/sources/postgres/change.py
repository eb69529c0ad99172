"""The data of a PostgreSQL source's events: changes of rows, and notifications."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal, TypeAlias

import msgspec

Operation: TypeAlias = Literal[
    "insert", "update", "delete", "truncate", "snapshot", "snapshot_completed"
]


class Change(msgspec.Struct, frozen=True):
    """A change of one row, or a row of a snapshot.

    - `operation`: 'insert', 'update', 'delete', 'truncate' (all rows of the table), 'snapshot' (a row
      that existed when listening began), 'snapshot_completed' (the table's last row has been sent).
    - `schema`, `table`: the table, by its name at the time of the change.
    - `lsn`: the place in the database's log at which the transaction was committed, or of the
      snapshot, as PostgreSQL writes it: '0/16B3748'.
    - `position`: the change's number in its transaction, 1 for the first; 0 in a snapshot.
    - `committed_at`: when the transaction was committed, by the database's clock; in a snapshot, when
      that was read.
    - `xid`: the transaction's number; `None` in a snapshot.
    - `new`: the row by column; `None` for 'delete' and 'truncate'. The server does not send a long
      value that an update left unchanged: its column is missing here.
    - `old`: the row before the change. By default only the columns of the key, and `None` for an
      update that left the key unchanged; all columns if the table has REPLICA IDENTITY FULL.

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
        """Text that sorts the changes of a database: a later change has the greater text.

        Stored with a row, as a destination's `sequence_by`, it tells which of two changes is the later.
        """
        return f"{parse_lsn(self.lsn):016X}-{self.position:08d}"


class Notification(msgspec.Struct, frozen=True):
    """A received NOTIFY. `pid` is the server process that sent it.

    >>> Notification("alerts", '{"disk": "full"}', 4711).channel
    'alerts'
    """

    channel: str
    payload: str
    pid: int


def parse_lsn(lsn: str) -> int:
    """A place in the database's log as a number.

    >>> parse_lsn("1/A")
    4294967306
    """
    high, _, low = lsn.partition("/")
    return int(high, 16) << 32 | int(low, 16)


def format_lsn(number: int) -> str:
    """A place in the database's log as PostgreSQL writes it.

    >>> format_lsn(4294967306)
    '1/A'
    """
    return f"{number >> 32:X}/{number & 0xFFFFFFFF:X}"
