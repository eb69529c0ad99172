"""The command that loads realtime events, and listens, outside of Dagster's runs."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import click

from blacksmith_dagster.cli.common import app_option, locks_of
from blacksmith_dagster.errors import SettingsError, UsageError
from blacksmith_dagster.ingest.listeners import Listeners, listened_events
from blacksmith_dagster.ingest.subscription import broker_of
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.destination import Destination
from blacksmith_dagster.pipeline.source import Source
from blacksmith_dagster.pipeline.triggers import Subscription
from blacksmith_dagster.pubsub import open_pubsub
from blacksmith_dagster.pubsub.notifier import Notifier, Notify
from blacksmith_dagster.scheduler import Realtime, realtime_events
from blacksmith_dagster.settings import Settings, load_application
from blacksmith_dagster.signals import on_stop
from blacksmith_dagster.store import open_store
from blacksmith_dagster.supervisor import SCHEDULER, here, registered, this_process

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
    application, settings = load_application(app), Settings.read()
    pubsub = open_pubsub(settings.pubsub_url, settings.store_url)
    destinations, sources = _chosen(application, names)
    if destinations and pubsub is None:
        raise SettingsError(
            "a worker that loads is notified through a broker: set BLACKSMITH_PUBSUB_URL to "
            "kafka://host:9092, nats://host:4222, amqp://host:5672 or postgres, or name the sources "
            "that it is to listen for alone"
        )
    listened = [event for source in sources for event in listened_events(source)]
    for event in listened:
        if isinstance(event.trigger, Subscription):
            broker_of(event, pubsub)  # raises what must be fixed before it begins
    stop = threading.Event()
    with ExitStack() as opened:
        opened.enter_context(on_stop(stop.set))
        store = opened.enter_context(closing(open_store(settings.store_url)))
        store.register(application)
        locks = opened.enter_context(locks_of(store))
        served = [each.name for each in destinations] + [each.name for each in sources]
        service = this_process(SCHEDULER, served)
        opened.enter_context(registered(locks, service))
        notify: Notify = lambda _: None  # noqa: E731
        if pubsub is not None:
            notify = opened.enter_context(closing(Notifier(application, pubsub))).notify
        reporter = _reporter(application) if destinations else None
        if reporter:
            opened.enter_context(closing(reporter))
        loops: list[Realtime | Listeners] = [
            Listeners(
                application,
                source,
                store=store,
                supervisor=locks,
                pubsub=pubsub,
                holder=here(),
                notify=notify,
            )
            for source in sources
        ]
        if pubsub is not None:
            loops += [
                Realtime(
                    application,
                    destination,
                    store=store,
                    supervisor=locks,
                    subscriber=pubsub.subscriber(destination.name),
                    holder=here(),
                    report=reporter.add if reporter else lambda *_: None,
                    notify=notify,
                )
                for destination in destinations
            ]
        for loop in loops:
            loop.start()
            opened.callback(loop.stop)
        paths = [event.path for each in destinations for event in realtime_events(each)]
        paths += [event.path for event in listened]
        said = [*paths, f"store {store.label}"]
        if pubsub is not None:
            said.append(f"notifications through {pubsub.label}")
        if destinations:
            reported = "reported to" if reporter else "not reported, as there is no"
            said.append(f"{reported} DAGSTER_HOME")
        click.echo(f"blacksmith worker: {', '.join(said)}")
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
