"""Builds the docs site and fails on anything that is broken: `python -m scripts.build_docs [FOLDER]`.

The folder, build/docs by default, gets a copy of docs/, zensical's cache, and the finished `site/`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

PROJECT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Build, check, and exit with 1 if anything is broken."""
    folder = Path(sys.argv[1]) if sys.argv[1:] else PROJECT / "build" / "docs"
    copy_sources(PROJECT, folder)
    sys.exit(build(folder))


def copy_sources(project: Path, folder: Path) -> None:
    """Copy what the site is made of. Zensical wants it in one folder, where it also keeps its cache."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(project / "docs", folder / "docs")
    shutil.copy(project / "zensical.toml", folder)
    changelog = (project / "CHANGELOG.md").read_text()
    (folder / "CHANGELOG.md").write_text(changelog.replace("](docs/", "]("))  # it is a page there


def build(folder: Path) -> int:
    """Build the site of a folder. 0 if nothing is broken, else 1 and a line for each fault."""
    built = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        check=False,
    )
    if built.returncode:
        return 1
    faults = [*faults_of_navigation(folder), *faults_of_links(folder / "site")]
    print(*faults, sep="\n", file=sys.stderr)
    return 1 if faults else 0


def faults_of_navigation(folder: Path) -> Iterator[str]:
    """The pages that the navigation names and that do not exist, and those that it leaves out."""
    named = set(_pages(tomllib.loads((folder / "zensical.toml").read_text())["project"]["nav"]))
    docs = folder / "docs"
    existing = {page.relative_to(docs).as_posix() for page in docs.rglob("*.md")}
    yield from (f"zensical.toml: nav names {page}, which is missing" for page in named - existing)
    yield from (f"zensical.toml: nav does not name {page}" for page in existing - named)


def _pages(nav: list[dict[str, object]]) -> Iterator[str]:
    for entry in nav:
        for value in entry.values():
            if isinstance(value, str):
                yield value
            elif isinstance(value, list):
                yield from _pages(value)


class _Page(HTMLParser):
    """The ids of a page and what it refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value and name == "id":
                self.ids.add(value)
            elif value and (name == "src" or (name == "href" and tag == "a")):
                self.links.add(value)


def faults_of_links(site: Path) -> Iterator[str]:
    """The links of the finished pages that lead nowhere: zensical checks only those of Markdown files,
    not those of docstrings and included files."""
    pages = {path: _Page(path.read_text()) for path in site.rglob("*.html")}
    for path, page in pages.items():
        for link in page.links if path.name != "404.html" else ():
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            target = target / "index.html" if target.is_dir() else target
            anchor = unquote(url.fragment)
            if not target.is_file() or (
                anchor and target in pages and anchor not in pages[target].ids
            ):
                yield f"{path.relative_to(site)}: the link {link} leads nowhere"


if __name__ == "__main__":
    main()
