"""The package as its users get it: built, and installed beside nothing but what it says it needs."""

import subprocess
import sys
import venv
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import Distribution, PathDistribution, distribution
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement

from tests.support.processes.blacksmith import ROOT_FOLDER


class Built(NamedTuple):
    """What `make build` makes."""

    sdist: Path
    wheel: Path


def build(folder: Path) -> Built:
    """Build the sdist, and the wheel from it, into `folder`."""
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        f"--outdir={folder}",
        ROOT_FOLDER,
    ]
    subprocess.run(command, check=True, capture_output=True)
    [sdist], [wheel] = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return Built(sdist, wheel)


class Environment:
    """A virtual environment with the wheel, and what it and `others` require: no extra, no source tree.

    What is required is linked from the environment of the tests, which takes a second instead of
    minutes; whatever the wheel does not declare is missing.
    """

    def __init__(self, folder: Path, wheel: Path, others: Sequence[str] = ()) -> None:
        venv.create(folder, symlinks=True)
        self.bin = folder / "bin"
        install = [sys.executable, "-m", "pip", f"--python={self.bin / 'python'}", "install"]
        subprocess.run(
            [*install, "--quiet", "--no-deps", "--no-index", wheel], check=True, capture_output=True
        )
        [site_packages] = folder.glob("lib/python*/site-packages")
        [metadata] = site_packages.glob("blacksmith_dagster-*.dist-info")
        requirements = [*(PathDistribution(metadata).requires or ()), *others]
        for required in _closure(requirements).values():
            for path in _top_level(required):
                link = site_packages / path.name
                if not link.exists():
                    link.symlink_to(path)

    def variables(self, home: Path) -> Mapping[str, str]:
        """The environment variables of its programs."""
        return {"PATH": f"{self.bin}:/usr/bin:/bin", "HOME": str(home)}

    def run(
        self, *command: str | Path, folder: Path, env: Mapping[str, str] | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """Run a program of the environment in `folder`; returns what it printed and its exit code."""
        program, *arguments = command
        return subprocess.run(
            [self.bin / program, *arguments],
            cwd=folder,
            env={**self.variables(folder), **(env or {})},
            capture_output=True,
            text=True,
            check=False,
        )


def _closure(requirements: Sequence[str]) -> Mapping[str, Distribution]:
    """The distributions that satisfy the requirements, with what they require in turn, by name."""
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [requirement for text in requirements for requirement in _needed(text, "")]
    while waiting:
        requirement = waiting.pop()
        installed = found.setdefault(requirement.name.lower(), distribution(requirement.name))
        assert requirement.specifier.contains(installed.version, prereleases=True), requirement
        for extra in ("", *requirement.extras):
            if (key := (requirement.name.lower(), extra)) not in seen:
                seen.add(key)
                waiting += [r for text in installed.requires or () for r in _needed(text, extra)]
    return found


def _needed(text: str, extra: str) -> Iterator[Requirement]:
    requirement = Requirement(text)
    if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
        yield requirement


def _top_level(installed: Distribution) -> set[Path]:
    """The files and folders that a distribution has put into its site-packages."""
    names = {file.parts[0] for file in installed.files or ()} - {"..", "__pycache__"}
    return {Path(str(installed.locate_file(name))) for name in names if not name.endswith(".pth")}
