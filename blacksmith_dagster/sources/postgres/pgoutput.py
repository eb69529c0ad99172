"""Decodes the messages of PostgreSQL's plugin `pgoutput`, protocol version 1. No I/O.

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
    """The start of a transaction's changes. `lsn` is the place of its commit in the log."""

    lsn: int
    committed_at: datetime
    xid: int


class Commit(msgspec.Struct, frozen=True):
    """The end of a transaction's changes. `end` is the place in the log after its commit."""

    end: int


class Relation(msgspec.Struct, frozen=True):
    """A table as it was at the time of a change. `key`: the columns that identify an old row."""

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

    def decode(self, message: bytes, start: int = 0) -> Begin | Commit | Sequence[RowChange]:
        """Decode the message that begins at the index `start`; `()` if it describes a table or a type.

        Raises `ValueError` for a message that protocol version 1 does not have.
        """
        tag = message[start]
        operation = _OPERATIONS.get(tag)
        if operation is not None:
            return (self._row(operation, message, start + 1),)
        match chr(tag):
            case "B":
                lsn, microseconds, xid = _BEGIN.unpack_from(message, start + 1)
                return Begin(lsn, _EPOCH + timedelta(microseconds=microseconds), xid)
            case "C":
                return Commit(_COMMIT.unpack_from(message, start + 1)[2])
            case "T":
                return self._truncation(message, start + 1)
            case "R":
                self._describe_table(message, start + 1)
            case "Y":
                self._describe_type(message, start + 1)
            case "O" | "M":
                pass
            case other:
                raise ValueError(
                    f"pgoutput sent a message {other!r}, which version 1 does not have"
                )
        return ()

    def _row(self, operation: Operation, message: bytes, index: int) -> RowChange:
        relation = self._relations[_OID(message, index)[0]]
        tag, index = message[index + 4], index + 5
        new = old = None
        if tag != _NEW:
            old, index = _values(relation.columns, message, index)
            if tag == _KEY:  # the other columns are sent as NULL
                old = {name: old[name] for name in old if name in relation.key}
            tag, index = (message[index], index + 1) if operation == "update" else (tag, index)
        if tag == _NEW:
            new, _ = _values(relation.columns, message, index)
        return RowChange(operation, relation, new, old)

    def _truncation(self, message: bytes, index: int) -> Sequence[RowChange]:
        (number,) = _INT32(message, index)
        oids = [_OID(message, index + 5 + 4 * table)[0] for table in range(number)]
        return [RowChange("truncate", self._relations[oid]) for oid in oids]

    def _describe_table(self, message: bytes, index: int) -> None:
        (oid,) = _OID(message, index)
        schema, index = _string(message, index + 4)
        table, index = _string(message, index)
        (number,) = _INT16(message, index + 1)  # after the replica identity
        index += 3
        columns, key = [], set()
        for _ in range(number):
            flags = message[index]
            name, index = _string(message, index + 1)
            (type_,) = _OID(message, index)
            index += 8
            columns.append((name, self._bases.get(type_) or convert_of(type_)))
            if flags & _PART_OF_KEY:
                key.add(name)
        self._relations[oid] = Relation(schema or "pg_catalog", table, columns, frozenset(key))

    def _describe_type(self, message: bytes, index: int) -> None:
        """Keep how to convert a type that is not built in; a domain has the name of its base type."""
        (oid,) = _OID(message, index)
        schema, index = _string(message, index + 4)
        name, _ = _string(message, index)
        # An empty schema stands for pg_catalog.
        self._bases[oid] = convert_text if schema else convert_of(name)


def _values(
    columns: Sequence[tuple[str, Convert]], message: bytes, index: int
) -> tuple[dict[str, Any], int]:
    """The values of a row without its unchanged TOAST values, and the index after it."""
    index += 2  # the number of columns
    values: dict[str, Any] = {}
    for name, convert in columns:
        tag = message[index]
        if tag == _TEXT:
            start = index + 5
            index = start + _INT32(message, index + 1)[0]
            values[name] = convert(message[start:index])
        elif tag == _NULL:
            values[name] = None
            index += 1
        elif tag == _UNCHANGED:
            index += 1
        else:
            raise ValueError(
                f"pgoutput sent a value in the format {chr(tag)!r}; only text was requested"
            )
    return values, index


def _string(message: bytes, start: int) -> tuple[str, int]:
    end = message.index(0, start)
    return convert_text(message[start:end]), end + 1
