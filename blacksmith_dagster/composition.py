"""Puts together what a process runs: the gateway, the scheduler, and the loops that load and listen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias, cast

from blacksmith_dagster.backends import Backends
from blacksmith_dagster.errors import DeclarationError, SettingsError
from blacksmith_dagster.gateway import Gateway
from blacksmith_dagster.ingest.listeners import Listeners, ReportReceived
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.destination import Destination
from blacksmith_dagster.pipeline.source import Source
from blacksmith_dagster.scheduler import Realtime, Scheduler
from blacksmith_dagster.scheduler.realtime import ReportLoad
from blacksmith_dagster.supervisor import SCHEDULER, registered, this_process

Loop: TypeAlias = Realtime | Listeners
"""What loads the events of one destination, or listens for those of one source, until it is stopped."""


def gateway_of(app: Blacksmith) -> Gateway | None:
    """The application's own gateway, `None` if it has the standard one.

    Raises `DeclarationError` for an object that is not a gateway.
    """
    return cast("Gateway | None", _adapter(app.gateway, "gateway", "serve", "app, settings"))


def scheduler_of(app: Blacksmith) -> Scheduler | None:
    """The application's own scheduler, `None` if it has the standard one.

    Raises `DeclarationError` for an object that is not a scheduler.
    """
    arguments = "app, event, *, store, supervisor, run, stop, report"
    return cast("Scheduler | None", _adapter(app.scheduler, "scheduler", "load", arguments))


def _adapter(adapter: object, name: str, method: str, arguments: str) -> object:
    if isinstance(adapter, type):
        raise DeclarationError(
            f"Blacksmith({name}={adapter.__name__}): it is a class; write "
            f"{name}={adapter.__name__}(...)"
        )
    if adapter is not None and not callable(getattr(adapter, method, None)):
        raise DeclarationError(
            f"Blacksmith({name}=...): {type(adapter).__name__} has no method {method}; write "
            f"{method}({arguments}), as blacksmith_dagster.{name}.{name.title()} describes it, or "
            f"leave {name}= out to use Standard{name.title()}"
        )
    return adapter


def build_realtime(
    app: Blacksmith,
    destination: Destination[Any],
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
    return Realtime(
        app,
        destination,
        store=backends.store,
        supervisor=backends.supervisor,
        subscriber=backends.pubsub.subscriber(destination.name),
        holder=holder,
        run=run,
        report=report,
        notify=backends.notify(app),
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
