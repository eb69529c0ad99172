"""What makes a process not live: a thread or an event loop without progress."""

import contextlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from blacksmith_dagster.errors import FencedOut, Timeout, Unavailable
from blacksmith_dagster.gateway import server
from blacksmith_dagster.scheduler import loader
from blacksmith_dagster.supervisor import Lease
from blacksmith_dagster.supervisor.lock_loop import LockLoop, LockLoops
from blacksmith_dagster.supervisor.renewals import Deadline
from tests.support.pipelines.realtime import stuck
from tests.support.waiting import until


class Step(LockLoop):
    """Works in one step, which lasts until it is released; then it fails, if it shall."""

    first_pause = longest_pause = give_back_after = 1.0
    longest_step = 0.2

    def __init__(self, stopping: threading.Event, failing: bool) -> None:
        lease = Lease("load/lake/rows", "1", Deadline(time.monotonic() + 60), bool, lambda _: None)
        supervisor: Any = SimpleNamespace(acquire=lambda *_, **__: lease)
        super().__init__(lease.key, "loading lake/rows", supervisor, "me", stopping)
        self.released = threading.Event()
        self._failing = failing

    def work(self, lease: Lease) -> None:
        self.released.wait()
        if self._failing:
            raise ValueError("no such row")
        self._stopping.wait(0.05)
        self.progressed()


@contextlib.contextmanager
def running(failing: bool = False) -> Iterator[tuple[Step, LockLoops]]:
    stopping = threading.Event()
    step = Step(stopping, failing)
    loops = LockLoops([step], stopping)
    loops.start()
    try:
        yield step, loops
    finally:
        step.released.set()
        loops.stop()


def test_a_thread_whose_step_takes_too_long_is_reported_until_it_goes_on() -> None:
    with running() as (step, loops):
        assert loops.problems == []
        until(lambda: loops.problems)
        assert loops.problems[0].startswith("loading lake/rows has made no progress for ")
        step.released.set()
        until(lambda: not loops.problems)
    assert loops.problems == []  # once it was stopped


def test_a_thread_that_failed_is_reported() -> None:
    with running(failing=True) as (step, loops):
        step.released.set()
        until(lambda: loops.failure)
        assert loops.problems == ["loading lake/rows has ended: ValueError: no such row"]


def test_a_gateway_process_without_a_heartbeat_is_reported() -> None:
    heartbeats = server._Heartbeats(2)
    assert heartbeats.problems() == []
    heartbeats._at[1] -= 60
    assert heartbeats.problems() == ["gateway worker 1 has made no progress for 60 s"]
    heartbeats.beat(1)
    assert heartbeats.problems() == []


@pytest.mark.parametrize("error", [Unavailable("the store is down"), FencedOut("taken over")])
def test_a_load_that_hangs_ends_its_thread_though_the_store_records_nothing(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "GRACE", 0.01)

    def abandon(*_: object) -> None:
        raise error

    store: Any = SimpleNamespace(loads=SimpleNamespace(abandon=abandon))
    load: Any = SimpleNamespace(id=7)
    call: Future[None] = Future()
    call.set_running_or_notify_cancel()
    with pytest.raises(Timeout, match="end this process"):
        loader._wait(call, stuck, load, store)
