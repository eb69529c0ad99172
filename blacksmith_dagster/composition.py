"""Puts together what a process runs: the gateway, the scheduler, and the loops that load and listen."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Any, TypeAlias, cast

from blacksmith_dagster.backends import Backends
from blacksmith_dagster.errors import DeclarationError, SettingsError, UsageError
from blacksmith_dagster.gateway import Gateway
from blacksmith_dagster.ingest.listeners import Listeners, ReportReceived, listened_events
from blacksmith_dagster.ingest.subscription import broker_of
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.destination import AnyDestinationEvent, Destination
from blacksmith_dagster.pipeline.source import Source
from blacksmith_dagster.pipeline.triggers import Subscription
from blacksmith_dagster.scheduler import LoadReport, Realtime, StandardScheduler, realtime_events
from blacksmith_dagster.scheduler.realtime import ReportLoad
from blacksmith_dagster.supervisor import SCHEDULER, registered, this_process

_LONGEST_SILENCE = 60.0  # seconds; a report to Dagster's database may wait for it

Loop: TypeAlias = Realtime | Listeners
"""What loads the events of one destination, or listens for those of one source, until it is stopped."""


def gateway_of(app: Blacksmith) -> Gateway | None:
    """The application's own gateway, `None` if it has the standard one.

    Raises `DeclarationError` for an object that is not a gateway.
    """
    return cast("Gateway | None", _adapter(app.gateway, "gateway", "serve", "app, settings"))


def scheduler_of(app: Blacksmith) -> StandardScheduler | None:
    """The application's own scheduler, which has the standard one's `drain`; `None` if it has none.

    Raises `DeclarationError` for an object that is not a scheduler.
    """
    arguments = "app, event, *, store, token, lease, run, stop, report"
    return cast(
        "StandardScheduler | None", _adapter(app.scheduler, "scheduler", "drain", arguments)
    )


@contextmanager
def open_scheduler(app: Blacksmith) -> Iterator[StandardScheduler]:
    """The application's own scheduler; else the standard one, which is closed at the block's end."""
    own = scheduler_of(app)
    if own is not None:
        yield own
    else:
        with closing(StandardScheduler()) as standard:
            yield standard


def _adapter(adapter: object, name: str, method: str, arguments: str) -> object:
    if isinstance(adapter, type):
        raise DeclarationError(
            f"Blacksmith({name}={adapter.__name__}): it is a class; write "
            f"{name}={adapter.__name__}(...)"
        )
    if adapter is not None and not callable(getattr(adapter, method, None)):
        raise DeclarationError(
            f"Blacksmith({name}=...): {type(adapter).__name__} has no method {method}; write "
            f"{method}({arguments}), as blacksmith_dagster.{name}.Standard{name.title()} has it, or "
            f"leave {name}= out to use that one"
        )
    return adapter


def build_realtime(
    app: Blacksmith,
    destination: Destination[Any],
    scheduler: StandardScheduler,
    backends: Backends,
    *,
    holder: str,
    report: ReportLoad,
    run: str | None = None,
) -> Realtime:
    """The loop that loads a destination's realtime events; see `Realtime` for the parameters.

    Raises `SettingsError` if no broker is configured.
    """
    if backends.pubsub is None:
        raise SettingsError(
            "realtime events are loaded on notifications from a broker: set BLACKSMITH_PUBSUB_URL to "
            "kafka://host:9092, nats://host:4222, amqp://host:5672 or postgres; without a broker the "
            "schedules load them too, and a worker can only listen: name the sources it listens for"
        )
    notify = backends.notify(app)

    def report_and_notify(event: AnyDestinationEvent, done: LoadReport) -> None:
        notify(done.receivers)
        report(event, done)

    return Realtime(
        app,
        destination,
        scheduler,
        store=backends.store,
        supervisor=backends.supervisor,
        subscriber=backends.pubsub.subscriber(destination.name),
        holder=holder,
        run=run,
        report=report_and_notify,
    )


def build_listeners(
    app: Blacksmith,
    source: Source,
    backends: Backends,
    *,
    holder: str,
    report: ReportReceived = lambda *_: None,
) -> Listeners:
    """The loop that listens for a source's messages and changes; see `Listeners` for the parameters."""
    return Listeners(
        app,
        source,
        store=backends.store,
        supervisor=backends.supervisor,
        pubsub=backends.pubsub,
        holder=holder,
        notify=backends.notify(app),
        report=report,
    )


