"""The layers: who may import whom, with imports for type checkers counted."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]


def lint(project: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-logo", "--no-cache"]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the package, with the project's contracts."""
    shutil.copy(PROJECT / "pyproject.toml", tmp_path)
    shutil.copytree(PROJECT / "blacksmith_dagster", tmp_path / "blacksmith_dagster")
    return tmp_path


UPWARD = [
    ("pipeline/application.py", "blacksmith_dagster.gateway.server"),
    ("store/loads.py", "blacksmith_dagster.supervisor.interface"),
    ("destinations/sql.py", "blacksmith_dagster.store.records"),
    ("ingest/ingest.py", "blacksmith_dagster.scheduler.loader"),
    ("supervisor/renewals.py", "blacksmith_dagster.supervisor.interface"),
    ("gateway/app.py", "dagster"),
]


def test_layers_hold_with_type_checking_imports(project: Path) -> None:
    linted = lint(project)
    assert linted.returncode == 0, linted.stdout


@pytest.mark.parametrize(("module", "imported"), UPWARD)
def test_an_upward_import_for_a_type_checker_breaks_a_contract(
    project: Path, module: str, imported: str
) -> None:
    path = project / "blacksmith_dagster" / module
    lines = ["from typing import TYPE_CHECKING", "if TYPE_CHECKING:", f"    import {imported}"]
    path.write_text("\n".join([path.read_text(), *lines, ""]))
    linted = lint(project)
    assert linted.returncode == 1
    assert "BROKEN" in linted.stdout
