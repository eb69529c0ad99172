"""The commands that run a deployment: the gateway and the worker; its store and keys."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from warnings import catch_warnings

import click
from click.core import ParameterSource

from blacksmith_dagster.admin import answering, listen
from blacksmith_dagster.backends import Backends
from blacksmith_dagster.cli.common import app_option, refuse_options
from blacksmith_dagster.composition import (
    WorkerWatch,
    build_worker,
    gateway_of,
    open_scheduler,
    running,
    select_served,
)
from blacksmith_dagster.gateway import StandardGateway
from blacksmith_dagster.importer import load_named, project_entry
from blacksmith_dagster.ingest.listeners import listened_events
from blacksmith_dagster.logs import announce
from blacksmith_dagster.pipeline.access import hashed
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.scheduler import realtime_events
from blacksmith_dagster.settings import Settings
from blacksmith_dagster.signals import on_stop
from blacksmith_dagster.store import open_store
from blacksmith_dagster.supervisor import here

_LOOK_SECONDS = 1.0
_PORT = click.IntRange(1, 65535)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def _admin_options(command: Callable[..., Any]) -> Callable[..., Any]:
    port = click.option(
        "--admin-port",
        type=_PORT,
        help="Serve /health/live and /health/ready on this port, for probes.",
    )
    host = click.option(
        "--admin-host",
        default="127.0.0.1",
        show_default=True,
        help="The address of the admin port.",
    )
    return port(host(command))


# All options but --app are named as the fields of StandardGateway.
@click.command()
@app_option
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=_PORT, default=8420, show_default=True)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="How many processes serve the port.",
)
@click.option(
    "--tls-cert", "tls_certificate", type=_FILE, help="A PEM file with the TLS certificate."
)
@click.option(
    "--tls-key",
    type=_FILE,
    help="A PEM file with the certificate's key, if it is not in the same file.",
)
@click.option(
    "--trusted-proxy",
    "trusted_proxies",
    multiple=True,
    metavar="NETWORK",
    help="Trust the X-Forwarded-For of this proxy; may be given several times.",
)
@_admin_options
def gateway(app: Blacksmith, **options: Any) -> None:
    """Receive events over HTTP and store them, until Ctrl-C or SIGTERM.

    An application that has its own gateway runs that one, and accepts none of these options.
    """
    own = gateway_of(app)
    if own is not None:
        refuse_options(*options)
    (own or StandardGateway(**options)).serve(app, Settings.read())


@click.command()
@app_option
@click.option(
    "--definitions",
    metavar="MODULE:NAME",
    help="Dagster's definitions, for the asset keys. Default: those that pyproject.toml names in "
    "[tool.blacksmith].",
)
@_admin_options
@click.argument("names", nargs=-1, metavar="[NAME]...")
def worker(
    app: Blacksmith,
    definitions: str | None,
    admin_port: int | None,
    admin_host: str,
    names: tuple[str, ...],
) -> None:
    """Load realtime events, and listen for messages and changes, until Ctrl-C or SIGTERM.

    NAME is a destination with realtime events, or a source with subscriptions or CDC. Default: all of
    them.

    It does what warm runs do, outside of Dagster. If DAGSTER_HOME is set, it reports what it loads
    there, as materializations of the assets in --definitions. It stands by while another worker or a
    run holds the locks. It ends with an error when a load runs past its time-out: let a service
    manager restart it.
    """
    stop = threading.Event()
    destinations, sources = select_served(app, names)
    with on_stop(stop.set), Backends(Settings.read()) as backends, ExitStack() as opened:
        admin = None
        if admin_port is not None:
            admin = opened.enter_context(listen(admin_host, admin_port))
        reporter = None
        if destinations and os.environ.get("DAGSTER_HOME"):
            # Dagster is imported only here.
            from blacksmith_dagster.orchestration.assets import asset_keys
            from blacksmith_dagster.orchestration.loads import runless_reporter

            with catch_warnings(action="ignore"):  # Dagster warns of the beta features that it uses
                keys = asset_keys(app, _definitions(definitions))
            reporter = opened.enter_context(runless_reporter(keys))
        loops = build_worker(
            app,
            destinations,
            sources,
            opened.enter_context(open_scheduler(app)),
            backends,
            holder=here(),
            report=reporter.add if reporter else lambda *_: None,
        )
        watch = WorkerWatch(loops, backends, stop)
        if admin is not None:  # it answers until the loops have ended
            opened.enter_context(answering(admin, watch.problems, watch.check_ready))
        served = [destination.name for destination in destinations]
        served += [source.name for source in sources]
        opened.enter_context(running(loops, backends, served))
        paths = [
            *(event.path for destination in destinations for event in realtime_events(destination)),
            *(event.path for source in sources for event in listened_events(source)),
        ]
        reported = "reported to" if reporter else "not reported, as there is no"
        reported = f", {reported} DAGSTER_HOME" if destinations else ""
        announce(f"blacksmith worker: {', '.join(paths)}, {backends.label}{reported}")
        failure = None
        while failure is None and not stop.wait(_LOOK_SECONDS):
            watch.beat()
            if reporter:
                reporter.report_if_due()
            failure = next((loop.failure for loop in loops if loop.failure), None)
    if failure is not None:
        raise failure


def _definitions(name: str | None) -> tuple[object, str] | None:
    """What `name`, or else pyproject.toml, names; `None` if neither does, or `--app` is another."""
    of_project = click.get_current_context().get_parameter_source("app") is ParameterSource.DEFAULT
    if name is None and not (of_project and project_entry("definitions")):
        return None
    return load_named("definitions", name, "the definitions", "definitions:defs")


@click.group()
def store() -> None:
    """Upgrade or repair the store."""


@store.command()
def upgrade() -> None:
    """Upgrade the store's tables to this version of the package."""
    with closing(open_store(Settings.read().store_url, upgrade=True)) as opened:
        click.echo(f"{opened.label}: the tables are up to date")


@store.command("repair")
def repair_store() -> None:
    """After a restore or a promotion: let the store accept events again.

    This moves its sequence past all numbers that it has used and begins a new epoch, so that no new
    event gets the id of a lost one.
    """
    with closing(open_store(Settings.read().store_url, repair=True)) as opened:
        click.echo(f"{opened.label}: accepts events again")


@click.group()
def keys() -> None:
    """Create keys for senders."""


@keys.command("new")
def new_key() -> None:
    """Create a key for a sender, and its hash.

    Give the key to the sender. Give the gateway the hash, in the environment variable that the
    source's Secret names. The key itself is not stored.
    """
    key = secrets.token_urlsafe(32)
    click.echo(f"key   {key}\nhash  {hashed(key)}")
