"""The commands that run a deployment: the gateway, the worker, both with Dagster; its store and keys."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any
from warnings import catch_warnings

import click
from click.core import ParameterSource

from blacksmith_dagster.admin import answering, listen
from blacksmith_dagster.backends import Backends
from blacksmith_dagster.cli.common import app_name_option, app_option
from blacksmith_dagster.composition import (
    WorkerWatch,
    build_worker,
    gateway_of,
    open_scheduler,
    running,
    select_served,
)
from blacksmith_dagster.errors import UsageError
from blacksmith_dagster.gateway import Gateway, StandardGateway
from blacksmith_dagster.importer import load_application, load_named, project_entry
from blacksmith_dagster.ingest.listeners import listened_events
from blacksmith_dagster.logs import announce
from blacksmith_dagster.pipeline.access import hashed
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.scheduler import realtime_events
from blacksmith_dagster.settings import Settings, find_home, find_project
from blacksmith_dagster.signals import on_stop
from blacksmith_dagster.store import open_store
from blacksmith_dagster.store.sqlite import make_home
from blacksmith_dagster.supervisor import here

_STOP_SECONDS = 30
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
        _refuse_options(*options)
    (own or StandardGateway(**options)).serve(app, Settings.read())


@click.command()
@app_name_option
@click.option("--port", type=_PORT, default=8420, show_default=True, help="The gateway's port.")
@click.option(
    "--ui-port", type=_PORT, default=3000, show_default=True, help="The port of Dagster's UI."
)
def dev(app: str | None, port: int, ui_port: int) -> None:
    """Run the gateway and `dagster dev` together, until Ctrl-C.

    DAGSTER_HOME is BLACKSMITH_HOME unless it is set. Both listen on 127.0.0.1, unless the
    application has its own gateway that listens elsewhere.
    """
    own = gateway_of(load_application(app))  # a wrong declaration is reported here, only once
    gateway_command = [sys.executable, "-m", "blacksmith_dagster.cli", "gateway"]
    gateway_command += [f"--app={app}"] if app else []
    url: str | None = f"http://127.0.0.1:{port}"
    if own is None:
        gateway_command.append(f"--port={port}")
    else:
        _refuse_options("port")
        url = _url_of(own)
    home = find_home()
    project = Path.cwd() if app else find_project()
    make_home(home)
    environment = {**os.environ, "BLACKSMITH_HOME": str(home)}
    environment.setdefault("DAGSTER_HOME", str(home))
    if url is not None:
        environment.setdefault("BLACKSMITH_GATEWAY_URL", url)  # for the check `gateway_reachable`
    dagster_command = [sys.executable, "-m", "dagster", "dev", f"--port={ui_port}"]
    shown_url = url or "the application's own"
    click.echo(f"gateway: {shown_url}   Dagster: http://127.0.0.1:{ui_port}", err=True)
    _run_together(
        {"gateway": gateway_command, "dagster dev": dagster_command}, project, environment
    )


def _refuse_options(*names: str) -> None:
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


def _url_of(gateway: Gateway) -> str | None:
    """The gateway's URL on this machine, if it is known before the gateway listens."""
    if not isinstance(gateway, StandardGateway) or gateway.port == 0:
        return None
    local = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}
    host = local.get(gateway.host, gateway.host)
    scheme = "https" if gateway.tls_certificate else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{gateway.port}"


def _run_together(
    commands: dict[str, Sequence[str]], folder: Path, environment: dict[str, str]
) -> None:
    """Run the commands until Ctrl-C, SIGTERM, SIGHUP or the end of one; then stop them all.

    Each command has a process group of its own, so that it gets Ctrl-C once, from here, and so that
    nothing that it has started outlives it.
    """
    # SIGINT too: a shell starts its background processes with SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    children: dict[str, subprocess.Popen[bytes]] = {}
    ended: dict[str, int] = {}
    try:
        for name, command in commands.items():
            children[name] = subprocess.Popen(command, cwd=folder, env=environment, process_group=0)
        while not ended:
            time.sleep(0.2)
            ended = {
                name: child.returncode
                for name, child in children.items()
                if child.poll() is not None
            }
    except KeyboardInterrupt:
        click.echo("stopping", err=True)
    finally:
        _stop(list(children.values()))
    if ended:
        ended_children = ", ".join(
            f"{name} ended with exit code {code}" for name, code in ended.items()
        )
        raise click.ClickException(f"{ended_children}; see its last lines above")


def _stop(children: Sequence[subprocess.Popen[bytes]]) -> None:
    for child in children:
        if child.poll() is None:
            child.send_signal(signal.SIGINT)
    deadline = time.monotonic() + _STOP_SECONDS
    for child in children:
        with suppress(subprocess.TimeoutExpired):
            child.wait(max(deadline - time.monotonic(), 0))
    for child in children:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


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
