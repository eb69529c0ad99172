"""What the commands open and look up, and the options that they share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import click

from blacksmith_dagster.errors import UsageError
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.destination import DestinationEvent
from blacksmith_dagster.settings import Settings
from blacksmith_dagster.store import Store, open_store
from blacksmith_dagster.supervisor import Supervisor, open_supervisor

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
def opened() -> Iterator[Store]:
    """The store of this process's settings, named on standard error; closed at the end."""
    with closing(open_store(Settings.read().store_url)) as store:
        click.echo(f"store: {store.label}", err=True)
        yield store


@contextmanager
def locks_of(store: Store) -> Iterator[Supervisor]:
    """The supervisor of this process's settings; closed at the end."""
    with closing(open_supervisor(Settings.read().supervisor_url, store)) as locks:
        yield locks


def event_of(application: Blacksmith, path: str) -> DestinationEvent[Any]:
    """The destination event at `path`. Raises `UsageError` if there is none."""
    event = application.destination_events.get(path)
    if event is None:
        raise UsageError(
            f"the application has no destination event {path}; it has "
            f"{', '.join(application.destination_events) or 'none'}"
        )
    return event
