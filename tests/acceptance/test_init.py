"""What `blacksmith init` writes: a project that is typed, tested, and runs as it is."""

import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner

from blacksmith_dagster.cli import main
from blacksmith_dagster.cli.init import DESTINATIONS, SOURCES
from blacksmith_dagster.orchestration import build_definitions

PROJECT = Path(__file__).parents[2]
PAIRS = [
    ("http", "sqlite"),
    ("github", "postgres"),
    ("stripe", "http"),
    ("segment", "python"),
]
"""Each source and each destination once: a template does not know what it is combined with."""

FILES = {
    ".dockerignore",
    ".env",
    ".env.example",
    ".gitignore",
    "dagster.yaml",
    "definitions.py",
    "pipeline.py",
    "pyproject.toml",
    "test_pipeline.py",
}


def init(folder: Path, *options: str) -> str:
    """Run `blacksmith init`; returns what it prints."""
    result = CliRunner().invoke(main, ["init", str(folder), *options])
    assert result.exit_code == 0, result.output
    return result.output


def pipeline_of(folder: Path, name: str) -> ModuleType:
    """The project's pipeline, imported under a name of its own."""
    spec = spec_from_file_location(name, folder / "pipeline.py")
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pairs_have_all_templates() -> None:
    assert {source for source, _ in PAIRS} == SOURCES.keys()
    assert {destination for _, destination in PAIRS} == DESTINATIONS.keys()


@pytest.mark.parametrize(("source", "destination"), PAIRS)
def test_the_projects_test_passes(source: str, destination: str, tmp_path: Path) -> None:
    folder = tmp_path / "My events"
    init(folder, f"--source={source}", f"--destination={destination}")
    assert {path.name for path in folder.iterdir()} == FILES
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(("source", "destination"), PAIRS)
def test_the_project_is_formatted(source: str, destination: str, tmp_path: Path) -> None:
    init(tmp_path / "new", f"--source={source}", f"--destination={destination}")
    for command in (
        ["check", "--isolated", "--select=E,F,I,B,UP,RUF,ANN", "--ignore=ANN401"],
        ["format", "--isolated", "--check"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command],
            cwd=tmp_path / "new",
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("source", "destination"), PAIRS)
def test_what_the_gateway_and_dagster_need_is_there(
    source: str, destination: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    init(tmp_path / "new", f"--source={source}", f"--destination={destination}")
    for line in (tmp_path / "new" / ".env").read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.partition("=")
            assert value
            monkeypatch.setenv(name, value)
    app = pipeline_of(tmp_path / "new", f"new_{source}_{destination}").blacksmith
    for receiver in [*app.source_events.values(), *app.webhooks]:
        if receiver.auth is not None:
            receiver.auth.check()
    assert build_definitions(app, start_date="2026-01-01").assets


def test_each_project_has_its_own_secrets(tmp_path: Path) -> None:
    secrets = set()
    for name in ("one", "two"):
        init(tmp_path / name, "--source=github")
        environment = tmp_path / name / ".env"
        assert environment.stat().st_mode & 0o077 == 0
        [secret] = [
            line for line in environment.read_text().splitlines() if line.startswith("GITHUB_")
        ]
        assert secret not in (tmp_path / name / ".env.example").read_text()
        secrets.add(secret)
    assert len(secrets) == 2
    for ignored in (".gitignore", ".dockerignore"):
        assert ".env\n" in (tmp_path / "one" / ignored).read_text()


def test_init_refuses_a_folder_that_has_files(tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / f"{name}.txt").write_text("mine")
    result = CliRunner().invoke(main, ["init", str(tmp_path)])
    assert result.exit_code == 1
    assert f"{tmp_path} already has files (a.txt, b.txt, c.txt and 1 more)" in result.output
    assert "blacksmith init FOLDER" in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{name}.txt" for name in "abcd"]
    refused = CliRunner().invoke(main, ["init", str(tmp_path / "a.txt")])
    assert f"{tmp_path / 'a.txt'} is a file; give the name of a new folder" in refused.output


def test_init_accepts_a_virtual_environment_and_git(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "pyvenv.cfg").write_text("")
    monkeypatch.chdir(tmp_path)
    assert "  cd " not in init(Path())
    assert (tmp_path / "pipeline.py").exists()


def test_init_says_what_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(main, ["init", str(tmp_path / "file" / "new")])
    assert result.exit_code == 1
    assert "cannot be written" in result.output
    assert "choose another folder" in result.output
