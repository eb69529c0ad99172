"""The Python blocks of the README and of docs/ run, each document's in order, in one namespace.

A block that begins with a file's name is that module.
"""

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parents[2]
FILE = re.compile(r"# (\w+)\.py\n")
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
DOCUMENTS = {
    path.relative_to(PROJECT).as_posix(): BLOCK.findall(path.read_text())
    for path in [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("**/*.md"))]
}


def test_readme_has_a_pipeline_and_is_short() -> None:
    assert any("Blacksmith(" in block for block in DOCUMENTS["README.md"])
    assert len((PROJECT / "README.md").read_text().splitlines()) <= 120


@pytest.mark.parametrize("document", [name for name, blocks in DOCUMENTS.items() if blocks])
def test_python_blocks_run(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    namespace: dict[str, Any] = {"__name__": "documented"}
    for number, block in enumerate(DOCUMENTS[document], 1):
        if named := FILE.match(block):
            (tmp_path / f"{named[1]}.py").write_text(block)
            monkeypatch.delitem(sys.modules, named[1], raising=False)
            namespace |= vars(importlib.import_module(named[1]))
        else:
            exec(compile(block, f"{document}, block {number}", "exec"), namespace)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    text = (PROJECT / document).read_text()
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert ((PROJECT / document).parent / target).exists(), f"{document} links to {target}"


def test_architecture_names_files_that_exist() -> None:
    text = (PROJECT / "docs/architecture.md").read_text()
    names = re.findall(r"`([a-z_/]+(?:/|\.py))`", text)
    assert len(names) > 25
    package = PROJECT / "blacksmith_dagster"
    assert [
        name for name in names if not (package / name.removeprefix("blacksmith_dagster/")).exists()
    ] == []
