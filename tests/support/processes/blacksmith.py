"""Real `blacksmith` processes, started as users start them."""

import contextlib
import os
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import httpx
import psutil

from tests.support.process_trees import kill_tree
from tests.support.services import free_port
from tests.support.waiting import until_ready

ROOT_FOLDER = Path(__file__).parents[3]
GATEWAY_PIPELINE = "tests.support.pipelines.gateway:blacksmith"


@contextlib.contextmanager
def repeated(action: Callable[[], object], rate: float) -> Iterator[None]:
    """Call `action` `rate` times a second, in a thread, until the block ends."""
    ending = threading.Event()

    def run() -> None:
        due = time.monotonic()
        while not ending.is_set():
            action()
            due += 1 / rate
            ending.wait(max(0.0, due - time.monotonic()))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join(60)


class BlacksmithProcess:
    """A running `blacksmith` command. Its output is in `log`. `folder` has the package that it runs."""

    def __init__(
        self,
        arguments: Sequence[str],
        store_url: str,
        env: Mapping[str, str] | None = None,
        folder: Path = ROOT_FOLDER,
    ) -> None:
        self._folder = folder
        self._command = [sys.executable, "-W", "error", "-m", "blacksmith_dagster.cli", *arguments]
        self._home = Path(tempfile.mkdtemp(prefix="blacksmith-home-"))
        self._env = {
            **os.environ,
            "BLACKSMITH_HOME": str(self._home),
            "BLACKSMITH_STORE_URL": store_url,
            "PYTHONUNBUFFERED": "1",
            **(env or {}),
        }
        self._log = self._home / "log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        """Its output since it was first started."""
        return self._log.read_text() if self._log.exists() else ""

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self.process is not None, "not started"
        return self.process.pid

    def start(self) -> None:
        """Start the process; returns at once."""
        assert self.process is None, "already started"
        with self._log.open("ab") as out:
            self.process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=self._env,
                cwd=self._folder,
            )

    def stop(self, seconds: float = 30.0) -> int:
        """SIGTERM; returns the exit code."""
        assert self.process is not None, "not started"
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.wait(seconds)
        finally:
            self.kill()

    def wait(self, seconds: float = 30.0) -> int:
        """Wait until it has ended; returns the exit code."""
        assert self.process is not None, "not started"
        return self.process.wait(seconds)

    def kill(self) -> None:
        """SIGKILL to the process and all its descendants."""
        if self.process is not None:
            kill_tree(self.process)
            self.process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class GatewayProcess(BlacksmithProcess):
    """A `blacksmith gateway`; after `start` it accepts events."""

    def __init__(
        self,
        store_url: str,
        app: str = GATEWAY_PIPELINE,
        *,
        workers: int = 1,
        certificate: Path | None = None,
        trusted_proxies: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        folder: Path = ROOT_FOLDER,
    ) -> None:
        self.port = free_port()
        self.url = f"{'https' if certificate else 'http'}://127.0.0.1:{self.port}"
        self.verify: ssl.SSLContext | bool = True
        arguments = ["gateway", f"--app={app}", f"--port={self.port}", f"--workers={workers}"]
        arguments += [f"--trusted-proxy={proxy}" for proxy in trusted_proxies]
        if certificate is not None:
            arguments.append(f"--tls-cert={certificate}")
            self.verify = ssl.create_default_context(cafile=str(certificate))
        super().__init__(arguments, store_url, {"CLOSED_TOKEN": "a-token", **(env or {})}, folder)

    def start(self) -> None:
        """Start it and wait until it is ready."""
        super().start()
        assert self.process is not None
        until_ready(self.process, self.ready, 30, lambda: self.log)

    def ready(self) -> bool:
        """Whether it can accept events."""
        with contextlib.suppress(httpx.TransportError):
            return self.client_get("/_health").status_code == 200
        return False

    def client_get(self, path: str) -> httpx.Response:
        """GET over a new connection."""
        return httpx.get(self.url + path, verify=self.verify, timeout=10, trust_env=False)

    def client(self) -> httpx.Client:
        """An HTTP client of this gateway."""
        return httpx.Client(base_url=self.url, verify=self.verify, timeout=30, trust_env=False)

    def workers(self) -> list[psutil.Process]:
        """The processes that it has started."""
        return psutil.Process(self.pid).children()


@contextlib.contextmanager
def peak_memory(process: GatewayProcess) -> Iterator[Callable[[], int]]:
    """By how many bytes the peak of the process's memory exceeded its memory at the beginning."""
    Path(f"/proc/{process.pid}/clear_refs").write_text("5")
    before = psutil.Process(process.pid).memory_info().rss
    yield lambda: _peak(process.pid) - before


def _peak(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")
