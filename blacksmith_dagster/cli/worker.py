"""The command that loads realtime events outside of Dagster's runs."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import click

from blacksmith_dagster.cli.opening import app_option, locks_of
from blacksmith_dagster.errors import SettingsError, UsageError
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.destination import Destination
from blacksmith_dagster.pubsub import open_pubsub
from blacksmith_dagster.pubsub.announcer import Announcer
from blacksmith_dagster.scheduler import Realtime, realtime_events
from blacksmith_dagster.settings import Settings, load_application
from blacksmith_dagster.signals import on_stop
from blacksmith_dagster.store import open_store
from blacksmith_dagster.supervisor import SCHEDULER, here, registered, this_process

if TYPE_CHECKING:
    from blacksmith_dagster.orchestration.runless import RunlessReporter

_LOOK = 1.0


@click.command()
@app_option
@click.argument("destinations", nargs=-1, metavar="[DESTINATION]...")
def worker(app: str | None, destinations: tuple[str, ...]) -> None:
    """Load realtime events at once, until Ctrl-C or SIGTERM: all of them, or DESTINATION's.

    It does what the warm runs do, outside of Dagster's runs. With DAGSTER_HOME it reports the
    materializations there. Where another worker or a run loads, it stands by. It ends with an error
    when a load ran past its time-out: let a service manager start it again.
    """
    application, settings = load_application(app), Settings.read()
    pubsub = open_pubsub(settings.pubsub_url, settings.store_url)
    if pubsub is None:
        raise SettingsError(
            "a worker is woken through a broker: set BLACKSMITH_PUBSUB_URL to kafka://host:9092, "
            "nats://host:4222, amqp://host:5672 or postgres"
        )
    chosen = _chosen(application, destinations)
    stop = threading.Event()
    with ExitStack() as opened:
        opened.enter_context(on_stop(stop.set))
        store = opened.enter_context(closing(open_store(settings.store_url)))
        store.register(application)
        locks = opened.enter_context(locks_of(store))
        service = this_process(SCHEDULER, [each.name for each in chosen])
        opened.enter_context(registered(locks, service))
        announcer = opened.enter_context(closing(Announcer(application, pubsub)))
        reporter = _reporter(application)
        if reporter:
            opened.enter_context(closing(reporter))
        loops = []
        for destination in chosen:
            loop = Realtime(
                application,
                destination,
                store=store,
                supervisor=locks,
                subscriber=pubsub.subscriber(destination.name),
                owner=here(),
                report=reporter.add if reporter else lambda *_: None,
                announce=announcer.announce,
            )
            loop.start()
            opened.callback(loop.stop)
            loops.append(loop)
        paths = ", ".join(each.path for one in chosen for each in realtime_events(one))
        click.echo(
            f"blacksmith worker: {paths}, store {store.label}, wake-ups through {pubsub.label}, "
            f"{'reported to' if reporter else 'not reported, as there is no'} DAGSTER_HOME"
        )
        failure = None
        while failure is None and not stop.wait(_LOOK):
            if reporter:
                reporter.tell_if_due()
            failure = next((loop.failure for loop in loops if loop.failure), None)
    if failure is not None:
        raise failure


def _chosen(app: Blacksmith, names: Sequence[str]) -> list[Destination[Any]]:
    """The destinations of these names, all if there are none, that have realtime events."""
    realtime = {
        name: destination
        for name, destination in app.destinations.items()
        if realtime_events(destination)
    }
    for name in names:
        if name not in realtime:
            raise UsageError(
                f"{name!r} is no destination with realtime events; this application has "
                f"{', '.join(realtime) or 'none'}: see Schedule(realtime=True)"
            )
    if not realtime:
        raise UsageError(
            "no destination event is realtime; give one, or its destination, "
            "schedule=Schedule(realtime=True)"
        )
    return [realtime[name] for name in dict.fromkeys(names or realtime)]


def _reporter(app: Blacksmith) -> RunlessReporter | None:
    """Who tells Dagster, which is imported only if it is to be told."""
    if not os.environ.get("DAGSTER_HOME"):
        return None
    from blacksmith_dagster.orchestration.runless import RunlessReporter

    return RunlessReporter(app)
