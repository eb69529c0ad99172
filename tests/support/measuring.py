"""A pytest plugin: which tests count when coverage is measured.

`BLACKSMITH_TEST_MEASURED` names folders of `tests/`, such as "unit contract". Coverage, which
`make coverage` starts with the process, then runs during their tests only, and in no process that
tests start.
"""

import os
from collections.abc import Generator
from pathlib import Path

import coverage
import pytest

_TESTS = Path(__file__).resolve().parents[1]


class _Measured:
    """Runs coverage during the tests of some folders; their tests come file by file."""

    def __init__(self, running: coverage.Coverage, folders: list[Path]) -> None:
        self._coverage = running
        self._folders = folders
        self._runs = True

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        self._run(any(folder in item.path.parents for folder in self._folders))
        return (yield)

    def _run(self, wanted: bool) -> None:
        if wanted and not self._runs:
            self._coverage.start()
        elif self._runs and not wanted:
            self._coverage.stop()
        self._runs = wanted


def pytest_configure(config: pytest.Config) -> None:
    running = coverage.Coverage.current()
    folders = os.environ.get("BLACKSMITH_TEST_MEASURED", "").split()
    if running is not None and folders:
        # The workers of xdist are to be measured too, so only they remove what their processes inherit.
        if hasattr(config, "workerinput") or config.getoption("dist", "no") == "no":
            os.environ.pop("COVERAGE_PROCESS_START", None)
        config.pluginmanager.register(_Measured(running, [_TESTS / name for name in folders]))


def pytest_sessionfinish() -> None:
    running = coverage.Coverage.current()
    if running is not None:
        running.save()  # a worker of xdist may end without its exit handlers
