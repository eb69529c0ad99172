"""`blacksmith dev`: a gateway and Dagster as one, on one terminal, with one end."""

import itertools
import os
import pty
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import click
import httpx
import psutil
import pytest
from click.testing import CliRunner, Result

from blacksmith_dagster.cli import develop, main, processes
from blacksmith_dagster.errors import SettingsError
from blacksmith_dagster.gateway import StandardGateway
from tests.support.process_trees import is_alive
from tests.support.services import free_port
from tests.support.waiting import until

_modules = itertools.count(1)

STUBBORN = (
    "import pathlib, signal, subprocess, sys, time;"
    "signal.signal(signal.SIGINT, signal.SIG_IGN);"
    "child = subprocess.Popen(['sleep', '600']);"
    "pathlib.Path(sys.argv[1]).write_text(str(child.pid));"
    "time.sleep(600)"
)


# ------------------------------------------------------------------------------- in a terminal


class Terminal:
    """A program of the project in a folder, on a terminal of its own."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        # What a terminal of a user does not have.
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("BLACKSMITH_", "DAGSTER_"))
            or name.startswith("BLACKSMITH_TEST_")
        }
        self._terminal, line = pty.openpty()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "blacksmith_dagster.cli", *arguments],
            cwd=folder,
            env={**environment, "PYTHONPATH": str(Path(__file__).parents[2])},
            stdin=line,
            stdout=line,
            stderr=line,
            start_new_session=True,
        )
        os.close(line)
        self._bytes = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with suppress(OSError):  # no program has the terminal open any more
            while more := os.read(self._terminal, 65536):
                self._bytes += more

    @property
    def lines(self) -> list[str]:
        """What it has shown, without colours."""
        return click.unstyle(self._bytes.decode(errors="replace")).splitlines()

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def interrupt(self) -> None:
        """Send SIGINT, as Ctrl-C does: the terminal controls no process here."""
        self._process.send_signal(signal.SIGINT)

    def wait(self, seconds: float = 60) -> int:
        """Wait for its end; returns the exit code."""
        code = self._process.wait(seconds)
        self._reader.join(10)
        return code

    def close(self) -> None:
        for process in left_in(self.folder):
            process.kill()
        self._process.wait(10)
        self._reader.join(10)
        os.close(self._terminal)


def left_in(folder: Path) -> list[psutil.Process]:
    """The processes that run in the folder."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if Path(process.cwd()) == folder and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@dataclass
class Session:
    """What came of a whole session with a new project, until Ctrl-C."""

    gateway: str
    ui: str
    lines: list[str]
    exit_code: int
    rows: list[str]
    jobs: set[str]
    shows_nux: bool
    sends_telemetry: bool
    left: list[psutil.Process]
    folder: Path


SEEN = """{ shouldShowNux instance { info } repositoriesOrError {
    ... on RepositoryConnection { nodes { pipelines { name } } } } }"""


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    folder = tmp_path_factory.mktemp("session") / "new"
    assert CliRunner().invoke(main, ["init", str(folder)]).exit_code == 0
    port, ui_port = free_port(), free_port()
    gateway, ui = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{ui_port}"
    terminal = Terminal(folder, "dev", f"--port={port}", f"--ui-port={ui_port}")

    def rows() -> list[str]:
        with suppress(sqlite3.OperationalError), sqlite3.connect(folder / "warehouse.db") as conn:
            return [data for (data,) in conn.execute("SELECT data FROM events")]
        return []

    try:
        until(lambda: f"Dagster  {ui}" in terminal.lines or terminal.has_ended, 200)
        assert not terminal.has_ended, terminal.lines
        order = {"id": "1", "email": "ada@example.com", "total": 250}
        assert httpx.post(f"{gateway}/shop/orders", json=order).status_code == 202
        seen = httpx.post(f"{ui}/graphql", json={"query": SEEN}, timeout=30).json()["data"]
        [repository] = seen["repositoriesOrError"]["nodes"]
        loaded = until(rows, 90, "the event is in the table")
        terminal.interrupt()
        exit_code = terminal.wait()
        yield Session(
            gateway,
            ui,
            terminal.lines,
            exit_code,
            loaded,
            {job["name"] for job in repository["pipelines"]},
            seen["shouldShowNux"],
            "telemetry:\n  enabled: true" in seen["instance"]["info"],
            left_in(folder),
            folder,
        )
    finally:
        terminal.close()


@pytest.mark.slow
@pytest.mark.timeout(400)  # it waits for Dagster to start and to load
def test_init_makes_a_project_that_runs(session: Session) -> None:
    assert session.rows == ['{"id":"1","email":"ada@example.com","total":250.0}']
    assert "load_warehouse" in session.jobs
    assert not session.shows_nux
    assert not session.sends_telemetry
    # Dagster's home is Blacksmith's.
    assert {"store.db", "history"} <= {path.name for path in session.folder.glob(".blacksmith/*")}
    assert session.exit_code == 0
    assert session.lines[-1] == "stopping"
    assert session.left == []


