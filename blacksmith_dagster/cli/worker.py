"""The command that loads realtime events, and listens, outside of Dagster's runs."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import click

from blacksmith_dagster.backends import Backends
from blacksmith_dagster.cli.common import app_option
from blacksmith_dagster.composition import Loop, build_listeners, build_realtime, running
from blacksmith_dagster.errors import UsageError
from blacksmith_dagster.importer import load_application
from blacksmith_dagster.ingest.listeners import listened_events
from blacksmith_dagster.ingest.subscription import broker_of
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.destination import Destination
from blacksmith_dagster.pipeline.source import Source
from blacksmith_dagster.pipeline.triggers import Subscription
from blacksmith_dagster.scheduler import realtime_events
from blacksmith_dagster.settings import Settings
from blacksmith_dagster.signals import on_stop
from blacksmith_dagster.supervisor import here

if TYPE_CHECKING:
    from blacksmith_dagster.orchestration.loads import RunlessReporter

_LOOK = 1.0


@click.command()
@app_option
@click.argument("names", nargs=-1, metavar="[NAME]...")
def worker(app: str | None, names: tuple[str, ...]) -> None:
    """Load realtime events at once, and listen for messages and changes, until Ctrl-C or SIGTERM.

    NAME is a destination with realtime events, or a source with subscriptions or CDC; without a name
    it serves all of both.

    It does what the warm runs do, outside of Dagster's runs. With DAGSTER_HOME it reports the
    materializations of what it loads there. Where another worker or a run serves, it stands by. It
    ends with an error when a load ran past its time-out: let a service manager start it again.
    """
    application, stop = load_application(app), threading.Event()
    destinations, sources = _chosen(application, names)
    with on_stop(stop.set), Backends(Settings.read()) as backends, ExitStack() as opened:
        listened = [event for source in sources for event in listened_events(source)]
        for event in listened:
            if isinstance(event.trigger, Subscription):
                broker_of(event, backends.pubsub)  # a missing broker is reported before it begins
        reporter = _reporter(application) if destinations else None
        if reporter:
            opened.enter_context(closing(reporter))
        loops: list[Loop] = [
            build_realtime(
                application,
                destination,
                backends,
                holder=here(),
                report=reporter.add if reporter else lambda *_: None,
            )
            for destination in destinations
        ]
        loops += [
            build_listeners(application, source, backends, holder=here()) for source in sources
        ]
        backends.store.register(application)
        served = [destination.name for destination in destinations]
        served += [source.name for source in sources]
        opened.enter_context(running(loops, backends, served))
        paths = [event.path for each in destinations for event in realtime_events(each)]
        paths += [event.path for event in listened]
        reported = ""
        if destinations:
            reported = ", reported to" if reporter else ", not reported, as there is no"
            reported += " DAGSTER_HOME"
        click.echo(f"blacksmith worker: {', '.join(paths)}, {backends.label}{reported}")
        failure = None
        while failure is None and not stop.wait(_LOOK):
            if reporter:
                reporter.report_if_due()
            failure = next((loop.failure for loop in loops if loop.failure), None)
    if failure is not None:
        raise failure


def _chosen(
    app: Blacksmith, names: Sequence[str]
) -> tuple[Sequence[Destination[Any]], Sequence[Source]]:
    """The destinations with realtime events and the sources that are listened for of these names, all
    if there are none."""
    realtime = {name: each for name, each in app.destinations.items() if realtime_events(each)}
    listened = {name: each for name, each in app.sources.items() if listened_events(each)}
    known = realtime | listened
    for name in names:
        if name not in known:
            raise UsageError(
                f"{name!r} is no destination with realtime events, nor a source with subscriptions or "
                f"CDC; this application has {', '.join(known) or 'none'}"
            )
    if not known:
        raise UsageError(
            "no destination event is realtime, and no source event a subscription or CDC; give a "
            "destination, or one of its events, schedule=Schedule(realtime=True)"
        )
    chosen = dict.fromkeys(names or known)
    return (
        [realtime[name] for name in chosen if name in realtime],
        [listened[name] for name in chosen if name in listened],
    )


def _reporter(app: Blacksmith) -> RunlessReporter | None:
    """What reports to Dagster, which is imported only when needed."""
    if not os.environ.get("DAGSTER_HOME"):
        return None
    from blacksmith_dagster.orchestration.loads import RunlessReporter

    return RunlessReporter(app)