def select_served(
    app: Blacksmith, names: Sequence[str]
) -> tuple[Sequence[Destination[Any]], Sequence[Source]]:
    """The destinations with realtime events, and the sources to listen for, that have these names;
    all of them if there are no names.

    Raises `UsageError` for an unknown name, or if the application has nothing for a worker to do.
    """
    realtime = {
        name: destination
        for name, destination in app.destinations.items()
        if realtime_events(destination)
    }
    listened = {name: source for name, source in app.sources.items() if listened_events(source)}
    available = realtime | listened
    for name in names:
        if name not in available:
            raise UsageError(
                f"{name!r} is not a destination with realtime events, nor a source with subscriptions "
                f"or CDC; this application has {', '.join(available) or 'none'}"
            )
    if not available:
        raise UsageError(
            "no destination event is realtime, and no source event is a subscription or CDC; give a "
            "destination, or one of its events, schedule=Schedule(realtime=True)"
        )
    chosen = dict.fromkeys(names or available)
    return (
        [realtime[name] for name in chosen if name in realtime],
        [listened[name] for name in chosen if name in listened],
    )


def build_worker(
    app: Blacksmith,
    destinations: Sequence[Destination[Any]],
    sources: Sequence[Source],
    scheduler: StandardScheduler,
    backends: Backends,
    *,
    holder: str,
    report: ReportLoad,
) -> list[Loop]:
    """The loops of a worker for these destinations and sources. Registers the application.

    Raises `SettingsError` if a broker that they need is not configured.
    """
    for source in sources:
        for event in listened_events(source):
            if isinstance(event.trigger, Subscription):
                broker_of(event, backends.pubsub)
    loops: list[Loop] = [
        build_realtime(app, destination, scheduler, backends, holder=holder, report=report)
        for destination in destinations
    ]
    loops += [build_listeners(app, source, backends, holder=holder) for source in sources]
    backends.store.register(app)
    return loops


class WorkerWatch:
    """What the admin port of a worker says of its threads: those of the loops, and the main thread.

    The main thread calls `beat` at least once a minute until `stop` is set.
    """

    def __init__(self, loops: Sequence[Loop], backends: Backends, stop: threading.Event) -> None:
        self._loops = loops
        self._backends = backends
        self._stop = stop
        self._beat_at = time.monotonic()

    def beat(self) -> None:
        """Note that the main thread makes progress."""
        self._beat_at = time.monotonic()

    def problems(self) -> list[str]:
        """Why threads make no progress; a load past its time-out is such a reason."""
        problems = [problem for loop in self._loops for problem in loop.problems]
        silent = time.monotonic() - self._beat_at
        if silent > _LONGEST_SILENCE and not (problems or self._stop.is_set()):
            problems.append(f"the main thread has made no progress for {silent:.0f} s")
        return problems

    def check_ready(self) -> None:
        """Check that jobs can be claimed and locks acquired now.

        Raises `UsageError` once it was stopped, and what a service raises that does not respond.
        """
        if self._stop.is_set():
            raise UsageError("this worker is stopping")
        self._backends.store.ready()
        self._backends.supervisor.ready()


@contextmanager
def running(loops: Sequence[Loop], backends: Backends, served: Sequence[str]) -> Iterator[None]:
    """Run the loops inside the `with` block; stop them, the last first, at its end.

    The process is registered with the supervisor as a scheduler of what is `served`: the names of
    sources and destinations.
    """
    with registered(backends.supervisor, this_process(SCHEDULER, served)), ExitStack() as started:
        for loop in loops:
            loop.start()
            started.callback(loop.stop)
        yield
