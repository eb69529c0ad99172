"""Starts, pauses, kills and restarts processes that load (`loading_main`)."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

from blacksmith_dagster.errors import Unavailable
from blacksmith_dagster.store import Store, open_store
from tests.support.pipelines.loading import FLIGHTS, RECORDING, blacksmith
from tests.support.processes.blacksmith import ROOT_FOLDER
from tests.support.processes.loading_main import TIMED_OUT, UNAVAILABLE
from tests.support.waiting import until

_MAIN = "tests.support.processes.loading_main"


class LoaderProcess:
    """A process that loads due jobs of some destination events until it is stopped.

    It records in `folder`; `package` is the folder with the package that it runs.
    """

    def __init__(
        self,
        store_url: str,
        folder: Path,
        *arguments: str,
        main: str = _MAIN,
        env: Mapping[str, str] | None = None,
        package: Path = ROOT_FOLDER,
    ) -> None:
        self._package = package
        self._command = [sys.executable, "-W", "error", "-m", main, *(arguments or (FLIGHTS,))]
        self._env = {
            **os.environ,
            "BLACKSMITH_STORE_URL": store_url,
            RECORDING: str(folder),
            "PYTHONUNBUFFERED": "1",
            **(env or {}),
        }
        self._log = folder / f"loader-{id(self)}.log"
        self.process = self._start()
        self.starts = 1

    def _start(self) -> "subprocess.Popen[bytes]":
        with self._log.open("ab") as out:
            return subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=self._env,
                cwd=self._package,
            )

    @property
    def log(self) -> str:
        """Its output since it was first started."""
        return self._log.read_text()

    def until(self, condition: Callable[[], object], seconds: float = 60.0) -> None:
        """Wait for a condition; fails with the process's output."""
        until(condition, seconds, lambda: f"it has printed:\n{self.log[-5000:]}")

    def start_again_if_ended(self) -> None:
        """Start it again, as Dagster's next tick does. Fails if the exit code is unexpected."""
        if (code := self.process.poll()) is not None:
            assert code in (-signal.SIGKILL, TIMED_OUT, UNAVAILABLE), (
                f"ended with {code}:\n{self.log}"
            )
            self.process = self._start()
            self.starts += 1

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()

    def pause(self, store: Store) -> None:
        """SIGSTOP, but not within a write, which would block all others by SQLite's write lock."""
        while True:
            self.process.send_signal(signal.SIGSTOP)
            probe = threading.Thread(target=_write, args=(store,), daemon=True)
            probe.start()
            probe.join(1.0)
            if not probe.is_alive():
                return
            self.resume()
            probe.join()

    def resume(self) -> None:
        """SIGCONT."""
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> int:
        """SIGTERM, once it has started far enough to handle that; returns the exit code."""
        until(self._handles_sigterm, what="it handles SIGTERM")
        self.process.terminate()
        return self.process.wait(30)

    def _handles_sigterm(self) -> bool:
        if self.process.poll() is not None:
            return True
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        caught = int(status.partition("SigCgt:")[2].split()[0], 16)
        return bool(caught >> (signal.SIGTERM - 1) & 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def _write(store: Store) -> None:
    with store.database.writing():
        pass


def keep_running(loaders: Sequence[LoaderProcess], store: Store, paths: Sequence[str]) -> None:
    """Start the loaders again whenever they end, until nothing is pending."""

    def settled() -> bool:
        for loader in loaders:
            loader.start_again_if_ended()
        try:
            return all(store.counts.of(path).pending == 0 for path in paths)
        except Unavailable:  # the database restarts
            return False

    loaders[0].until(settled, 120)


@contextlib.contextmanager
def opened(store_url: str) -> Iterator[Store]:
    """The store, with the pipeline registered."""
    store = open_store(store_url, upgrade=True)
    try:
        store.register(blacksmith)
        yield store
    finally:
        store.close()
