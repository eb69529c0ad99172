"""The tutorial: each of its steps is run, as it stands on the page."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.support.process_trees import kill_tree
from tests.support.services import free_port
from tests.support.waiting import until, until_ready

PROJECT = Path(__file__).parents[2]
PAGE = (PROJECT / "docs" / "tutorial.md").read_text()
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
EPOCH = re.compile(r"evt_(\w{8})0000")
NOT_RUN = re.compile(r"^(?:python3 -m venv|\. |pip install|cd ).*\n", re.MULTILINE)
"""What the wheel's test covers, and `cd`: each command runs in the project's folder."""


@dataclass(frozen=True)
class Step:
    """A block of the page: a command, or a change of a file; and what it prints."""

    text: str
    where: str | None
    output: str


def steps() -> list[Step]:
    """The steps of the page, in order, each with the `text` block that follows it."""
    found: list[Step] = []
    for language, where, text in BLOCK.findall(PAGE):
        if language == "text":
            found[-1] = Step(found[-1].text, found[-1].where, text)
        else:
            found.append(Step(text, where or None, ""))
    return found


@pytest.mark.slow
@pytest.mark.timeout(400)  # it waits for Dagster to start and to load
def test_tutorial_steps_run(tmp_path: Path) -> None:
    gateway, ui = free_port(), free_port()
    folder = tmp_path / "shop"
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("BLACKSMITH_", "DAGSTER_"))
    }
    environment |= {
        "PATH": f"{Path(sys.executable).parent}:{environment['PATH']}",
        "PYTHONPATH": str(PROJECT),
    }
    first, *others = steps()
    run(first.text.replace("init shop", f"init {folder}"), tmp_path, environment)
    page_epoch, epoch = "", ""
    with running_dev(folder, environment, gateway, ui) as start:
        for step in others:
            text = step.text.replace(":8420", f":{gateway}").replace(page_epoch, epoch)
            if step.where:
                write(folder, step.where, step.text)
            elif text == "blacksmith dev\n":
                start()
            else:
                expected = step.output.replace(page_epoch, epoch)
                ids = EPOCH.search(expected)
                if ids and not epoch:
                    page_epoch = ids[1]
                    [epoch] = EPOCH.findall(run(text, folder, environment))
                    expected = expected.replace(page_epoch, epoch)
                reads = text.startswith(("blacksmith status", "python"))
                prints(text, expected, folder, environment, seconds=90 if reads else 0)


def run(commands: str, folder: Path, environment: dict[str, str]) -> str:
    """Run the commands of a block; returns what they print."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", NOT_RUN.sub("", commands)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, f"{commands}{done.stdout}{done.stderr}"
    return done.stdout


def prints(
    commands: str, expected: str, folder: Path, environment: dict[str, str], seconds: float
) -> None:
    """The commands print the expected lines, in this order, within `seconds`; 0: at once."""
    wanted = [" ".join(line.split()) for line in expected.splitlines()]
    output = ""

    def matches() -> bool:
        nonlocal output
        output = " ".join(run(commands, folder, environment).split())
        end = 0
        for line in wanted:
            begin = output.find(line, end)
            if begin < 0:
                return False
            end = begin + len(line)
        return True

    if seconds:
        until(matches, seconds, f"{commands} prints {expected}")
    else:
        assert matches(), f"{commands}{output}"


def write(folder: Path, where: str, text: str) -> None:
    """Change a file as the title of its block says."""
    name, _, how = where.partition(", ")
    path = folder / name
    if how == "instead of its last line":
        before, _, last = path.read_text().rstrip("\n").rpartition("\n")
        assert last.startswith("blacksmith = ")
        path.write_text(f"{before}\n{text}")
    elif how == "at its end":
        path.write_text(f"{path.read_text()}\n\n{text}")
    else:
        assert not how
        path.write_text(text)


@contextmanager
def running_dev(
    folder: Path, environment: dict[str, str], gateway: int, ui: int
) -> Iterator[Callable[[], None]]:
    """A function that starts `blacksmith dev` and waits until it responds; it is ended like Ctrl-C."""
    started: list[subprocess.Popen[bytes]] = []
    log = folder / "dev.log"
    command = ["blacksmith", "dev", f"--port={gateway}", f"--ui-port={ui}"]
    urls = [f"http://127.0.0.1:{gateway}/_health", f"http://127.0.0.1:{ui}/server_info"]

    def start() -> None:
        with log.open("wb") as file:
            started.append(
                subprocess.Popen(
                    [str(Path(sys.executable).with_name(command[0])), *command[1:]],
                    cwd=folder,
                    env=environment,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
        until_ready(started[0], lambda: all(map(responds, urls)), 120, log.read_text)

    try:
        yield start
        [dev] = started
        dev.send_signal(signal.SIGINT)
        assert dev.wait(60) == 0, log.read_text()
    finally:
        for dev in started:
            kill_tree(dev)


def responds(url: str) -> bool:
    """Whether a GET of the URL succeeds."""
    try:
        return httpx.get(url, timeout=5).is_success
    except httpx.HTTPError:
        return False
