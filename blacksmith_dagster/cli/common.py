"""What the commands open and look up, and the options that they share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from blacksmith_dagster.backends import Backends
from blacksmith_dagster.errors import UsageError
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.destination import DestinationEvent
from blacksmith_dagster.settings import Settings

app_option: Callable[[Any], Any] = click.option(
    "--app",
    metavar="MODULE:NAME",
    help="The application. By default the one that pyproject.toml names in [tool.blacksmith].",
)
json_option: Callable[[Any], Any] = click.option(
    "--json", "json", is_flag=True, help="Print JSON, for scripts."
)
limit_option: Callable[[Any], Any] = click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="How many to show at most.",
)


@contextmanager
def opened() -> Iterator[Backends]:
    """The backends of this process's settings; the store is named on standard error."""
    with Backends(Settings.read()) as backends:
        click.echo(f"store: {backends.store.label}", err=True)
        yield backends


def event_of(application: Blacksmith, path: str) -> DestinationEvent[Any]:
    """The destination event at `path`. Raises `UsageError` if there is none."""
    event = application.destination_events.get(path)
    if event is None:
        raise UsageError(
            f"the application has no destination event {path}; it has "
            f"{', '.join(application.destination_events) or 'none'}"
        )
    return event
