"""What the commands print: aligned tables for people, JSON for scripts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import click
import msgspec

_COLOURS = {
    "succeeded": "green",
    "executing": "cyan",
    "failed": "yellow",
    "retrying": "yellow",
    "unknown": "yellow",
    "discarded": "red",
    "passing": "green",
    "critical": "red",
    "succeeded(up)": "green",
    "executing(up)": "cyan",
    "executing(down)": "cyan",
    "failed(up)": "red",
    "failed(down)": "red",
    "interrupted": "red",
}


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """The rows under their head, columns aligned: numbers to the right, the rest to the left.

    A state's cell bears its colour; `click.echo` drops colours where there is no terminal.

    >>> print(click.unstyle(table(["state", "jobs"], [["awaiting", 7], ["due", 12]])))
    state     jobs
    awaiting     7
    due         12
    """
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    right = [all(isinstance(row[i], int) for row in rows) for i in range(len(head))] if rows else []
    lines = [click.style(_line(head, widths, right), bold=True)]
    lines += [_line(row, widths, right, colour=True) for row in cells]
    return "\n".join(lines)


def as_json(value: Any) -> str:
    """The value as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def utc_text(at: datetime | None) -> str:
    """A time in UTC, to the second.

    >>> utc_text(datetime(2026, 1, 31, 12, tzinfo=UTC))
    '2026-01-31 12:00:00'
    """
    return "" if at is None else at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def age(at: datetime | None, now: datetime) -> str:
    """How long ago `at` was, in its two largest units, or how soon it will be.

    >>> age(datetime(2026, 1, 31, 12, tzinfo=UTC), datetime(2026, 1, 31, 13, 2, 5, tzinfo=UTC))
    '1h 2m'
    """
    if at is None:
        return ""
    if at > now:
        return f"due in {age(now, at)}"
    left = int((now - at).total_seconds())
    parts: list[str] = []
    for unit, seconds in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, seconds)
        if count or (unit == "s" and not parts):
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2])


def _cell(value: object) -> str:
    if isinstance(value, datetime):
        return utc_text(value)
    return "" if value is None else " ".join(str(value).split())


def _line(
    cells: Sequence[str], widths: Sequence[int], right: Sequence[bool], *, colour: bool = False
) -> str:
    shown = []
    for i, (text, width) in enumerate(zip(cells, widths, strict=True)):
        padded = text.rjust(width) if right and right[i] else text.ljust(width)
        shown.append(
            click.style(padded, fg=_COLOURS[text]) if colour and text in _COLOURS else padded
        )
    return "  ".join(shown).rstrip()
