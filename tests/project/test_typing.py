"""What a user writes is typed: tests/typing holds a pipeline and the mistakes one makes."""

import importlib
import os
import subprocess
import sys
from datetime import date
from itertools import product
from pathlib import Path

import pytest

from blacksmith_dagster.cli.init import DESTINATIONS, SOURCES, project_files

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


@pytest.mark.slow
@pytest.mark.parametrize("checker", CHECKERS)
def test_users_pipeline_is_typed(checker: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", *CHECKERS[checker]]
    if checker == "mypy":
        command += new_projects(tmp_path)
    environment = {**os.environ, "MYPYPATH": str(tmp_path)}
    done = subprocess.run(
        command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def new_projects(folder: Path) -> list[str]:
    """The modules that `blacksmith init` writes, each under a name of its own."""
    modules = {}
    for source, destination in product(SOURCES, DESTINATIONS):
        written = project_files(source, destination, "events", date(2026, 1, 1))
        name = f"{source}_{destination}"
        modules[name] = written["pipeline.py"]
        modules[f"test_{name}"] = written["test_pipeline.py"].replace(
            "from pipeline", f"from {name}"
        )
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)
    return [str(folder / f"{name}.py") for name in modules]


def test_users_pipeline_runs() -> None:
    pipeline = importlib.import_module("tests.typing.pipeline")
    assert pipeline.blacksmith.receivers.keys() >= {"airport/departed", "lake/movements.discarded"}
