"""A pytest plugin: what starts a process ends it, also when the test fails.

At the end of a session, or of an xdist worker's part of it, no process may be left that a test has
started. A process that is left is ended, and the test that started it fails.
"""

import contextlib
import os
import uuid
from collections.abc import Generator, Iterator
from typing import NamedTuple

import psutil
import pytest
from xdist.workermanage import WorkerController

from tests.support.services import SESSION, TEST

_SECONDS_TO_END = 2.0  # for what a test has told to end and did not wait for


class LeftRunning(NamedTuple):
    """A process that was not ended, and the test that started it."""

    test: str
    command: str


def pytest_configure() -> None:
    os.environ[SESSION] = uuid.uuid4().hex


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    result = yield  # after it, the fixtures of the session have been closed too
    if hasattr(session.config, "workerinput"):
        output: dict[str, object] = session.config.workeroutput  # type: ignore[attr-defined]
        output["left_running"] = [tuple(left) for left in _end_all()]
    elif session.config.getoption("dist", "no") == "no":
        _report(session.config, _end_all())
    return result


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: WorkerController) -> None:
    output = getattr(node, "workeroutput", {})  # a worker that has crashed has none
    _report(node.config, [LeftRunning(*left) for left in output.get("left_running", [])])


def _report(config: pytest.Config, left: list[LeftRunning]) -> None:
    for test, command in left:
        report = pytest.TestReport(
            nodeid=test,
            location=(test.partition("::")[0], None, test),
            keywords={},
            outcome="failed",
            longrepr=f"left running: {command}",
            when="teardown",
        )
        config.hook.pytest_runtest_logreport(report=report)


def _end_all() -> list[LeftRunning]:
    """End what is left, and describe it."""
    _, left = psutil.wait_procs(_started(), timeout=_SECONDS_TO_END)
    described = []
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            described.append(LeftRunning(_test_of(process), " ".join(process.cmdline())))
            process.kill()
    return sorted(described)


def _started() -> set[psutil.Process]:
    started = {*psutil.Process().children(recursive=True), *_of_this_session()}
    return {process for process in started if not _ends_with_this(process)}


def _of_this_session() -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(SESSION) == os.environ[SESSION]:
                yield process


def _ends_with_this(process: psutil.Process) -> bool:
    """Whether it is Python's own helper, which ends with this process."""
    with contextlib.suppress(psutil.Error):
        return "multiprocessing.resource_tracker" in " ".join(process.cmdline())
    return False


def _test_of(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.AccessDenied):
        return process.environ().get(TEST, "").rpartition(" (")[0] or "unknown test"
    return "unknown test"
