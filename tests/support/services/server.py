"""A server that tests start, stop and kill: what the services have in common."""

import os
import shutil
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support import markers
from tests.support.process_trees import kill_tree
from tests.support.services import ROOT, private_folder, start
from tests.support.waiting import until_ready


class Server(ABC):
    """A server that the test starts, stops and kills. Its data stay in `folder` until `close`.

    - `service`: its name, for people; `marker`: pytest's marker of the tests that start it.
    - `drop`: whether it runs as an unprivileged user even if we are root.
    - `process`: the server, the parent of all its processes; `None` while it is down.
    """

    service: str
    marker: str
    drop = ROOT

    def __init__(self) -> None:
        self.folder = private_folder(self.service.lower())
        self.process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def _command(self) -> Sequence[str | Path]:
        """The command line of the server; writes its configuration if it has one."""

    @abstractmethod
    def ready(self) -> bool:
        """Whether it serves."""

    def _environment(self) -> Mapping[str, str]:
        return {"HOME": str(self.folder), "LC_ALL": "C.UTF-8", "PATH": os.environ["PATH"]}

    @property
    def log(self) -> str:
        """Everything that it printed."""
        return (self.folder / "output").read_text()

    def launch(self) -> None:
        """Start the server without waiting for it."""
        assert self.process is None, "already started"
        markers.check(self.marker)
        self.process = start(
            self._command(),
            folder=self.folder,
            env=self._environment(),
            log=self.folder / "output",
            drop=self.drop,
        )

    def start(self) -> None:
        """Start the server and wait until it serves."""
        self.launch()
        self.until_ready()

    def until_ready(self) -> None:
        """Wait until the server, once launched, serves; if it does not, kill it."""
        assert self.process is not None, "not started"
        try:
            # After a kill, some replay a log first.
            until_ready(self.process, self.ready, 60, lambda: self.log)
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """Stop the server as an operator does, and wait until it has ended."""
        if self.process is not None:
            self._end(self.process.pid, signal.SIGTERM)

    def _end(self, pid: int, how: signal.Signals) -> None:
        """Send the signal to the process `pid` of the server, and wait until the server has ended."""
        assert self.process is not None
        os.kill(pid, how)
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            kill_tree(self.process)
        self.process = None

    def kill(self) -> None:
        """SIGKILL to the server and all its children at once."""
        if self.process is not None:
            kill_tree(self.process)
            self.process = None

    def close(self) -> None:
        """End the server and remove its data."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
