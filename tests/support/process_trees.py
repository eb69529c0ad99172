"""Whether a process is alive, and how it is ended with all that it has started."""

import contextlib
import signal
import subprocess

import psutil

from tests.support.waiting import until


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def kill_tree(process: "subprocess.Popen[bytes]") -> None:
    """SIGKILL to a process and all its descendants; returns when all have ended."""
    try:
        parent = psutil.Process(process.pid)
        parent.suspend()  # so that it starts no child meanwhile
        children = parent.children(recursive=True)
    except psutil.NoSuchProcess:
        children = []
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    process.send_signal(signal.SIGKILL)
    process.wait()
    until(lambda: not any(child.is_running() and is_alive(child.pid) for child in children))
