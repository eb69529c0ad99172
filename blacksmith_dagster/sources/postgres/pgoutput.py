"""The messages of PostgreSQL's plugin `pgoutput`, protocol version 1: pure.

https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from struct import Struct
from typing import Any

import msgspec

from blacksmith_dagster.sources.postgres.change import Operation
from blacksmith_dagster.sources.postgres.values import Convert, convert_of, convert_text

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_BEGIN = Struct("!qqI")
_COMMIT = Struct("!Bqqq")
_INT32 = Struct("!i").unpack_from
_OID = Struct("!I").unpack_from
_OID_PAIR = Struct("!Ii").unpack_from
_INT16 = Struct("!h").unpack_from

_OPERATIONS: Mapping[int, Operation] = {ord("I"): "insert", ord("U"): "update", ord("D"): "delete"}
_NULL, _TEXT, _UNCHANGED = b"ntu"
_NEW, _KEY, _OLD = b"NKO"
_PART_OF_KEY = 1


class Begin(msgspec.Struct, frozen=True):
    """A transaction's changes follow. `lsn`: where its commit lies."""

    lsn: int
    committed_at: datetime
    xid: int


class Commit(msgspec.Struct, frozen=True):
    """A transaction's changes are complete. `end`: where what comes after it begins."""

    end: int


class Relation(msgspec.Struct, frozen=True):
    """A table as it was when it was changed. `key`: the columns that tell an old row."""

    schema: str
    table: str
    columns: Sequence[tuple[str, Convert]]
    key: frozenset[str]


class RowChange(msgspec.Struct, frozen=True):
    """A change of one row, or the truncation of a table."""

    operation: Operation
    relation: Relation
    new: dict[str, Any] | None = None
    old: dict[str, Any] | None = None


class PgoutputDecoder:
    """Decodes the messages of one stream, in order: tables are described before their rows."""

    def __init__(self) -> None:
        self._relations: dict[int, Relation] = {}
        self._bases: dict[int, Convert] = {}

    def decode(self, message: bytes, at: int = 0) -> Begin | Commit | Sequence[RowChange]:
        """What the message that begins at `at` says; nothing for a description.

        Raises `ValueError` for one that protocol version 1 does not have.
        """
        tag = message[at]
        operation = _OPERATIONS.get(tag)
        if operation is not None:
            return (self._row(operation, message, at + 1),)
        match chr(tag):
            case "B":
                lsn, microseconds, xid = _BEGIN.unpack_from(message, at + 1)
                return Begin(lsn, _EPOCH + timedelta(microseconds=microseconds), xid)
            case "C":
                return Commit(_COMMIT.unpack_from(message, at + 1)[2])
            case "T":
                return self._truncated(message, at + 1)
            case "R":
                self._describe(message, at + 1)
            case "Y":
                self._describe_type(message, at + 1)
            case "O" | "M":
                pass
            case other:
                raise ValueError(
                    f"pgoutput sent a message {other!r}, which version 1 does not have"
                )
        return ()

    def _row(self, operation: Operation, message: bytes, at: int) -> RowChange:
        relation = self._relations[_OID(message, at)[0]]
        kind, at = message[at + 4], at + 5
        new = old = None
        if kind != _NEW:
            old, at = _values(relation.columns, message, at)
            if kind == _KEY:  # the other columns are sent as NULL
                old = {name: old[name] for name in old if name in relation.key}
            kind, at = (message[at], at + 1) if operation == "update" else (kind, at)
        if kind == _NEW:
            new, _ = _values(relation.columns, message, at)
        return RowChange(operation, relation, new, old)

    def _truncated(self, message: bytes, at: int) -> Sequence[RowChange]:
        (number,) = _INT32(message, at)
        places = range(at + 5, at + 5 + 4 * number, 4)
        return [RowChange("truncate", self._relations[_OID(message, at)[0]]) for at in places]

    def _describe(self, message: bytes, at: int) -> None:
        (oid,) = _OID(message, at)
        schema, at = _string(message, at + 4)
        table, at = _string(message, at)
        (number,) = _INT16(message, at + 1)  # after the replica identity
        at += 3
        columns, key = [], set()
        for _ in range(number):
            flags = message[at]
            name, at = _string(message, at + 1)
            (type_,) = _OID(message, at)
            at += 8
            columns.append((name, self._bases.get(type_) or convert_of(type_)))
            if flags & _PART_OF_KEY:
                key.add(name)
        self._relations[oid] = Relation(schema or "pg_catalog", table, columns, frozenset(key))

    def _describe_type(self, message: bytes, at: int) -> None:
        """A type that is not built in; a domain is named as what it is made of."""
        (oid,) = _OID(message, at)
        schema, at = _string(message, at + 4)
        name, _ = _string(message, at)
        # The catalogue's own schema is sent as an empty one.
        self._bases[oid] = convert_text if schema else convert_of(name)


def _values(
    columns: Sequence[tuple[str, Convert]], message: bytes, at: int
) -> tuple[dict[str, Any], int]:
    """The values of a row, and where it ends. One that was stored apart and not changed is left out."""
    at += 2  # the number of columns
    values: dict[str, Any] = {}
    for name, convert in columns:
        kind = message[at]
        if kind == _TEXT:
            start = at + 5
            at = start + _INT32(message, at + 1)[0]
            values[name] = convert(message[start:at])
        elif kind == _NULL:
            values[name] = None
            at += 1
        elif kind == _UNCHANGED:
            at += 1
        else:
            raise ValueError(
                f"pgoutput sent a value of the kind {chr(kind)!r}; it was asked for text"
            )
    return values, at


def _string(message: bytes, at: int) -> tuple[str, int]:
    end = message.index(0, at)
    return convert_text(message[at:end]), end + 1