@pytest.mark.slow
@pytest.mark.timeout(400)  # if it is run by itself
def test_dev_prints_no_warnings(session: Session) -> None:
    """The URLs are the last of its own lines; below them are those of the two, with their names."""
    first, gateway, dagster, *others, _ = session.lines
    assert first == f"starting with sqlite:///{session.folder}/.blacksmith/store.db"
    assert (gateway, dagster) == (f"gateway  {session.gateway}", f"Dagster  {session.ui}")
    assert others
    assert all(re.match("(gateway|dagster) [|] ", line) for line in others), others
    shown = "\n".join(session.lines)
    assert "warning" not in shown.lower()
    assert shown.count(session.gateway) == shown.count(session.ui) == 1


# --------------------------------------------------------------------- what cannot be started


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("the gateway's port", "the gateway cannot listen on 127.0.0.1, port {port} (Address already "),
        ("the port of the UI", "Dagster's UI cannot listen on 127.0.0.1, port {ui_port} (Address "),
        ("a secret", "the environment variable GITHUB_SECRET is not set; set it to the secret's"),
        ("the application", "the application does not import: ZeroDivisionError: division by zero ("),
    ],
    ids=["the gateway's port", "the port of the UI", "a secret", "the application"],
)  # fmt: skip
def test_dev_ends_when_a_part_cannot_start(part: str, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    assert CliRunner().invoke(main, ["init", str(folder), "--source=github"]).exit_code == 0
    port, ui_port = free_port(), free_port()
    with ExitStack() as opened:
        if part == "the gateway's port":
            opened.enter_context(socket.create_server(("127.0.0.1", port)))
        elif part == "the port of the UI":
            opened.enter_context(socket.create_server(("127.0.0.1", ui_port)))
        elif part == "a secret":
            (folder / ".env").unlink()
        else:
            (folder / "pipeline.py").write_text("1 / 0\n")
        terminal = Terminal(folder, "dev", f"--port={port}", f"--ui-port={ui_port}")
        opened.callback(terminal.close)
        assert terminal.wait() == 1
        assert left_in(folder) == []
    [line] = terminal.lines
    assert line.startswith("Error: " + message.format(port=port, ui_port=ui_port))


def test_dev_ends_when_dagster_cannot_load_the_definitions() -> None:
    def respond(location: object) -> httpx.MockTransport:
        entry = {"loadStatus": "LOADED", "locationOrLoadError": location}
        data = {"workspaceOrError": {"locationEntries": [entry]}}
        return httpx.MockTransport(lambda _: httpx.Response(200, json={"data": data}))

    with httpx.Client(transport=respond({})) as client:
        assert develop._has_loaded(client, "http://ui")
    error = {"message": "UserCodeError", "causes": [{"message": "NameError: x\n"}]}
    with (
        httpx.Client(transport=respond(error)) as client,
        pytest.raises(SettingsError, match=r"Dagster cannot load the definitions: NameError: x$"),
    ):
        develop._has_loaded(client, "http://ui")


def test_a_gateway_and_a_ui_need_two_ports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match=r"cannot share port 8555; choose another .*--ui-port"):
        develop._check_ui(8555, taken="http://127.0.0.1:8555")
    monkeypatch.setattr(develop, "find_spec", lambda _: None)
    with pytest.raises(SettingsError, match="pip install dagster-webserver"):
        develop._check_ui(8555, taken=None)


# --------------------------------------------------------------------------- what is run, and how


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Restore the signal handlers after the test."""
    before = {
        number: signal.getsignal(number)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


OWN = """
from blacksmith_dagster import Blacksmith
from blacksmith_dagster.gateway import StandardGateway
app = Blacksmith(sources=[], destinations=[], gateway={gateway})
"""


@dataclass
class Dev:
    """The commands that `blacksmith dev` would run, their folder, and what it would print."""

    commands: dict[str, list[str]]
    folder: Path
    environment: dict[str, str]
    started: str


@pytest.fixture
def dev(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Result, Dev]]:
    """Runs `blacksmith dev` with an application, except its two processes and the look for ports."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    for name in ("BLACKSMITH_STORE_URL", "BLACKSMITH_GATEWAY_URL", "DAGSTER_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BLACKSMITH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(StandardGateway, "check", lambda *_: None)
    monkeypatch.setattr(develop, "_check_ui", lambda *_, **__: None)
    ran: list[Dev] = []

    def run_together(
        commands: dict[str, list[str]],
        folder: Path,
        environment: dict[str, str],
        *,
        started: str,
        **_: object,
    ) -> None:
        ran.append(Dev(commands, folder, environment, started))

    monkeypatch.setattr(develop, "run_together", run_together)

    def invoke(gateway: str, *options: str) -> tuple[Result, Dev]:
        name = f"place_of_dev_{next(_modules)}"
        (tmp_path / f"{name}.py").write_text(OWN.format(gateway=gateway))
        result = CliRunner().invoke(main, ["dev", f"--app={name}:app", *options])
        return result, ran.pop() if ran else Dev({}, tmp_path, {}, "")

    return invoke


