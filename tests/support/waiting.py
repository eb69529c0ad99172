"""Waits for a condition, never for a time."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(condition: Callable[[], T], seconds: float = 30.0, what: str = "") -> T:
    """Return the value of `condition` once it is true; fail if it is not within `seconds`."""
    deadline = time.monotonic() + seconds
    looked = time.monotonic()
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what or condition}"
        took = time.monotonic() - looked
        time.sleep(min(max(took, 0.01), 0.2))  # who is waited for needs the core too
        looked = time.monotonic()
    return value
