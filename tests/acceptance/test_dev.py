"""How `blacksmith dev` runs two processes as one."""

import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import psutil
import pytest
from click.testing import CliRunner, Result

from blacksmith_dagster.cli import main, serve
from tests.support.process_trees import is_alive
from tests.support.waiting import until

_modules = itertools.count(1)

STUBBORN = (
    "import pathlib, signal, subprocess, sys, time;"
    "signal.signal(signal.SIGINT, signal.SIG_IGN);"
    "child = subprocess.Popen(['sleep', '600']);"
    "pathlib.Path(sys.argv[1]).write_text(str(child.pid));"
    "time.sleep(600)"
)


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
from tests.support.process_trees import is_alive
from tests.support.waiting import until
from blacksmith_dagster.gateway import StandardGateway
app = Blacksmith(sources=[], destinations=[], gateway={gateway})
"""


@dataclass
class Dev:
    """The commands that `blacksmith dev` would run, and their folder."""

    commands: dict[str, list[str]]
    folder: Path
    environment: dict[str, str]


@pytest.fixture
def dev(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Result, Dev]]:
    """Runs `blacksmith dev` with an application, except its two processes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    for name in ("BLACKSMITH_STORE_URL", "BLACKSMITH_GATEWAY_URL", "DAGSTER_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BLACKSMITH_HOME", str(tmp_path / "home"))
    ran: list[Dev] = []
    monkeypatch.setattr(serve, "_run_together", lambda *arguments: ran.append(Dev(*arguments)))

    def invoke(gateway: str, *options: str) -> tuple[Result, Dev]:
        name = f"place_of_dev_{next(_modules)}"
        (tmp_path / f"{name}.py").write_text(OWN.format(gateway=gateway))
        result = CliRunner().invoke(main, ["dev", f"--app={name}:app", *options])
        return result, ran.pop() if ran else Dev({}, tmp_path, {})

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
    result, would = dev(gateway)
    assert f"gateway: {url} " in result.output
    assert would.environment["BLACKSMITH_GATEWAY_URL"] == url
    assert ("--port=8420" in would.commands["gateway"]) == (gateway == "None")


def test_a_custom_gateway_has_no_url(
    dev: Callable[..., tuple[Result, Dev]],
) -> None:
    result, would = dev("type('Mine', (), {'serve': print})()")
    assert "gateway: the application's own " in result.output
    assert "BLACKSMITH_GATEWAY_URL" not in would.environment


def test_a_named_application_needs_no_project(
    dev: Callable[..., tuple[Result, Dev]], tmp_path: Path
) -> None:
    result, would = dev("None")
    assert result.exit_code == 0
    assert would.folder == tmp_path
    assert (tmp_path / "home" / ".gitignore").read_text() == "*\n"


def test_an_option_without_effect_is_refused(dev: Callable[..., tuple[Result, Dev]]) -> None:
    result, would = dev("StandardGateway(port=8555)", "--port=8420")
    assert result.exit_code != 0
    assert "the application brings its own gateway, which --port would not reach" in result.output
    assert not would.commands
    name = max(Path.cwd().glob("place_of_dev_*.py")).stem
    refused = CliRunner().invoke(main, ["gateway", f"--app={name}:app", "--tls-key", __file__])
    assert "which --tls-key would not reach" in refused.output


def test_when_one_process_ends_the_other_is_stopped(tmp_path: Path) -> None:
    commands = {"gateway": ["sh", "-c", "exit 3"], "dagster dev": ["sleep", "600"]}
    with pytest.raises(click.ClickException, match="gateway ended with exit code 3"):
        serve._run_together(commands, tmp_path, dict(os.environ))
    assert not [child for child in psutil.Process().children() if "sleep" in child.cmdline()]


def test_a_process_that_ignores_the_signal_is_killed_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "_STOP_SECONDS", 0.5)
    pid = tmp_path / "pid"
    waits = f"while [ ! -s {pid} ]; do sleep 0.1; done"
    commands = {
        "dagster dev": [sys.executable, "-c", STUBBORN, str(pid)],
        "gateway": ["sh", "-c", waits],
    }
    with pytest.raises(click.ClickException, match="gateway ended with exit code 0"):
        serve._run_together(commands, tmp_path, dict(os.environ))
    until(lambda: not is_alive(int(pid.read_text())), 10)
