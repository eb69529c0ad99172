"""What the commands share: their options, what they open, and how they print."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import click
import msgspec
from click.core import ParameterSource
from tabulate import tabulate

from blacksmith_dagster.backends import Backends
from blacksmith_dagster.errors import UsageError
from blacksmith_dagster.importer import load_application
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.destination import AnyDestinationEvent
from blacksmith_dagster.settings import Settings


def _app_option(**attributes: Any) -> Callable[[Any], Any]:
    return click.option(
        "--app",
        metavar="MODULE:NAME",
        help="The application. Default: the one that pyproject.toml names in [tool.blacksmith].",
        **attributes,
    )


app_option = _app_option(callback=lambda _context, _option, name: load_application(name))
app_name_option = _app_option()
json_option: Callable[[Any], Any] = click.option(
    "--json", "json", is_flag=True, help="Print JSON, for scripts."
)
limit_option: Callable[[Any], Any] = click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="Show at most this many.",
)

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


@contextmanager
def opened(app: Blacksmith | None = None) -> Iterator[Backends]:
    """The backends that this process's settings name; prints the store's name on standard error.

    Registers the application in the store, if there is one.
    """
    with Backends(Settings.read()) as backends:
        click.echo(f"store: {backends.store.label}", err=True)
        if app is not None:
            backends.store.register(app)
        yield backends


def event_of(application: Blacksmith, path: str) -> AnyDestinationEvent:
    """The destination event at `path`. Raises `UsageError` if there is none."""
    event = application.destination_events.get(path)
    if event is None:
        raise UsageError(
            f"the application has no destination event {path}; it has "
            f"{', '.join(application.destination_events) or 'none'}"
        )
    return event


def refuse_options(*names: str) -> None:
    """Raise `UsageError` if options were given that the application's own gateway ignores."""
    context = click.get_current_context()
    options = [
        option.opts[0]
        for option in context.command.params
        if option.name in names
        and context.get_parameter_source(option.name) is not ParameterSource.DEFAULT
    ]
    if options:
        raise UsageError(
            f"the application brings its own gateway, which {', '.join(options)} would not reach; "
            "leave it out, or set it where the gateway is created: Blacksmith(gateway=...)"
        )


def show(value: object, *, json: bool, text: str) -> None:
    """Print the value as indented JSON, or else the text that says the same."""
    if json:
        text = msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
    click.echo(text)


def table(head: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """The rows under a header, at any width: numbers right-aligned, other columns left-aligned.

    A state's cell has a colour; `click.echo` drops colours where there is no terminal.

    >>> print(click.unstyle(table(["state", "jobs"], [["awaiting", 7], ["due", 12]])))
    state       jobs
    awaiting       7
    due           12
    """
    cells = [list(row) for row in rows]
    aligned = [
        "right" if all(isinstance(value, int) for value in column) else "left"
        for column in zip(*cells, strict=True)
    ]
    return tabulate(
        [[_cell(value) for value in row] for row in cells],
        [click.style(name, bold=True) for name in head],
        "plain",
        disable_numparse=True,  # a version or an id is not a number
        colalign=aligned or None,
    )


def utc_time(text: str) -> datetime:
    """A day, or a time with its zone (without one, in UTC)."""
    try:
        value = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(f"{text!r}: write 2026-01-31 or 2026-01-31T12:00Z") from None
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def utc_text(time: datetime | None) -> str:
    """A time in UTC, to the second.

    >>> utc_text(datetime(2026, 1, 31, 12, tzinfo=UTC))
    '2026-01-31 12:00:00'
    """
    return "" if time is None else time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def age(time: datetime | None, now: datetime) -> str:
    """How long ago `time` was, in its two largest units, or how soon it will be.

    >>> age(datetime(2026, 1, 31, 12, tzinfo=UTC), datetime(2026, 1, 31, 13, 2, 5, tzinfo=UTC))
    '1h 2m'
    """
    if time is None:
        return ""
    if time > now:
        return f"due in {age(now, time)}"
    left = int((now - time).total_seconds())
    parts: list[str] = []
    for unit, seconds in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, seconds)
        if count or (unit == "s" and not parts):
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2])


def _cell(value: object) -> str:
    if value is None or isinstance(value, datetime):
        return utc_text(value)
    text = " ".join(str(value).split())
    return click.style(text, fg=_COLOURS[text]) if text in _COLOURS else text
