"""The one way to wait: for a condition, never for a time."""

import subprocess
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(
    condition: Callable[[], T | None], seconds: float = 30.0, what: str | Callable[[], str] = ""
) -> T:
    """Return the value of `condition` once it is true; fail if it is not within `seconds`.

    `what`: what is waited for, or a function that says what is the case instead, when it fails.
    """
    deadline = time.monotonic() + seconds
    looked = time.monotonic()
    while not (value := condition()):
        if time.monotonic() >= deadline:
            shown = what() if callable(what) else what
            raise AssertionError(f"not within {seconds} s: {shown or condition}")
        took = time.monotonic() - looked
        time.sleep(min(max(took, 0.01), 0.2))  # leave the core to the process that is waited for
        looked = time.monotonic()
    return value


def until_ready(
    process: "subprocess.Popen[bytes]",
    ready: Callable[[], object],
    seconds: float = 60.0,
    output: Callable[[], str] = str,
) -> None:
    """Return once a process is ready; fail, with its `output`, when it ends instead."""

    def is_ready() -> object:
        code = process.poll()
        assert code is None, f"the process has ended with {code}:\n{output()[-5000:]}"
        return ready()

    until(is_ready, seconds, lambda: f"the process is ready:\n{output()[-5000:]}")


def throughout(condition: Callable[[], object], seconds: float) -> None:
    """Fail if `condition` is not true all the time for `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert condition(), f"{condition} is no longer true"
        time.sleep(0.05)
