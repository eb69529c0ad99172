"""`blacksmith migrations` as a process: on a terminal, interrupted, and two at once."""

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from blacksmith_dagster.store import open_store
from tests.support.migrating import tables
from tests.support.pipelines.wanderer import FOLDER, SLOW, WAREHOUSE
from tests.support.processes.blacksmith import ROOT_FOLDER
from tests.support.waiting import until

APP = "--app=tests.support.pipelines.wanderer:blacksmith"
VERSION = 20260101120000


class Terminal:
    """A running `blacksmith migrations` command on its own terminal."""

    def __init__(self, home: Path, *arguments: str) -> None:
        self.output = ""
        self._ours, theirs = os.openpty()
        command = [sys.executable, "-W", "error", "-m", "blacksmith_dagster.cli", "migrations"]
        env = {
            "BLACKSMITH_HOME": str(home),
            "BLACKSMITH_STORE_URL": f"sqlite:///{home}/store.db",
            FOLDER: str(home),
            WAREHOUSE: f"sqlite:///{home}/warehouse.db",
        }
        self.process = subprocess.Popen(
            [*command, arguments[0], APP, *arguments[1:]],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, **env},
            cwd=ROOT_FOLDER,
        )
        os.close(theirs)

    def wait_for(self, text: str) -> None:
        """Read until the output contains `text`."""
        until(lambda: text in self.output or not self._read(), 60, lambda: self.output)
        assert text in self.output, self.output

    def ends_with(self) -> int:
        """Read the output to its end; returns the exit code."""
        while self._read():
            pass
        return self.process.wait(60)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)

    def _read(self) -> bool:
        """Read more output; false once the command has ended."""
        ready, _, _ = select.select([self._ours], [], [], 60)
        assert ready, f"no output:\n{self.output}"
        with contextlib.suppress(OSError):  # the other side is closed
            part = os.read(self._ours, 65536)
            self.output += part.decode()
            return bool(part)
        return False


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with an empty store, and a migration of the warehouse that creates the table `t1`."""
    open_store(f"sqlite:///{tmp_path}/store.db", upgrade=True).close()
    folder = tmp_path / "migrations" / "warehouse"
    folder.mkdir(parents=True)
    (folder / f"{VERSION}.t1.up.sql").write_text("CREATE TABLE t1 (id TEXT PRIMARY KEY);")
    (folder / f"{VERSION}.t1.down.sql").write_text("DROP TABLE t1;")
    return tmp_path


@contextlib.contextmanager
def terminal(home: Path, *arguments: str) -> Iterator[Terminal]:
    terminal = Terminal(home, *arguments)
    try:
        yield terminal
    finally:
        terminal.close()


def test_states_have_colours_on_a_terminal(home: Path) -> None:
    with terminal(home, "run", "d:warehouse") as run:
        assert run.ends_with() == 0, run.output
    assert "\x1b[32msucceeded(up)" in run.output


def test_ctrl_c_at_the_question_rolls_nothing_back(home: Path) -> None:
    with terminal(home, "run", "d:warehouse") as run:
        assert run.ends_with() == 0, run.output
    with terminal(home, "rollback", "d:warehouse", "--to", "0") as rollback:
        rollback.wait_for("Roll these back?")
        rollback.process.send_signal(signal.SIGINT)
        assert rollback.ends_with() == 1
    assert "Aborted!" in rollback.output
    assert "Traceback" not in rollback.output
    assert tables(f"sqlite:///{home}/warehouse.db") == {"t1"}


def test_ctrl_c_lets_the_migration_under_way_finish_and_a_second_run_ends_at_once(
    home: Path,
) -> None:
    with terminal(home, "run", "d:lake") as run:
        until((home / "lake").exists, 60, "the first migration has begun")
        with terminal(home, "run", "d:lake") as second:
            assert second.ends_with() == 1
        assert "Error: destination/lake is being migrated by" in second.output
        assert f":{run.process.pid}" in second.output  # the holder is named
        run.process.send_signal(signal.SIGINT)
        (home / "go").touch()
        assert run.ends_with() == 1
    assert (home / "lake").read_text().split() == [str(SLOW[0])]
    assert "Traceback" not in run.output
    assert "stopped: the rest was not run" in run.output
    with terminal(home, "status", "d:lake") as status:
        assert status.ends_with() == 0
    first, second_row = status.output.splitlines()[-2:]
    assert "succeeded(up)" in first
    assert " new" in second_row
