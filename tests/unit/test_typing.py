"""What a user writes is typed: tests/typing holds a pipeline and the mistakes one makes."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
CHECKERS = {
    "mypy": [
        "mypy",
        "--strict",
        "--config-file=",
        "tests/typing/pipeline.py",
        "tests/typing/listening.py",
        "tests/typing/senders.py",
        "tests/typing/mistakes.py",
    ],
    "pyright": ["pyright", "--pythonpath", sys.executable, "--warnings"],
}


@pytest.mark.parametrize("checker", CHECKERS)
def test_users_pipeline_is_typed(checker: str) -> None:
    command = [sys.executable, "-m", *CHECKERS[checker]]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_users_pipeline_runs() -> None:
    pipeline = importlib.import_module("tests.typing.pipeline")
    assert pipeline.blacksmith.receivers.keys() >= {"airport/departed", "lake/movements.discarded"}
