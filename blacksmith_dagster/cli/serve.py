"""The commands that run a deployment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from blacksmith_dagster.cli.common import app_option
from blacksmith_dagster.composition import gateway_of
from blacksmith_dagster.errors import UsageError
from blacksmith_dagster.importer import load_application
from blacksmith_dagster.settings import Settings, find_project
from blacksmith_dagster.store import open_store
from blacksmith_dagster.store.sqlite import make_home

if TYPE_CHECKING:
    from blacksmith_dagster.gateway.server import Gateway

_STOP_SECONDS = 30


@click.command()
@app_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--port", type=click.IntRange(1, 65535), default=8420, show_default=True)
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--tls-cert", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--tls-key", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--trusted-proxy",
    multiple=True,
    metavar="NETWORK",
    help="A proxy whose X-Forwarded-For is believed; may be given several times.",
)
def gateway(
    app: str | None,
    host: str,
    port: int,
    workers: int,
    tls_cert: Path | None,
    tls_key: Path | None,
    trusted_proxy: tuple[str, ...],
) -> None:
    """Receive events over HTTP and keep them, until Ctrl-C or SIGTERM.

    An application that brings a gateway of its own runs that one, and takes no options here.
    """
    from blacksmith_dagster.gateway import StandardGateway

    application = load_application(app)
    own = gateway_of(application)
    if own is not None:
        _refuse_options("host", "port", "workers", "tls_cert", "tls_key", "trusted_proxy")
    chosen = own or StandardGateway(
        host=host,
        port=port,
        workers=workers,
        tls_certificate=tls_cert,
        tls_key=tls_key,
        trusted_proxies=trusted_proxy,
    )
    chosen.serve(application, Settings.read())


@click.command()
@app_option
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=8420,
    show_default=True,
    help="The gateway's port.",
)
@click.option(
    "--ui-port",
    type=click.IntRange(1, 65535),
    default=3000,
    show_default=True,
    help="The port of Dagster's UI.",
)
def dev(app: str | None, port: int, ui_port: int) -> None:
    """Run the gateway and `dagster dev` together, until Ctrl-C.

    DAGSTER_HOME is BLACKSMITH_HOME unless it is set. Both listen on 127.0.0.1, unless the
    application brings a gateway that listens elsewhere.
    """
    application = load_application(app)  # a wrong declaration is reported here, once
    own = gateway_of(application)
    gateway_command = [sys.executable, "-m", "blacksmith_dagster.cli", "gateway"]
    gateway_command += [f"--app={app}"] if app else []
    url: str | None = f"http://127.0.0.1:{port}"
    if own is None:
        gateway_command.append(f"--port={port}")
    else:
        _refuse_options("port")
        url = _url_of(own)
    home = Settings.read().home
    project = Path.cwd() if app else find_project()
    make_home(home)
    environment = {**os.environ, "BLACKSMITH_HOME": str(home)}
    environment.setdefault("DAGSTER_HOME", str(home))
    if url is not None:
        environment.setdefault("BLACKSMITH_GATEWAY_URL", url)  # what checks ask
    dagster_command = [sys.executable, "-m", "dagster", "dev", f"--port={ui_port}"]
    where = url or "the application's own"
    click.echo(f"gateway: {where}   Dagster: http://127.0.0.1:{ui_port}", err=True)
    _run_together(
        {"gateway": gateway_command, "dagster dev": dagster_command}, project, environment
    )


def _refuse_options(*names: str) -> None:
    context = click.get_current_context()
    given = [
        f"--{name.replace('_', '-')}"
        for name in names
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT
    ]
    if given:
        raise UsageError(
            f"the application brings its own gateway, which {', '.join(given)} would not reach; "
            "leave it out, or change it where the gateway is made: Blacksmith(gateway=...)"
        )


def _url_of(gateway: Gateway) -> str | None:
    """Where a gateway can be reached from this machine, if that is known before it listens."""
    from blacksmith_dagster.gateway import StandardGateway

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

    Each has a process group of its own, so that Ctrl-C reaches it once, from here, and that
    nothing it has started outlives it.
    """
    # SIGINT too: a shell starts what runs in its background with SIGINT ignored.
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.default_int_handler)
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
        raise click.ClickException(f"{ended_children}; its last lines above say why")


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


@click.group()
def store() -> None:
    """The store itself."""


@store.command()
def upgrade() -> None:
    """Bring the store's tables to this version of the package."""
    with closing(open_store(Settings.read().store_url, upgrade=True)) as opened:
        click.echo(f"{opened.label}: the tables are up to date")


@store.command("repair")
def repair_store() -> None:
    """After a restore or a promotion: let the store accept events again.

    Its sequence is moved past all that it made, and a new epoch begins, so that no new event gets
    the id of one that was lost.
    """
    with closing(open_store(Settings.read().store_url, repair=True)) as opened:
        click.echo(f"{opened.label}: accepts events again")
