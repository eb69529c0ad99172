"""From jobs to the rows of a table. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import msgspec

from blacksmith_dagster.pipeline.event import Job
from blacksmith_dagster.pipeline.model import to_builtins

_NATIVE_TYPES = (bytes, datetime, date, time, Decimal)


class TableRow(msgspec.Struct, frozen=True):
    """A job and the values of its row, by column."""

    job: Job[Any]
    values: Mapping[str, Any]


def fit_rows(
    jobs: Iterable[Job[Any]], columns: Set[str], table: str, needed: Sequence[str]
) -> tuple[list[TableRow], list[tuple[Job[Any], str]]]:
    """Rows for the jobs whose data fits a table with these columns, and the other jobs with the reason.

    `needed` are the columns that must have a value: those of the key, and `sequence_by`.
    """
    rows: list[TableRow] = []
    invalid: list[tuple[Job[Any], str]] = []
    for job in jobs:
        try:
            rows.append(TableRow(job, _values(job.data, columns, table, needed)))
        except ValueError as error:
            invalid.append((job, str(error)))
    return rows, invalid


def _values(data: Any, columns: Set[str], table: str, needed: Sequence[str]) -> Mapping[str, Any]:
    try:
        values = to_builtins(data, _NATIVE_TYPES)
    except (TypeError, ValueError) as error:
        raise ValueError(f"its data cannot be written: {error}") from error
    if not isinstance(values, dict) or not values:
        raise ValueError(
            f"its data is {_kind_of(values)}, not an object with fields; give the flow a transform "
            "that makes one"
        )
    if not values.keys() <= columns:
        names = sorted(map(repr, values.keys() - columns))
        unknown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise ValueError(
            f"table {table!r} has no column {unknown}; add it to the table, or give the flow a "
            "transform that leaves it out"
        )
    for name in needed:
        value = values.get(name)
        if value is None or isinstance(value, (dict, list)):
            raise ValueError(
                f"its field {name!r} is {_kind_of(value)}, which identifies a row; give the flow a "
                "transform that fills it"
            )
    return values


def group_rows(rows: Sequence[TableRow], key: Sequence[str]) -> list[list[TableRow]]:
    """The rows in groups, one per statement, in the order to run them.

    The rows of a group have the same columns and different keys. Two rows with the same key are in two
    groups, in their order. So the result is the same as writing row by row.
    """
    seen: Counter[tuple[Any, ...]] = Counter()
    groups: dict[tuple[int, frozenset[str]], list[TableRow]] = {}
    for row in rows:
        earlier = 0
        if key:
            values = tuple([row.values[name] for name in key])
            earlier = seen[values]
            seen[values] = earlier + 1
        groups.setdefault((earlier, frozenset(row.values)), []).append(row)
    return [group for _, group in sorted(groups.items(), key=lambda item: item[0][0])]


def _kind_of(value: Any) -> str:
    if value is None:
        return "missing or null"
    if isinstance(value, dict):
        return "an object" if value else "empty"
    return "a list" if isinstance(value, list) else f"a {type(value).__name__}"
