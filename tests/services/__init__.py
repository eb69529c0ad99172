"""Real services for tests: one module each, and here what they share.

A service binds to the loopback only, on a free port, keeps its data in a temporary folder, and runs
as a child that is waited for. One that cannot be had raises `Unavailable` with the reason.
"""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

ROOT = os.geteuid() == 0

# A child's --pdeathsig means the death of the thread that started it: one thread starts them all
# and lives as long as the session, whichever thread of a test restarts a server.
_starter = ThreadPoolExecutor(1, thread_name_prefix="services")


class Unavailable(Exception):
    """The service cannot run here. `service` is its name, `reason` what is missing."""

    def __init__(self, service: str, reason: str) -> None:
        super().__init__(f"{service}: {reason}")
        self.service = service
        self.reason = reason


def free_port() -> int:
    """A port of the loopback that nobody uses.

    Below the range that outgoing connections take theirs from: a server that was killed finds its
    port still free when it is started again.
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
    """A new temporary folder that belongs to whom `unprivileged` runs a command as.

    Not pytest's: only its owner may enter that.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"blacksmith-{prefix}-"))
    if ROOT:
        shutil.chown(folder, "nobody", "nogroup")
    return folder


def unprivileged(command: Sequence[str | Path], *, drop: bool = ROOT) -> list[str]:
    """The command line that runs `command` as nobody when we are root, as ourselves otherwise.

    The child gets SIGINT when the thread that started it ends, so that no service outlives us.
    """
    who = ["--reuid=nobody", "--regid=nogroup", "--clear-groups"] if drop else []
    return ["setpriv", "--pdeathsig", "INT", *who, "--", *map(str, command)]


def start(
    command: Sequence[str | Path],
    *,
    folder: Path,
    env: Mapping[str, str],
    log: Path,
    drop: bool = ROOT,
) -> subprocess.Popen[bytes]:
    """Start a service as a child in `folder`; what it prints is appended to `log`.

    Without `drop` it stays root if we are: nobody may not be let into the folder of its program.
    """
    with log.open("ab") as out:
        return _starter.submit(
            subprocess.Popen,
            unprivileged(command, drop=drop),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=env,
            cwd=folder,
        ).result()


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a process and all that descend from it; returns when none of them is left."""
    try:
        parent = psutil.Process(process.pid)
        parent.suspend()  # it starts no child while we count them
        children = parent.children(recursive=True)
    except psutil.NoSuchProcess:
        children = []
    for each in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    process.send_signal(signal.SIGKILL)
    process.wait()
    while any(_lives(each) for each in children):
        time.sleep(0.01)


def _lives(process: psutil.Process) -> bool:
    try:
        # Orphans are init's to reap, and some take their time: a zombie holds nothing any more.
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
