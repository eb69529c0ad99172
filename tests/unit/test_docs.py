"""The Python blocks of the README and of docs/ run, each file's in order, in one namespace."""

import re
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
DOCUMENTS = {
    path.relative_to(PROJECT).as_posix(): BLOCK.findall(path.read_text())
    for path in [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("**/*.md"))]
}


def test_readme_has_a_pipeline() -> None:
    assert any("Blacksmith(" in block for block in DOCUMENTS["README.md"])


@pytest.mark.parametrize("document", [name for name, blocks in DOCUMENTS.items() if blocks])
def test_python_blocks_run(document: str) -> None:
    namespace: dict[str, Any] = {"__name__": "documented"}
    for number, block in enumerate(DOCUMENTS[document], 1):
        exec(compile(block, f"{document}, block {number}", "exec"), namespace)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    text = (PROJECT / document).read_text()
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert ((PROJECT / document).parent / target).exists(), f"{document} links to {target}"
