"""Runs pytest, and each failed test once more: `python -m scripts.run_tests [PYTEST_ARGUMENT ...]`.

A failed test runs again by itself, in a process of its own. If it passes there, it is a flake: the
last lines name it with its first error. The exit code is 1 if a test has failed twice, or if there
are more flakes than `MAX_FLAKES`.
"""

import subprocess
import sys

import pytest

MAX_FLAKES = 2
MAX_RERUNS = 5  # The run has failed anyway, so more would only take time.


class _Failures:
    """Keeps the first error of each failed test, by the test's id."""

    def __init__(self) -> None:
        self.errors: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.errors.setdefault(report.nodeid, _error(report))


def main(arguments: list[str]) -> int:
    """Run the tests; return the exit code."""
    failures = _Failures()
    status = pytest.main(arguments, plugins=[failures])
    if status != pytest.ExitCode.TESTS_FAILED or not failures.errors:
        return status
    if len(failures.errors) > MAX_RERUNS:
        print(f"{len(failures.errors)} tests failed: too many to run each once more")
        return status
    passed = {test for test in failures.errors if _passes_by_itself(test)}
    status, lines = verdict(failures.errors, passed)
    print("", *lines, sep="\n")
    return status


def verdict(errors: dict[str, str], passed: set[str]) -> tuple[int, list[str]]:
    """The exit code and the last lines of a run whose failed tests have run once more.

    - `errors`: the first error of each failed test.
    - `passed`: those of them that have passed by themselves.
    """
    lines = [f"failed twice: {test}" for test in errors if test not in passed]
    for test in (test for test in errors if test in passed):
        lines += [f"flake, failed and then passed by itself: {test}"]
        lines += [f"    {line}" for line in errors[test].splitlines()[:10]]
    if len(passed) > MAX_FLAKES:
        lines += [f"{len(passed)} flakes: more than {MAX_FLAKES} fail the run"]
    return int(len(passed) < len(errors) or len(passed) > MAX_FLAKES), lines


def _error(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return crash.message if crash else report.longreprtext


def _passes_by_itself(test: str) -> bool:
    print(f"\nfailed, and runs once more by itself: {test}", flush=True)
    return subprocess.run([sys.executable, "-m", "pytest", "-n0", "-q", test]).returncode == 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
