"""The docs site: what is broken in it fails its build."""

import re
from pathlib import Path

import pytest

from scripts.build_docs import build, copy_sources

PROJECT = Path(__file__).resolve().parents[2]
PAGES = {
    "index.md": "# Home\n\n[A page](page.md#a-part), [an error][blacksmith_dagster.errors.UsageError]\n",
    "page.md": "# Page\n\n## A part\n\n::: blacksmith_dagster.errors.UsageError\n",
    "changelog.md": '--8<-- "CHANGELOG.md"\n',
}
NAV = 'nav = [{ Home = "index.md" }, { Page = "page.md" }, { Changelog = "changelog.md" }]\n'


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site of three pages, with the settings of this project's own."""
    project, folder = tmp_path / "project", tmp_path / "build"
    (project / "docs").mkdir(parents=True)
    for name, text in PAGES.items():
        (project / "docs" / name).write_text(text)
    (project / "CHANGELOG.md").write_text("# Changelog\n")
    before, rest = (PROJECT / "zensical.toml").read_text().split("nav = [\n")
    _, after = rest.split("\n]\n", 1)
    (project / "zensical.toml").write_text(f"{before}{NAV}{after}")
    copy_sources(project, folder)
    return folder


def test_docs_build_strictly(site: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The pages build, and each fault in them is named and fails the build."""
    assert build(site) == 0
    whole = (site / "site" / "llms-full.txt").read_text()
    assert "## A part" in whole
    assert "does not allow in its present state" in whole  # the docstring
    assert "page/index.md" in (site / "site" / "llms.txt").read_text()

    missing = faults(site, capfd, "docs/page.md", "\n::: blacksmith_dagster.Gone\n")
    assert "blacksmith_dagster.Gone could not be found" in missing
    links = "[a](missing.md) [b](page.md#no-part) [`c`][blacksmith_dagster.Gone]"
    assert faults(site, capfd, "docs/index.md", links) == {
        "page does not exist",
        "anchor does not exist",
        "unresolved autoref",
    }
    (site / "docs" / "unlisted.md").write_text("# Unlisted\n")
    assert faults(site, capfd, "CHANGELOG.md", "\n[a](docs/page.md)\n") == {
        "nav does not name unlisted.md",
        "changelog/index.html: the link ../docs/page/ leads nowhere",
    }


MESSAGES = re.compile(
    r"blacksmith_dagster\.Gone could not be found|(?:page|anchor) does not exist"
    r"|unresolved autoref|nav does not name \S+|\S+: the link \S+ leads nowhere"
)


def faults(site: Path, capfd: pytest.CaptureFixture[str], file: str, fault: str) -> set[str]:
    """The faults that fail a build with this at the end of a file."""
    path = site / file
    right = path.read_text()
    path.write_text(right + fault)
    capfd.readouterr()
    assert build(site) == 1
    path.write_text(right)
    return set(MESSAGES.findall(re.sub(r"\x1b\[[0-9;]*m", "", capfd.readouterr().err)))
