"""Real services for tests: one module per service, and here what they share.

A service listens on a free port of the loopback only, keeps its data in a temporary folder and runs
as a child process. Without its program, creating it raises `Unavailable` with the reason.
"""

import os
import random
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = os.geteuid() == 0
UNPRIVILEGED = "nobody", "nogroup"  # the user and the group of services when we are root

# By these variables `left_running` finds what a session has started, and the test that started it.
SESSION = "BLACKSMITH_TEST_SESSION"
TEST = "PYTEST_CURRENT_TEST"  # set by pytest: "<test> (<phase>)"

# A child's --pdeathsig fires when the thread that started it ends. So one thread starts them all and
# lives as long as the session, whichever thread of a test restarts a server.
_starter = ThreadPoolExecutor(1, thread_name_prefix="services")


class Unavailable(Exception):
    """The service cannot run here. `service` is its name, `reason` what is missing."""

    def __init__(self, service: str, reason: str) -> None:
        super().__init__(f"{service}: {reason}")
        self.service = service
        self.reason = reason


def free_port() -> int:
    """An unused port of the loopback.

    It is below the range of outgoing connections, so that a killed server finds its port still free
    when it starts again.
    """
    while True:
        port = random.randint(20_000, 32_000)
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                s.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def private_folder(prefix: str) -> Path:
    """A new temporary folder, owned by the user that `unprivileged` runs commands as.

    It is not in pytest's folder, which only its owner may enter.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"blacksmith-{prefix}-"))
    if ROOT:
        shutil.chown(folder, *UNPRIVILEGED)
    return folder


def unprivileged(command: Sequence[str | Path], *, drop: bool = ROOT) -> list[str]:
    """The command line that runs `command` as an unprivileged user if we are root, else as ourselves.

    The child gets SIGINT when the thread that started it ends, so that no service outlives the tests.
    """
    user, group = UNPRIVILEGED
    identity = [f"--reuid={user}", f"--regid={group}", "--clear-groups"] if drop else []
    return ["setpriv", "--pdeathsig", "INT", *identity, "--", *map(str, command)]


def start(
    command: Sequence[str | Path],
    *,
    folder: Path,
    env: Mapping[str, str],
    log: Path,
    drop: bool = ROOT,
) -> subprocess.Popen[bytes]:
    """Start a service as a child in `folder`; its output is appended to `log`.

    Without `drop` it stays root if we are, for a program in a folder that only root may enter.
    """
    found_by = {name: os.environ[name] for name in (SESSION, TEST) if name in os.environ}
    with log.open("ab") as out:
        return _starter.submit(
            subprocess.Popen,
            unprivileged(command, drop=drop),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={**found_by, **env},
            cwd=folder,
        ).result()