@pytest.mark.parametrize(
    ("gateway", "url"),
    [
        ("None", "http://127.0.0.1:8420"),
        ("StandardGateway(port=8555)", "http://127.0.0.1:8555"),
        ("StandardGateway(host='::', tls_certificate='c.pem')", "https://[::1]:8420"),
    ],
)
def test_the_gateways_url_is_that_of_the_running_gateway(
    gateway: str, url: str, dev: Callable[..., tuple[Result, Dev]]
) -> None:
    _, would = dev(gateway)
    assert f"gateway  {url}\n" in would.started
    assert would.environment["BLACKSMITH_GATEWAY_URL"] == url
    assert ("--port=8420" in would.commands["gateway"]) == (gateway == "None")


def test_a_custom_gateway_has_no_url(
    dev: Callable[..., tuple[Result, Dev]],
) -> None:
    _, would = dev("type('Mine', (), {'serve': print})()")
    assert "gateway  as the application declares it\n" in would.started
    assert "BLACKSMITH_GATEWAY_URL" not in would.environment


def test_a_named_application_needs_no_project(
    dev: Callable[..., tuple[Result, Dev]], tmp_path: Path
) -> None:
    result, would = dev("None")
    assert result.exit_code == 0
    assert would.folder == tmp_path
    assert (tmp_path / "home" / ".gitignore").read_text() == "*\n"


def test_dagster_finds_the_projects_settings_in_its_home(
    dev: Callable[..., tuple[Result, Dev]], tmp_path: Path
) -> None:
    ours = tmp_path / "home" / "dagster.yaml"
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}")
    dev("None")
    assert ours.read_text() == "telemetry: {enabled: false}"
    (tmp_path / "dagster.yaml").unlink()
    dev("None")
    assert not ours.is_symlink()
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}")
    ours.write_text("telemetry: {enabled: true}")  # one of its own stays
    dev("None")
    assert ours.read_text() == "telemetry: {enabled: true}"


def test_an_option_without_effect_is_refused(dev: Callable[..., tuple[Result, Dev]]) -> None:
    result, would = dev("StandardGateway(port=8555)", "--port=8420")
    assert result.exit_code != 0
    assert "the application brings its own gateway, which --port would not reach" in result.output
    assert not would.commands
    name = max(Path.cwd().glob("place_of_dev_*.py")).stem
    refused = CliRunner().invoke(main, ["gateway", f"--app={name}:app", "--tls-key", __file__])
    assert "which --tls-key would not reach" in refused.output


def run_together(
    folder: Path, has_started: Callable[[], bool] = lambda: False, **commands: list[str]
) -> None:
    processes.run_together(
        commands,
        folder,
        dict(os.environ),
        has_started=has_started,
        started="up",
        log=folder / "startup.log",
    )


def test_when_one_process_cannot_start_the_other_is_stopped(tmp_path: Path) -> None:
    script = "echo first; echo 'Traceback:'; echo 'ValueError: broken'; echo; exit 3"
    with pytest.raises(click.ClickException) as raised:
        run_together(tmp_path, gateway=["sh", "-c", script], dagster=["sleep", "600"])
    log = tmp_path / "startup.log"
    assert raised.value.message == f"gateway: ValueError: broken; all that it printed is in {log}"
    assert "gateway | first\n" in log.read_text()
    assert not [child for child in psutil.Process().children() if "sleep" in child.cmdline()]


def test_when_one_process_ends_the_other_is_stopped(tmp_path: Path) -> None:
    def has_started() -> bool:
        (tmp_path / "up").touch()
        return True

    # A line of the user's own code, which looks like that of a server that cannot listen.
    line = "echo 'ERROR: [Errno 111] Connection refused'"
    script = f"while [ ! -e up ]; do sleep 0.1; done; {line}; sleep 1; exit 3"
    ended = "gateway ended with exit code 3; see its last lines above"
    with pytest.raises(click.ClickException, match=ended):
        run_together(tmp_path, has_started, gateway=["sh", "-c", script], dagster=["sleep", "600"])
    assert not [child for child in psutil.Process().children() if "sleep" in child.cmdline()]


def test_a_process_that_cannot_listen_need_not_end(tmp_path: Path) -> None:
    """Dagster's UI hangs when another process has taken its port since it was looked for."""
    line = "ERROR:    [Errno 98] error while attempting to bind on address ('127.0.0.1', 3000)"
    with pytest.raises(click.ClickException, match="dagster: error while attempting to bind on"):
        run_together(tmp_path, dagster=["sh", "-c", f'echo "{line}"; exec sleep 600'])


def test_a_process_that_ignores_the_signal_is_killed_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_ABORT_SECONDS", 0.5)
    pid = tmp_path / "pid"
    waits = f"while [ ! -s {pid} ]; do sleep 0.1; done"
    with pytest.raises(click.ClickException, match="gateway ended with exit code 0"):
        run_together(
            tmp_path,
            dagster=[sys.executable, "-c", STUBBORN, str(pid)],
            gateway=["sh", "-c", waits],
        )
    until(lambda: not is_alive(int(pid.read_text())), 10)
