"""How the suite judges itself: flakes are named, and what tests leave running fails them."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import psutil

from scripts.run_tests import verdict

PROJECT = Path(__file__).resolve().parents[2]

TESTS = """
import pathlib

def passes_from(run, name):
    runs = pathlib.Path(name)
    runs.write_text(runs.read_text() + "+" if runs.exists() else "+")
    if len(runs.read_text()) < run:
        raise RuntimeError(f"the error of {name}")

def test_passes():
    pass
"""

LEAVING = """
import subprocess

def test_leaves_two():
    subprocess.Popen(["sleep", "6001"])  # a child
    subprocess.run("sleep 6002 &", shell=True)  # an orphan
"""


def test_flake_is_named_and_third_fails_the_run(tmp_path: Path) -> None:
    flakes = [("first", 2), ("second", 2), ("third", 2)]

    code, output = run_suite(tmp_path / "two", flakes[:2])
    assert code == 0
    assert output[-4:] == [
        "flake, failed and then passed by itself: test_suite.py::test_first",
        "    RuntimeError: the error of first",
        "flake, failed and then passed by itself: test_suite.py::test_second",
        "    RuntimeError: the error of second",
    ]

    code, output = run_suite(tmp_path / "three", flakes)
    assert code == 1
    assert "    RuntimeError: the error of third" in output[-3:]
    assert output[-1] == "3 flakes: more than 2 fail the run"


def test_a_test_that_fails_twice_fails_the_run() -> None:
    assert verdict({"broken": "an error", "flaky": "another"}, passed={"flaky"}) == (
        1,
        ["failed twice: broken", "flake, failed and then passed by itself: flaky", "    another"],
    )


def test_many_failures_are_not_run_again(tmp_path: Path) -> None:
    code, output = run_suite(tmp_path, [(f"broken_{n}", 100) for n in range(6)])
    assert code == 1
    assert output[-1] == "6 tests failed: too many to run each once more"
    assert (tmp_path / "broken_5").read_text() == "+"


def test_what_a_test_leaves_running_fails_it_and_is_ended(tmp_path: Path) -> None:
    code, output = run_suite(tmp_path, [], LEAVING)
    assert code == 1
    assert output[-1] == "failed twice: test_suite.py::test_leaves_two"
    left = [line for line in output if line.startswith("left running: ")]
    assert left == 2 * ["left running: sleep 6001", "left running: sleep 6002"]
    assert not [process for process in psutil.process_iter() if is_left(process)]


def is_left(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.cmdline() in (["sleep", "6001"], ["sleep", "6002"])
    return False


def run_suite(folder: Path, tests: list[tuple[str, int]], code: str = "") -> tuple[int, list[str]]:
    """Run a suite of tests, each of which passes from its n-th run on; its exit code and output."""
    folder.mkdir(exist_ok=True)
    cases = [f"def test_{name}():\n    passes_from({run}, '{name}')\n" for name, run in tests]
    (folder / "test_suite.py").write_text("\n".join([TESTS, code, *cases]))
    (folder / "pytest.ini").write_text("[pytest]\n")
    done = subprocess.run(
        [sys.executable, PROJECT / "scripts/run_tests.py", "-n1"],
        cwd=folder,
        env={
            **os.environ,
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTEST_PLUGINS": "xdist.plugin,tests.support.left_running",
            "PYTHONPATH": str(PROJECT),
        },
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout.splitlines()
