"""The Dockerfile copies what the build context has."""

import re

import pytest

from tests.support.processes.blacksmith import ROOT_FOLDER


def copied() -> set[str]:
    """What the Dockerfile copies from the repository."""
    lines = re.findall(r"^COPY (?!--from)(.+)$", (ROOT_FOLDER / "Dockerfile").read_text(), re.M)
    return {source for line in lines for source in line.split()[:-1]}


def test_the_build_context_is_what_is_copied() -> None:
    ignored = (ROOT_FOLDER / ".dockerignore").read_text().splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == copied()


@pytest.mark.parametrize("source", sorted(copied()))
def test_what_is_copied_exists(source: str) -> None:
    assert (ROOT_FOLDER / source).exists()
