"""The command that runs everything on one machine, to develop a pipeline: `blacksmith dev`."""

from __future__ import annotations

import os
import socket
import sys
import traceback
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import click
import httpx

from blacksmith_dagster.cli.common import app_name_option, refuse_options
from blacksmith_dagster.cli.processes import run_together
from blacksmith_dagster.composition import gateway_of
from blacksmith_dagster.errors import BlacksmithError, SettingsError
from blacksmith_dagster.gateway import Gateway, StandardGateway
from blacksmith_dagster.importer import load_application
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.redaction import clean, describe, one_line
from blacksmith_dagster.settings import Settings, find_home, find_project
from blacksmith_dagster.store import open_store
from blacksmith_dagster.store.sqlite import make_home

_PORT = click.IntRange(1, 65535)
# Dagster warns of `dagster dev`, and of its own use of what it calls beta.
_IGNORED_WARNINGS = (
    "ignore:Function `dev_command` is superseded",
    "ignore:Parameter `owners` of initializer",
)
_LOCATIONS = """{ workspaceOrError {
    ... on PythonError { message causes { message } }
    ... on Workspace { locationEntries { loadStatus
        locationOrLoadError { ... on PythonError { message causes { message } } } } } } }"""


@click.command()
@app_name_option
@click.option("--port", type=_PORT, default=8420, show_default=True, help="The gateway's port.")
@click.option(
    "--ui-port", type=_PORT, default=3000, show_default=True, help="The port of Dagster's UI."
)
def dev(app: str | None, port: int, ui_port: int) -> None:
    """Run the gateway and `dagster dev` together, until Ctrl-C.

    Both listen on 127.0.0.1, unless the application has its own gateway that listens elsewhere.
    DAGSTER_HOME is BLACKSMITH_HOME unless it is set, with the dagster.yaml beside pyproject.toml. If
    one of the two cannot start, the command ends with the reason.
    """
    project = Path.cwd() if app else find_project()
    application = _load(app, project)
    own = gateway_of(application)
    if own is not None:
        refuse_options("port")
    gateway = own or StandardGateway(port=port)
    if isinstance(gateway, StandardGateway):
        gateway.check(application)
    url = _url_of(gateway)
    _check_ui(ui_port, taken=url)
    home = find_home()
    make_home(home)
    environment = {**os.environ, "BLACKSMITH_HOME": str(home), "PYTHONUNBUFFERED": "1"}
    if "DAGSTER_HOME" not in environment:
        environment["DAGSTER_HOME"] = str(home)
        _link_instance_settings(project, home)
    if url is not None:
        environment.setdefault("BLACKSMITH_GATEWAY_URL", url)  # for the check `gateway_reachable`
    warnings = environment.get("PYTHONWARNINGS")
    environment["PYTHONWARNINGS"] = ",".join(filter(None, (warnings, *_IGNORED_WARNINGS)))
    with closing(open_store(Settings.read().store_url, upgrade=True)) as store:
        click.echo(f"starting with {store.label}", err=True)
    gateway_command = [sys.executable, "-m", "blacksmith_dagster.cli", "gateway"]
    gateway_command += [f"--app={app}"] if app else []
    gateway_command += [f"--port={port}"] if own is None else []
    ui_url = f"http://127.0.0.1:{ui_port}"
    # The gateway's certificate names another host.
    with httpx.Client(verify=False, timeout=10) as client:
        run_together(
            {
                "gateway": gateway_command,
                "dagster": [sys.executable, "-m", "dagster", "dev", f"--port={ui_port}"],
            },
            project,
            environment,
            has_started=lambda: _responds(client, url) and _has_loaded(client, ui_url),
            started=f"gateway  {url or 'as the application declares it'}\nDagster  {ui_url}",
            log=home / "startup.log",
        )


def _load(app: str | None, project: Path) -> Blacksmith:
    """The application. Raises `SettingsError` with the place in the project's code that fails."""
    try:
        return load_application(app)
    except BlacksmithError:
        raise
    except Exception as error:
        own = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if Path(frame.filename).is_relative_to(project)
        ]
        place = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
        raise SettingsError(
            f"the application does not import: {one_line(describe(error))}{place}; correct it, and "
            "start again"
        ) from error


def _check_ui(port: int, *, taken: str | None) -> None:
    """Raise `SettingsError` if Dagster's UI cannot start beside the gateway at the URL `taken`."""
    if find_spec("dagster_webserver") is None:
        raise SettingsError("Dagster's UI is not installed; pip install dagster-webserver")

    if taken is not None and httpx.URL(taken).port == port:
        raise SettingsError(
            f"the gateway and Dagster's UI cannot share port {port}; choose another one with --ui-port"
        )
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        reason = str(error.strerror).partition(" (while attempting")[0]
        raise SettingsError(
            f"Dagster's UI cannot listen on 127.0.0.1, port {port} ({reason}); stop the process "
            "that uses it, or choose another port with --ui-port"
        ) from error


def _link_instance_settings(project: Path, home: Path) -> None:
    """Let Dagster find the project's dagster.yaml in its home, unless there is one of its own."""
    link, settings = home / "dagster.yaml", project / "dagster.yaml"
    if link.is_symlink() and (link.readlink() == settings or not link.exists()):
        link.unlink()
    if settings.exists() and not link.exists():
        link.symlink_to(settings)


def _url_of(gateway: Gateway) -> str | None:
    """The gateway's URL on this machine, if it is known before the gateway listens."""
    if not isinstance(gateway, StandardGateway) or gateway.port == 0:
        return None
    local = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}
    host = local.get(gateway.host, gateway.host)
    scheme = "https" if gateway.tls_certificate else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{gateway.port}"


def _responds(client: httpx.Client, gateway: str | None) -> bool:
    """Whether the gateway at this URL responds, whatever it says of its health."""
    if gateway is None:
        return True
    try:
        client.get(f"{gateway}/_health")
    except httpx.HTTPError:
        return False
    return True


def _has_loaded(client: httpx.Client, ui: str) -> bool:
    """Whether Dagster's UI responds, with all code locations. Raises `SettingsError` if one fails."""
    try:
        response = client.post(f"{ui}/graphql", json={"query": _LOCATIONS})
        workspace = response.raise_for_status().json()["data"]["workspaceOrError"]
    except httpx.HTTPError:
        return False
    locations = workspace.get("locationEntries", [])
    found = [workspace, *(location["locationOrLoadError"] or {} for location in locations)]
    for error in found:
        if "message" in error:
            cause = [error, *error["causes"]][-1]["message"]
            raise SettingsError(f"Dagster cannot load the definitions: {one_line(clean(cause))}")
    return all(location["loadStatus"] == "LOADED" for location in locations)
