"""How `blacksmith dev` runs two processes as one."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import psutil
import pytest

from blacksmith_dagster.cli import processes

STUBBORN = (
    "import pathlib, signal, subprocess, sys, time;"
    "signal.signal(signal.SIGINT, signal.SIG_IGN);"
    "child = subprocess.Popen(['sleep', '600']);"
    "pathlib.Path(sys.argv[1]).write_text(str(child.pid));"
    "time.sleep(600)"
)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Signal handlers as they were, after the test."""
    before = {
        each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


def test_one_that_ends_ends_the_other(tmp_path: Path) -> None:
    commands = {"gateway": ["sh", "-c", "exit 3"], "dagster dev": ["sleep", "600"]}
    with pytest.raises(click.ClickException, match="gateway ended with exit code 3"):
        processes._run_together(commands, tmp_path, dict(os.environ))
    assert not [each for each in psutil.Process().children() if "sleep" in each.cmdline()]


def test_one_that_ignores_the_signal_is_killed_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_STOP_SECONDS", 0.5)
    pid = tmp_path / "pid"
    waits = f"while [ ! -s {pid} ]; do sleep 0.1; done"
    commands = {
        "dagster dev": [sys.executable, "-c", STUBBORN, str(pid)],
        "gateway": ["sh", "-c", waits],
    }
    with pytest.raises(click.ClickException, match="gateway ended with exit code 0"):
        processes._run_together(commands, tmp_path, dict(os.environ))
    deadline = time.monotonic() + 10
    while psutil.pid_exists(int(pid.read_text())) and not _is_zombie(int(pid.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _is_zombie(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
