"""The threads in which destinations' functions run."""

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import wait
from typing import Any

import pytest

from blacksmith_dagster import Batch, Destination, Source
from blacksmith_dagster.scheduler.executor import Executor

departed = Source("airport").accept("departed")
EMPTY: Batch[Any] = Batch("lake/rows", [])


@pytest.fixture
def executor() -> Iterator[Executor]:
    executor = Executor()
    yield executor
    executor.close()


def test_a_connection_is_opened_once_and_used_and_closed_in_one_thread(executor: Executor) -> None:
    recorded: list[tuple[str, int]] = []

    def open_lake() -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(":memory:")  # sqlite3 refuses another thread by itself
        recorded.append(("opened", threading.get_ident()))
        yield connection
        connection.close()
        recorded.append(("closed", threading.get_ident()))

    lake = Destination("lake", connect=open_lake)

    @lake.event(receives=departed)
    def rows(batch: Batch[Any], connection: sqlite3.Connection) -> None:
        connection.execute("select 1")
        recorded.append(("rows", threading.get_ident()))

    @lake.event(receives=departed)
    def more(batch: Batch[Any], connection: sqlite3.Connection) -> None:
        connection.execute("select 1")
        recorded.append(("more", threading.get_ident()))

    assert recorded == []  # nothing is opened before it is needed
    for event in (rows, more, rows):
        assert executor.call(event, EMPTY).exception(10) is None
    executor.close()
    assert [what for what, _ in recorded] == ["opened", "rows", "more", "rows", "closed"]
    assert len({thread for _, thread in recorded}) == 1


def test_what_connect_returned_is_closed_by_its_close(executor: Executor) -> None:
    class Service:
        closed = False

        def close(self) -> None:
            self.closed = True

    service = Service()
    lake = Destination("lake", connect=lambda: service)

    @lake.event(receives=departed)
    def rows(batch: Batch[Any], connection: Service) -> None:
        assert connection is service

    assert executor.call(rows, EMPTY).exception(10) is None
    assert not service.closed
    executor.close()
    assert service.closed


def test_what_is_raised_is_handed_back_and_the_next_call_works(executor: Executor) -> None:
    raising: list[BaseException] = [SystemExit(1), ValueError("no")]
    opened = 0

    def connect() -> object:
        nonlocal opened
        opened += 1
        if opened == 1:
            raise ConnectionError("refused")
        return object()

    lake = Destination("lake", connect=connect)

    @lake.event(receives=departed)
    def rows(batch: Batch[Any], connection: object) -> None:
        if raising:
            raise raising.pop()

    errors = [executor.call(rows, EMPTY).exception(10) for _ in range(4)]
    assert [type(error) for error in errors] == [
        ConnectionError,
        ValueError,
        SystemExit,
        type(None),
    ]
    assert opened == 4


def test_after_an_error_the_connection_is_closed_and_the_next_call_opens_another(
    executor: Executor, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be what has broken: in a process that runs for weeks nothing else would fix it."""

    class Service:
        broken = closed = False

        def close(self) -> None:
            self.closed = True
            if self.broken:
                raise ConnectionError("closed by the other side")

    opened: list[Service] = []

    def connect() -> Service:
        opened.append(Service())
        return opened[-1]

    lake = Destination("lake", connect=connect)

    @lake.event(receives=departed)
    def rows(batch: Batch[Any], connection: Service) -> None:
        assert not connection.closed
        if connection.broken:
            raise ConnectionError("reset by peer")

    assert executor.call(rows, EMPTY).exception(10) is None
    opened[0].broken = True
    assert str(executor.call(rows, EMPTY).exception(10)) == "reset by peer"
    assert executor.call(rows, EMPTY).exception(10) is None
    assert [service.closed for service in opened] == [True, False]
    assert "connection of destination lake was not closed: ConnectionError" in caplog.text
    executor.close()
    assert [service.closed for service in opened] == [True, True]


def test_destinations_do_not_wait_for_each_other(executor: Executor) -> None:
    together = threading.Barrier(2, timeout=10)
    calls = []
    for name in ("lake", "pond"):
        destination = Destination(name)

        @destination.event(receives=departed)
        def rows(batch: Batch[Any]) -> None:
            together.wait()

        calls.append(executor.call(rows, EMPTY))
    wait(calls, timeout=10)
    assert [call.exception(0) for call in calls] == [None, None]


def test_a_call_that_does_not_return_keeps_nobody_from_closing(executor: Executor) -> None:
    begun, release = threading.Event(), threading.Event()
    lake = Destination("lake")

    @lake.event(receives=departed)
    def rows(batch: Batch[Any]) -> None:
        begun.set()
        release.wait(30)

    call = executor.call(rows, EMPTY)
    assert begun.wait(10)
    executor.close()
    assert not call.done()  # it has not waited for it
    release.set()
    assert call.exception(10) is None


def test_connections_are_closed_at_the_processs_end() -> None:
    program = """
from blacksmith_dagster import Batch, Destination, Source
from blacksmith_dagster.scheduler.executor import Executor

def connect():
    yield None
    print("closed", flush=True)

lake = Destination("lake", connect=connect)

@lake.event(receives=Source("airport").accept("departed"))
def rows(batch, connection): ...

Executor().call(rows, Batch("lake/rows", [])).result(10)
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout == "closed\n"
