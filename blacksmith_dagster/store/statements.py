"""Helpers to build SQL statements: batches of values, INSERT ... ON CONFLICT, and queries as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection, Table, TextualSelect, bindparam, text
from sqlalchemy.dialects import postgresql, sqlite

T = TypeVar("T")


def batched(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Slices of `size` values, in order; the last may be shorter.

    Used because a statement accepts a limited number of values, and because short transactions let
    others write.

    >>> list(batched("abcde", 2))
    ['ab', 'cd', 'e']
    """
    return (values[start : start + size] for start in range(0, len(values), size))


def upsert(conn: Connection, table: Table) -> Any:
    """An INSERT that accepts an ON CONFLICT clause, for the connection's database."""
    return (postgresql.insert if conn.dialect.name == "postgresql" else sqlite.insert)(table)


def query(sql: str, *columns: Any, lists: Sequence[str] = ()) -> TextualSelect:
    """A SELECT written as text, whose rows have these columns. The parameters `lists` are sequences."""
    expanding: list[Any] = [bindparam(name, expanding=True) for name in lists]
    return text(sql).bindparams(*expanding).columns(*columns)
